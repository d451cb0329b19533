"""Suites: a dataset, its held-out split, and everything a pipeline is asked about it, as one `scores.json`.

The drawing and asking themselves are in `generation`, `understanding` and `conversations`. A suite does not know what a
model was trained for: a path that never learned a task scores near its baseline, and can be left out with `draw_paths`
and `answer_paths`; conversations are held by `chat_paths` only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from PIL import Image

from hybridgen.configuration_hybridgen import require_path
from hybridgen.core.names import WRITING_PATHS
from hybridgen.data.synthetic import open_synthetic
from hybridgen.evaluation import conversations, environment, generation, understanding
from hybridgen.evaluation.generation import DrawSettings, Progress, Prompts
from hybridgen.evaluation.understanding import Quiz
from hybridgen.pipeline_hybridgen import HybridGenPipeline

TaskProgress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


@dataclass(frozen=True)
class Suite:
    """A dataset and the split of it that training never showed.

    Args:
        labels: what a category is called where people read it, when its own name will not do.
    """

    dataset: str
    split: str
    labels: dict[str, str] = field(default_factory=dict)

    def label(self, category: str) -> str:
        return self.labels.get(category) or conversations.LABELS.get(category, category.replace("_", " "))


SUITES = {
    "dolls": Suite(
        "dolls",
        "held_out",
        {
            "base": "creature",
            "hand1": "right hand",
            "hand2": "left hand",
            "slots": "all parts",  # the seven parts of every picture, counted singly
            "all_seven": "whole pictures",  # pictures with all seven parts right
            "yes_no": "yes or no",
            "all": "all questions",
        },
    ),
    # combo: training showed the emoji and the style, but not the two together
    "emoji": Suite("emoji", "combo", {"all": "all questions", "yes_no": "yes or no"}),
}


def open_suite(name: str) -> Suite:
    """The suite of that name. Raises ValueError naming those there are."""
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; choose {' or '.join(SUITES)}")
    return SUITES[name]


@dataclass
class Evaluation:
    """What a pipeline drew and answered, and its scores.

    Args:
        scores: what `scores.json` holds: {"generation", "understanding" or "conversation": {path: {"seconds", "scores":
            {category: tally}}}}, and how they came about. A tally has right, n, share and the interval's low and high.
            Beside them stand shares to compare with: for drawing majority, true (what the scorer makes of the true
            pictures) and, on the vq path, codec (of the `reconstructions`); for answering majority and blank.
        prompts, drawings: what was to be drawn, and the pictures by path, one per prompt.
        quiz, answers: what was asked, and the answers by path, one per question.
        reconstructions: the true pictures after the vq codec: the best that the vq path could draw.
    """

    suite: Suite
    dataset: ModuleType
    scores: dict
    prompts: Prompts
    quiz: Quiz
    drawings: dict[str, list[Image.Image]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    reconstructions: list[Image.Image] = field(default_factory=list)

    def is_right(self, answer: str, question: Any) -> bool:
        """Whether the dataset's scorer takes that answer to one of its questions."""
        return bool(self.dataset.score_answers([answer], [question])["all"]["right"])


