"""unified: does the model recognise what it drew? Generate, ask, compare, for each path that draws and each that reads.

Held-out captions of a synthetic dataset (`--option world=NAME`) are drawn, and the dataset's own questions asked about
the drawn pictures. An answer may differ from the caption because the picture is wrong or because it was read wrongly;
the dataset's exact scorer sees what the picture really shows, and tells the two apart; whether two answers say the same
is the dataset's to judge, too ("apple" and "a p p l e" do):

    as_asked     answers that are as the caption says
    as_drawn     answers that are as the picture shows
    drawn_right  questions to which the picture gives the caption's answer
    misread      answers that are not as the picture shows, though the picture gives the caption's answer

The last three count the questions that can be asked of what the picture shows, in the same words: the colour of a robe
where none was drawn has no answer. Beside `as_asked` stand the controls, and (`true`) the same questions about the true
pictures. `--chat PATH` also draws in conversations, and asks there (`in_chat`) and about the same picture alone.

Source and licence: as of the dataset. The idea is that of the consistency tests of unified models (such as RealUnify's
and UEval's), which judge by another model; here no model judges.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hybridgen.core.messages import strip_reasoning
from hybridgen.data.synthetic import open_synthetic
from hybridgen.data.synthetic.questions import Question, tally
from hybridgen.evaluation import generation
from hybridgen.evaluation.controls import answer_with_controls, most_frequent
from hybridgen.evaluation.intervals import score_by_groups
from hybridgen.evaluation.result import BASELINES, Item, Result
from hybridgen.evaluation.suites import SUITES, open_suite
from hybridgen.evaluation.synthetic import check_world, held_out_of, side_of
from hybridgen.evaluation.work import MAX_NEW_TOKENS, Work
from hybridgen.sampling.seeds import nth_seed

USUAL_SAMPLES = 64
USUAL_CHATS = 24
CHAT_QUESTIONS = 4  # about a picture drawn in a chat
LABELS = {
    "as_asked": "answers as the caption says",
    "as_drawn": "answers as the picture shows",
    "drawn_right": "questions to which the picture gives the caption's answer",
    "misread": "answers that are wrong about a picture that is right",
    "in_chat": "in the chat, as the caption says",
    "in_chat_as_drawn": "in the chat, as the picture shows",
}
_IN_CHAT = {"as_asked": "in_chat", "as_drawn": "in_chat_as_drawn", "drawn_right": "drawn_right"}  # its names there
_DRAWS = 32  # sets of questions that are drawn in search of one in the same words


class _Asked(NamedTuple):
    """A question about drawn picture `number`, and what it answers to: the caption's answer and the picture's (None =
    it cannot be asked of that)."""

    number: int
    category: str
    question: str
    of_caption: str
    of_picture: str | None

    def judged(self, dataset: ModuleType, answer: str) -> dict[str, bool]:
        """Whether an answer is right, by the dataset's own rule, and whether the picture is; only `as_asked` where the
        question cannot be asked of the picture."""

        def is_right(given: str, wanted: str) -> bool:
            question = Question(self.category, self.question, wanted)
            return dataset.score_answers([given], [question])["all"]["right"] == 1

        right = {"as_asked": is_right(answer, self.of_caption)}
        if self.of_picture is not None:
            right["as_drawn"] = is_right(answer, self.of_picture)
            right["drawn_right"] = is_right(self.of_picture, self.of_caption)
        return right


def check(work: Work) -> None:
    dataset, split = _world(work)
    work.require_drawing()
    work.require_answering()
    check_world(work, dataset, split, USUAL_SAMPLES)
    work.number("chats", USUAL_CHATS)


def run(work: Work) -> Result:
    """
    1. Draw the captions by each path that draws.
    2. Ask every question about each picture through each path that reads, and about the true pictures.
    3. Draw and ask in conversations, by the paths named for it.
    """
    dataset, split = _world(work)
    side, prompts = side_of(work, dataset), held_out_of(work, dataset, split, USUAL_SAMPLES)
    facts = {"world": work.text("world", "dolls"), "split": split, "samples": len(prompts)}
    facts |= {"seed": work.seed, "size": side}
    result = Result(facts=facts, labels=dict(LABELS), credit=getattr(_suite(work), "CREDIT", ""))
    questions = _questions(dataset, prompts.specs, work.seed)
    of_true = questions_about(dataset, questions, prompts.specs, prompts.specs)
    true = {path: _of_true_pictures(work, dataset, prompts, path, of_true) for path in work.answer_paths}
    for draw in work.draw_paths:
        images = list(work.draw(draw, prompts.captions, size=side))
        shown = dataset.nearest_specs(generation.stacked(images))
        asked = questions_about(dataset, questions, prompts.specs, shown)
        for read in work.answer_paths:
            _ask(work, result, dataset, draw, read, images, prompts, asked, true[read])
    for draw in work.chat_paths:
        _chat(work, result, dataset, prompts[: work.number("chats", USUAL_CHATS)], draw, side)
    return result


def _suite(work: Work) -> ModuleType:
    """The suite of the world. Raises ValueError where there is no such world."""
    name, worlds = work.text("world", "dolls"), [name for name in SUITES if _is_world(name)]
    if name not in worlds:
        raise ValueError(f"option world of suite {work.suite} is {name!r}; it must be one of {', '.join(worlds)}")
    return open_suite(name)


def _is_world(name: str) -> bool:
    try:
        return hasattr(open_synthetic(name), "nearest_specs")
    except ValueError:  # a suite of something else
        return False


def _world(work: Work) -> tuple[ModuleType, str]:
    """The dataset, and the split of it that is evaluated."""
    suite = _suite(work)
    return open_synthetic(work.text("world", "dolls")), suite.SPLIT


def questions_about(dataset: ModuleType, questions: Sequence[list], specs: Sequence, shown: Sequence) -> list[_Asked]:
    """The questions about each caption's picture, with their answers there and in what the drawn picture shows.

    Args:
        questions: those about each picture.
        specs, shown: what the captions say, and what the scorer sees.
    """
    asked = []
    for number, (of_one, spec, drawn) in enumerate(zip(questions, specs, shown, strict=True)):
        answers = {each.question: each.answer for each in of_one}
        answers = answers if drawn == spec else _answers_in(dataset, drawn, list(answers))
        asked += [_Asked(number, *each, answers.get(each.question)) for each in of_one]
    return asked


def _questions(dataset: ModuleType, specs: Sequence, seed: int, most: int | None = None) -> list[list]:
    """All questions about each picture, or so many of them, by chance."""
    several = []
    for number, spec in enumerate(specs):
        rng = np.random.default_rng((seed, number))
        questions = dataset.questions(spec, rng)
        several.append([questions[place] for place in rng.permutation(len(questions))[:most]])
    return several


def _answers_in(dataset: ModuleType, spec: Any, wordings: list[str]) -> dict[str, str]:
    """The answers to questions of these words about what a spec shows, of those that can be asked of it."""
    found: dict[str, str] = {}
    for draw in range(_DRAWS):
        found |= {each.question: each.answer for each in dataset.questions(spec, np.random.default_rng(draw))}
    return {wording: found[wording] for wording in wordings if wording in found}


def score(dataset: ModuleType, answers: Sequence[str], asked: Sequence[_Asked]) -> dict[str, dict]:
    """The four tallies, with intervals over pictures."""
    judged = [one.judged(dataset, answer) for answer, one in zip(answers, asked, strict=True)]

    def of_some(places: list[int]) -> dict[str, dict]:
        some = [judged[i] for i in places]
        known = [right for right in some if "as_drawn" in right]
        drawn_right = [right for right in known if right["drawn_right"]]
        return {
            "as_asked": tally(sum(right["as_asked"] for right in some), len(some)),
            "as_drawn": tally(sum(right["as_drawn"] for right in known), len(known)),
            "drawn_right": tally(len(drawn_right), len(known)),
            "misread": tally(sum(not right["as_drawn"] for right in drawn_right), len(drawn_right)),
        }

    return score_by_groups(of_some, [one.number for one in asked])


def _of_true_pictures(
    work: Work, dataset: ModuleType, prompts: generation.Prompts, path: str, asked: list[_Asked]
) -> float:
    """The share of right answers to the same questions about the true pictures."""
    images, questions = [prompts.pictures[one.number] for one in asked], [one.question for one in asked]
    label = f"answering through {path}, of the true pictures"
    answers = work.answer(path, images, questions, f"true-{path}", label=label)
    return score(dataset, answers, asked)["as_asked"]["share"]


def _ask(
    work: Work, result: Result, dataset: ModuleType, draw: str, read: str, images: list[Image.Image],
    prompts: generation.Prompts, asked: list[_Asked], true: float,
) -> None:  # fmt: skip
    """Step 2 of `run`, for one pair of paths."""
    constants = most_frequent([one.category for one in asked], [[one.of_caption] for one in asked])
    answers, tallies, notes = answer_with_controls(
        work, read, [images[one.number] for one in asked], [one.question for one in asked],
        lambda answers: score(dataset, answers, asked), constants, group=f"{draw}-",
    )  # fmt: skip
    for name in ("drawn_right", "misread"):  # of which controls say nothing
        tallies[name] = {key: value for key, value in tallies[name].items() if key not in BASELINES}
    tallies["as_asked"]["true"] = true
    items = [
        _item(dataset, one, answer, prompts, images[one.number], draw)
        for one, answer in zip(asked, answers, strict=True)
    ]
    seconds = work.seconds(f"draw-{draw}", f"{draw}-answer-{read}")
    result.add("unified", f"by {draw}, through {read}", tallies, items, seconds=seconds)
    result.note(*notes)


def _item(
    dataset: ModuleType, one: _Asked, answer: str, prompts: generation.Prompts, image: Image.Image, draw: str
) -> Item:
    right, wrong = one.judged(dataset, answer), []
    if one.of_picture is None:
        wrong.append("drawn wrong: what is asked about is not there")
    elif not right["drawn_right"]:
        wrong.append(f"drawn wrong: it shows {one.of_picture}")
    if right.get("as_drawn") is False:
        wrong.append("read wrong")
    pictures = {"true picture": prompts.pictures[one.number], draw: image}
    asked = f"{prompts.captions[one.number]}: {one.question}"
    verdict = {name: float(each) for name, each in right.items()}
    return Item(asked, pictures, answer, one.of_caption, verdict, "; ".join(wrong))


# ------------------------------------------------------------------------------------------------------------- in chats


def _chat(work: Work, result: Result, dataset: ModuleType, prompts: generation.Prompts, draw: str, side: int) -> None:
    """Step 3 of `run`, for one path: each question is asked right after the picture, and of the picture alone through
    each path that reads."""
    settings = work.settings_of(draw).arguments(draw)
    questions = _questions(dataset, prompts.specs, work.seed, CHAT_QUESTIONS)

    def talk(number: int) -> dict:
        chat = work.pipeline.chat(path=draw, seed=nth_seed(work.seed, number), **settings)
        picture = chat.draw(prompts.captions[number], height=side, width=side)
        words = [chat.fork().ask(each.question, max_new_tokens=MAX_NEW_TOKENS) for each in questions[number]]
        return {"picture": picture, "answers": [strip_reasoning(str(text)) for text in words]}

    chats = list(work.each(len(prompts), talk, f"chat-{draw}", f"drawing by {draw} in chats, and asking there"))
    images = [chat["picture"] for chat in chats]
    shown = dataset.nearest_specs(generation.stacked(images))
    asked = questions_about(dataset, questions, prompts.specs, shown)
    answers = [answer for chat in chats for answer in chat["answers"]]
    there = score(dataset, answers, asked)
    tallies = {_IN_CHAT[name]: there[name] for name in _IN_CHAT}
    items = [
        _item(dataset, one, answer, prompts, images[one.number], draw)
        for one, answer in zip(asked, answers, strict=True)
    ]
    for item in items:
        item.verdict = {_IN_CHAT[name]: right for name, right in item.verdict.items()}
    for read in work.answer_paths:
        given = [images[one.number] for one in asked], [one.question for one in asked]
        alone = list(work.answer(read, *given, f"alone-{draw}-{read}"))
        scores = score(dataset, alone, asked)
        for name in ("as_asked", "as_drawn"):
            tallies[f"{name}_alone_{read}"] = scores[name]
            result.labels[f"{name}_alone_{read}"] = f"the same pictures alone, through {read}: {LABELS[name]}"
        for item, one, answer in zip(items, asked, alone, strict=True):
            right = one.judged(dataset, answer)
            names = [name for name in ("as_asked", "as_drawn") if name in right]
            item.verdict |= {f"{name}_alone_{read}": float(right[name]) for name in names}
            if answer != item.answer:
                item.wrong = "; ".join(filter(None, (item.wrong, f"alone, through {read}: {answer}")))
    result.add("conversation", draw, tallies, items, seconds=work.seconds(f"chat-{draw}"))
