"""The shapes dataset: plain shapes in GenEval's six categories, with exact captions, questions and scores.

This file joins the parts: pictures are drawn in `pictures`, put into words in `language`, judged in `scoring`. The
split `held_out` combines anew what training shows apart: a shape and a colour, a shape and a number, two shapes, a
shape left of another (`pictures.held_out`). Half of the training captions say all but the places, the others what
GenEval's prompt of that category says; held-out captions are such prompts, each category in its turn.
"""

import numpy as np
from PIL import Image

from hybridgen.core.geneval import COLOURS, RELATIONS, TAGS
from hybridgen.data.synthetic.questions import Question, majority_shares, score_answers
from hybridgen.data.synthetic.shapes.language import (
    CATEGORIES,
    caption,
    open_caption,
    parse_caption,
    prompt,
    questions,
    reasoning,
)
from hybridgen.data.synthetic.shapes.pictures import (
    BACKGROUNDS,
    SHAPES,
    SIZE,
    SPLITS,
    ShapesSpec,
    Thing,
    complete,
    draw_spec,
    held_out,
    render,
    render_batch,
)
from hybridgen.data.synthetic.shapes.scoring import (
    detect,
    geneval_line,
    judge_pictures,
    majority_pictures,
    nearest_specs,
    score_pictures,
)
from hybridgen.data.synthetic.source import LENGTH, TASKS, SyntheticSource

__all__ = [
    "BACKGROUNDS",
    "CATEGORIES",
    "COLOURS",
    "LENGTH",
    "Question",
    "RELATIONS",
    "SHAPES",
    "SIZE",
    "SPLITS",
    "Shapes",
    "ShapesSpec",
    "Source",
    "TAGS",
    "TASKS",
    "Thing",
    "caption",
    "complete",
    "detect",
    "draw_spec",
    "geneval_line",
    "held_out",
    "judge_pictures",
    "majority_baselines",
    "nearest_specs",
    "open_caption",
    "parse_caption",
    "prompt",
    "questions",
    "render",
    "render_batch",
    "score_answers",
    "score_pictures",
    "spec_of",
]

SMALLEST = 16  # pixels a side: below, nobody could tell the shapes apart


class Shapes(SyntheticSource):
    """Scenes as chat records: `Shapes("train" or "held_out", "draw" or "answer", seed=0)[123]`; any size."""

    dataset = "shapes"
    splits = SPLITS
    question_categories = CATEGORIES
    names = (*SHAPES, *COLOURS)
    has_open_captions = True
    native_size = SIZE

    def _check_size(self) -> None:
        if self.size < SMALLEST:
            raise ValueError(f"shapes of {self.size} pixels a side cannot be told apart: choose {SMALLEST} or more")

    def _draw(self, index: int, rng: np.random.Generator) -> ShapesSpec:
        unseen = self.split == "held_out"
        return draw_spec(rng, unseen, TAGS[index % len(TAGS)] if unseen else None, self.oversampling)

    def _render(self, spec: ShapesSpec) -> Image.Image:
        return render(spec, self.size)

    def _caption(self, spec: ShapesSpec, rng: np.random.Generator) -> str:
        in_full = self.split == "train" and rng.random() < 0.5
        return caption(spec if in_full else prompt(spec))

    def _open_caption(self, spec: ShapesSpec, rng: np.random.Generator) -> str:
        return open_caption(spec, rng)

    def _questions(self, spec: ShapesSpec, rng: np.random.Generator) -> list[Question]:
        return questions(spec, rng)

    def _reasoning(self, spec: ShapesSpec, question: Question) -> str:
        return reasoning(spec, question)


Source = Shapes


def spec_of(record: dict) -> ShapesSpec:
    """The scene that a record of this dataset shows, from its "meta" (also after a round trip through JSON)."""
    spec = record["meta"]["spec"]
    return ShapesSpec(**{**spec, "things": tuple(Thing(*thing) for thing in spec["things"])})


def majority_baselines(n: int, seed: int, split: str = "train") -> dict[str, dict[str, float]]:
    """What constant answers and a constant picture would score on `n` scenes of a split.

    Returns {"answers": {category: share, ..., "all"}, "pictures": {category of GenEval: share, ..., "pictures",
    "exact"}}, the names that `score_answers` and `score_pictures` use.
    """
    source = Shapes(split, "answer", seed)
    all_questions = [Question(*entry) for index in range(n) for entry in source[index]["meta"]["questions"]]
    return {
        "answers": majority_shares(all_questions),
        "pictures": majority_pictures([source.spec(index) for index in range(n)]),
    }