def evaluate(
    pipeline: HybridGenPipeline,
    suite: str,
    samples: int = 256,
    seed: int = 0,
    draw_paths: list[str] | None = None,
    answer_paths: list[str] | None = None,
    chat_paths: list[str] | tuple = (),
    chats: int = 24,
    settings: dict[str, DrawSettings] | None = None,
    progress: TaskProgress = lambda what, done, of: None,
) -> Evaluation:
    """
    1. Take the first `samples` held-out pictures, their captions and their questions.
    2. Draw the captions by each of `draw_paths`, score them, and the true pictures beside.
    3. Ask the questions through each of `answer_paths`, score them, and the blind baselines beside.
    4. Hold conversations that draw by each of `chat_paths` (`conversations`).

    Args:
        seed: of the samples, and of the drawing (picture i is drawn with seed + i).
        draw_paths, answer_paths: None = every path of the model that can.
        chat_paths: by which conversations draw; none, unless they are named: only a model that was trained on
            conversations can hold them.
        chats: prompts that conversations are about, of the first `samples`; two chats each.
        settings: how to draw, by path.

    Raises:
        ValueError: an unknown suite, a path that the model lacks or that cannot draw, or more samples than the
                split holds.
    """
    chosen = open_suite(suite)
    draw_paths, answer_paths = _paths(tuple(pipeline.model.config.paths), draw_paths, answer_paths, chat_paths)
    dataset = open_synthetic(chosen.dataset)
    prompts = generation.held_out_prompts(dataset, chosen.split, samples, seed)
    quiz = understanding.held_out_quiz(dataset, chosen.split, samples, seed)
    majority = dataset.majority_baselines(samples, seed, chosen.split)
    baselines = {"majority": majority["pictures"]}
    if draw_paths:
        baselines["true"] = _shares(generation.score(dataset, prompts.pictures, prompts.specs))
    scores = {
        "suite": suite,
        "split": chosen.split,
        "samples": samples,
        "questions": len(quiz),
        "seed": seed,
        "generation": {},
        "understanding": {},
        "conversation": {},
        "versions": environment.versions(),
        "hardware": environment.hardware(),
    }
    evaluation = Evaluation(chosen, dataset, scores, prompts, quiz)
    pipeline.set_progress_bar_config(disable=True)  # `progress` tells more
    for path in draw_paths:
        how = (settings or {}).get(path, DrawSettings())
        _draw(evaluation, pipeline, path, how, baselines, partial(progress, f"drawing by {path}"))
    for path in answer_paths:
        _answer(evaluation, pipeline, path, majority["answers"], partial(progress, f"answering through {path}"))
    for path in chat_paths:
        how = (settings or {}).get(path, DrawSettings())
        some = Prompts(*(column[:chats] for column in (prompts.captions, prompts.specs, prompts.pictures)))
        talk = partial(progress, f"talking, drawing by {path}")
        tallies, seconds = conversations.converse(pipeline, dataset, some, path, how, seed, talk)
        scores["conversation"][path] = {"seconds": round(seconds, 2), **how.of_path(path), "scores": tallies}
    return evaluation


def _paths(
    of_model: tuple[str, ...], draw: list[str] | None, answer: list[str] | None, chat: list[str] | tuple
) -> tuple[list[str], list[str]]:
    """The paths to draw by and to answer through, checked."""
    draw = [path for path in of_model if path in WRITING_PATHS] if draw is None else list(draw)
    answer = list(of_model) if answer is None else list(answer)
    for path in (*draw, *answer, *chat):
        require_path(of_model, path)
    for path in (*draw, *chat):
        if path not in WRITING_PATHS:
            raise ValueError(f"the {path} path reads and cannot draw; draw by {' or '.join(WRITING_PATHS)}")
    if not draw and not answer and not chat:
        raise ValueError("there is nothing to evaluate; name a path to draw by or to answer through")
    return draw, answer


def _shares(tallies: dict[str, dict]) -> dict[str, float]:
    return {category: tally["share"] for category, tally in tallies.items()}


def _draw(
    evaluation: Evaluation,
    pipeline: HybridGenPipeline,
    path: str,
    settings: DrawSettings,
    baselines: dict[str, dict[str, float]],
    progress: Progress,
) -> None:
    """Step 2 of `evaluate`, for one path."""
    dataset, prompts, seed = evaluation.dataset, evaluation.prompts, evaluation.scores["seed"]
    images, seconds = generation.draw(pipeline, prompts.captions, path, dataset.SIZE, seed, settings, progress)
    if path == "vq":
        evaluation.reconstructions = generation.reconstruct(pipeline, prompts.pictures)
        codec = _shares(generation.score(dataset, evaluation.reconstructions, prompts.specs))
        baselines = {**baselines, "codec": codec}
    tallies = {
        category: {**tally, **{name: shares.get(category, 0.0) for name, shares in baselines.items()}}
        for category, tally in generation.score(dataset, images, prompts.specs).items()
    }
    evaluation.drawings[path] = images
    evaluation.scores["generation"][path] = {"seconds": round(seconds, 2), **settings.of_path(path), "scores": tallies}


def _answer(
    evaluation: Evaluation, pipeline: HybridGenPipeline, path: str, majority: dict[str, float], progress: Progress
) -> None:
    """Step 3 of `evaluate`, for one path."""
    answers, seconds = understanding.answer(pipeline, evaluation.quiz, path, progress)
    blank = understanding.answer_blank(pipeline, evaluation.quiz, path)
    tallies = understanding.score(evaluation.dataset, evaluation.quiz, answers, blank, majority)
    evaluation.answers[path] = answers
    evaluation.scores["understanding"][path] = {"seconds": round(seconds, 2), "scores": tallies}
