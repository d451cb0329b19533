"""What every synthetic dataset is evaluated on: its held-out captions drawn, its questions answered, and conversations
held, all scored by the dataset's own exact scorer. The suites of `dolls` and `emoji` are this.

Nothing here knows what a model was trained for: a path that never learned a task scores near its baseline, and can be
left out with `--draw` and `--answer`; conversations are held by `--chat` alone.
"""

from types import ModuleType

from PIL import Image

from hybridgen.data.synthetic import open_synthetic
from hybridgen.data.synthetic.sizes import check_side
from hybridgen.evaluation import conversations, generation, understanding
from hybridgen.evaluation.generation import Prompts
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.understanding import Quiz
from hybridgen.evaluation.work import Work

USUAL_SAMPLES = 256
USUAL_CHATS = 24


def check_synthetic(work: Work, name: str, split: str) -> None:
    """Raises ValueError, before any long work, for what `evaluate_synthetic` could not do."""
    dataset = open_synthetic(name)
    check_world(work, dataset, split, USUAL_SAMPLES)
    work.number("chats", USUAL_CHATS)


def evaluate_synthetic(work: Work, name: str, split: str, labels: dict[str, str], credit: str) -> Result:
    """
    1. Take the first held-out pictures, their captions and their questions.
    2. Draw the captions by each path, score them, and the true pictures beside.
    3. Ask the questions through each path, score them, and the blind baselines beside.
    4. Hold conversations that draw by each of the paths named for it (`conversations`).
    """
    dataset = open_synthetic(name)
    side, prompts = side_of(work, dataset), held_out_of(work, dataset, split, USUAL_SAMPLES)
    samples = len(prompts)
    quiz = understanding.held_out_quiz(dataset, split, samples, work.seed, side)
    majority = dataset.majority_baselines(samples, work.seed, split)
    facts = {"split": split, "samples": samples, "questions": len(quiz), "seed": work.seed, "size": side}
    result = Result(facts=facts, labels={**conversations.LABELS, **labels}, credit=credit)
    beside = {"majority": majority["pictures"]}
    if work.draw_paths:
        beside["true"] = _shares(dataset, prompts.pictures, prompts.specs)
    for path in work.draw_paths:
        _draw(work, result, dataset, prompts, path, beside, side)
    for path in work.answer_paths:
        _answer(work, result, dataset, quiz, path)
    for path in work.chat_paths:
        some = prompts[: work.number("chats", USUAL_CHATS)]
        tallies, items = conversations.converse(work, dataset, some, path, side)
        seconds = work.seconds(f"chat-{path}", f"greet-{path}")
        result.add("conversation", path, tallies, items, seconds=seconds, **work.settings_of(path).of_path(path))
    return result


def check_world(work: Work, dataset: ModuleType, split: str, usual: int) -> None:
    """Raises ValueError where the captions of `held_out_of` cannot be drawn at the size of its pictures."""
    side = side_of(work, dataset)
    work.check_drawing(["a picture"], side)  # before pictures are made of a size that nothing can draw
    work.check_drawing(held_out_of(work, dataset, split, usual).captions, side)


def held_out_of(work: Work, dataset: ModuleType, split: str, usual: int) -> Prompts:
    """The drawing records of a dataset's split that are evaluated, made once: as many as were asked for, else `usual`.

    Raises:
        ValueError: more were asked for than there are, or pictures of a size that the dataset cannot have.
    """
    side = side_of(work, dataset)
    samples = work.count(len(dataset.Source(split, "draw", work.seed)), usual)
    make = lambda: generation.held_out_prompts(dataset, split, samples, work.seed, side)  # noqa: E731
    return work.once("prompts", make)


def side_of(work: Work, dataset: ModuleType) -> int:
    """The side of the pictures: the option `size`, or else as the checkpoint draws where that is a whole multiple of
    the dataset's own, or else the dataset's own.

    Raises:
        ValueError: the dataset cannot have that size.
    """
    default = set(work.pipeline.processor.default_size or ())
    fits = len(default) == 1 and min(default) % dataset.SIZE == 0
    side = work.number("size", min(default) if fits else dataset.SIZE)
    check_side(side, dataset.SIZE)
    return side


def _draw(
    work: Work, result: Result, dataset: ModuleType, prompts: Prompts, path: str, beside: dict[str, dict], side: int
) -> None:
    """Step 2 of `evaluate_synthetic`, for one path."""
    images = list(work.draw(path, prompts.captions, size=side))
    shown = {"true picture": prompts.pictures}
    if path == "vq":  # the true pictures after its codec: the best that the path could draw
        decoded = generation.reconstruct(work.pipeline, prompts.pictures)
        beside = {**beside, "codec": _shares(dataset, decoded, prompts.specs)}
        shown["as codes"] = decoded
    verdicts = generation.judge(dataset, images, prompts.specs)
    tallies = {
        category: {**tally, **{name: shares[category] for name, shares in beside.items() if category in shares}}
        for category, tally in generation.score(dataset, images, prompts.specs, verdicts).items()
    }
    items = [
        Item(
            caption,
            {**{heading: pictures[i] for heading, pictures in shown.items()}, path: images[i]},
            verdict=verdicts[i].shares,
            wrong=", ".join(map(result.label, verdicts[i].wrong)),
        )
        for i, caption in enumerate(prompts.captions)
    ]
    settings = work.settings_of(path).of_path(path)
    result.add("generation", path, tallies, items, seconds=work.seconds(f"draw-{path}"), **settings)


def _answer(work: Work, result: Result, dataset: ModuleType, quiz: Quiz, path: str) -> None:
    """Step 3 of `evaluate_synthetic`, for one path."""
    answers, tallies, notes = understanding.answer(work, quiz, path, dataset.score_answers)
    items = []
    for picture, question, answer in zip(quiz.pictures, quiz.questions, answers, strict=True):
        right = float(dataset.score_answers([answer], [question])["all"]["right"])
        verdict = {"all": right, question.category: right}
        items.append(Item(question.question, {"shown": picture}, answer, question.answer, verdict))
    result.add("understanding", path, tallies, items, seconds=work.seconds(f"answer-{path}"))
    result.note(*notes)


def _shares(dataset: ModuleType, pictures: list[Image.Image], specs: list) -> dict[str, float]:
    tallies = dataset.score_pictures(generation.stacked(pictures), specs)
    return {category: tally["share"] for category, tally in tallies.items()}
