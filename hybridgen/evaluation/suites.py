"""Suites: a dataset, its held-out split, and everything a pipeline is asked about it, as one `scores.json`.

The drawing and asking themselves are in `generation` and `understanding`. The fact a newcomer gets wrong: a suite does
not know what a model was trained for. A path that never learned a task scores near its baseline; leave it out with
`draw_paths` and `answer_paths`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

from PIL import Image

from hybridgen.configuration_hybridgen import require_path
from hybridgen.data.synthetic import open_synthetic
from hybridgen.evaluation import generation, provenance, understanding
from hybridgen.evaluation.generation import DrawSettings, Prompts
from hybridgen.evaluation.understanding import Quiz
from hybridgen.pipeline_hybridgen import WRITING_PATHS, HybridGenPipeline

Report = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


@dataclass(frozen=True)
class Suite:
    """A dataset and the split of it that training never showed.

    Args:
        words: what a category is called where people read it, when its own name will not do.
    """

    dataset: str
    split: str
    words: dict[str, str] = field(default_factory=dict)

    def word(self, category: str) -> str:
        return self.words.get(category, category.replace("_", " "))


SUITES = {
    "dolls": Suite(
        "dolls",
        "held_out",
        {
            "base": "creature",
            "hand1": "right hand",
            "hand2": "left hand",
            "slots": "all parts",
            "all_seven": "whole pictures",
            "yes_no": "yes or no",
            "all": "all questions",
        },
    ),
    "emoji": Suite("emoji", "combo", {"all": "all questions", "yes_no": "yes or no"}),
}


def open_suite(name: str) -> Suite:
    """The suite of that name. Raises ValueError naming those there are."""
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; choose {' or '.join(SUITES)}")
    return SUITES[name]


@dataclass
class Evaluation:
    """What a pipeline drew and said, and its scores.

    Args:
        scores: what `scores.json` holds: {"generation" or "understanding": {path: {"seconds", "scores": {category:
            tally}}}}, and how they came about. A tally has right, n, share and the interval's low and high; beside
            them majority and true (drawing), or majority and blank (answering).
        prompts, drawn: what was to be drawn, and the pictures by path.
        quiz, given: what was asked, and the answers by path.
        kept: the true pictures after the vq codec: the best that the vq path could draw.
    """

    suite: Suite
    dataset: ModuleType
    scores: dict
    prompts: Prompts
    quiz: Quiz
    drawn: dict[str, list[Image.Image]] = field(default_factory=dict)
    given: dict[str, list[str]] = field(default_factory=dict)
    kept: list[Image.Image] = field(default_factory=list)


def evaluate(
    pipeline: HybridGenPipeline,
    suite: str,
    samples: int = 256,
    seed: int = 0,
    draw_paths: list[str] | None = None,
    answer_paths: list[str] | None = None,
    settings: dict[str, DrawSettings] | None = None,
    report: Report = lambda what, done, of: None,
) -> Evaluation:
    """
    1. Take the first `samples` held-out pictures, their captions and their questions.
    2. Draw the captions by each of `draw_paths`, score them, and the true pictures beside.
    3. Ask the questions through each of `answer_paths`, score them, and the blind answerers beside.

    Args:
        seed: of the samples, and of the drawing (picture i is drawn with seed + i).
        draw_paths, answer_paths: None = every path of the model that can.
        settings: how to draw, by path.

    Raises:
        ValueError: an unknown suite, a path that the model lacks or that cannot draw, or samples that there are not.
    """
    chosen = open_suite(suite)
    draw_paths, answer_paths = _paths(tuple(pipeline.model.config.paths), draw_paths, answer_paths)
    dataset = open_synthetic(chosen.dataset)
    prompts = generation.held_out_prompts(dataset, chosen.split, samples, seed)
    quiz = understanding.held_out_quiz(dataset, chosen.split, samples, seed)
    majority = dataset.majority_baselines(samples, seed, chosen.split)
    beside = {"majority": majority["pictures"]}
    if draw_paths:
        beside["true"] = _shares(generation.score(dataset, prompts.pictures, prompts.specs))
    scores = {
        "suite": suite,
        "split": chosen.split,
        "samples": samples,
        "questions": len(quiz),
        "seed": seed,
        "generation": {},
        "understanding": {},
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }
    done = Evaluation(chosen, dataset, scores, prompts, quiz)
    pipeline.set_progress_bar_config(disable=True)  # `report` tells more
    for path in draw_paths:
        how = (settings or {}).get(path, DrawSettings())
        _draw(done, pipeline, path, how, beside, partial(report, f"drawing by {path}"))
    for path in answer_paths:
        _ask(done, pipeline, path, majority["answers"], partial(report, f"answering through {path}"))
    return done


def _paths(there: tuple[str, ...], draw: list[str] | None, answer: list[str] | None) -> tuple[list[str], list[str]]:
    draw = [path for path in there if path in WRITING_PATHS] if draw is None else list(draw)
    answer = list(there) if answer is None else list(answer)
    for path in (*draw, *answer):
        require_path(there, path)
    for path in draw:
        if path not in WRITING_PATHS:
            raise ValueError(f"the {path} path reads and cannot draw; draw by {' or '.join(WRITING_PATHS)}")
    if not draw and not answer:
        raise ValueError("there is nothing to evaluate; name a path to draw by or to answer through")
    return draw, answer


def _shares(tallies: dict[str, dict]) -> dict[str, float]:
    return {category: tally["share"] for category, tally in tallies.items()}


def _draw(
    done: Evaluation, pipeline: HybridGenPipeline, path: str, how: DrawSettings, beside: dict[str, dict], progress
) -> None:
    """Step 2, for one path."""
    dataset, prompts, seed = done.dataset, done.prompts, done.scores["seed"]
    images, seconds = generation.draw(pipeline, prompts.captions, path, dataset.SIZE, seed, how, progress)
    if path == "vq":
        done.kept = generation.through_codec(pipeline, prompts.pictures)
        beside = {**beside, "codec": _shares(generation.score(dataset, done.kept, prompts.specs))}
    tallies = {
        category: {**tally, **{name: shares.get(category, 0.0) for name, shares in beside.items()}}
        for category, tally in generation.score(dataset, images, prompts.specs).items()
    }
    done.drawn[path] = images
    done.scores["generation"][path] = {"seconds": round(seconds, 2), **how.of_path(path), "scores": tallies}


def _ask(done: Evaluation, pipeline: HybridGenPipeline, path: str, majority: dict[str, float], progress) -> None:
    """Step 3, for one path."""
    given, seconds = understanding.answer(pipeline, done.quiz, path, progress)
    blank = understanding.answer_blank(pipeline, done.quiz, path)
    tallies = understanding.score(done.dataset, done.quiz, given, blank, majority)
    done.given[path] = given
    done.scores["understanding"][path] = {"seconds": round(seconds, 2), "scores": tallies}
