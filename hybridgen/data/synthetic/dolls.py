"""The dolls dataset: 2.4e8 pixel-art figures with exact captions, exact questions and exact scores, as chat records.

This file only joins the parts: pictures are drawn in `dolls_figures`, put into words in `dolls_language`, judged in
`dolls_scoring`. What newcomers get wrong: `held_out` holds out pairs of creature and clothing, not creatures; both
parts of every unseen pair are seen apart.
"""

import numpy as np
from PIL import Image

from hybridgen.data.synthetic.dolls_figures import (
    SIZE,
    SLOTS,
    SPLITS,
    Spec,
    draw_spec,
    held_out_pairs,
    phrases,
    render,
    render_batch,
)
from hybridgen.data.synthetic.dolls_language import CATEGORIES, caption, parse_caption, questions, reasoning
from hybridgen.data.synthetic.dolls_scoring import judge_pictures, majority_slots, nearest_specs, score_pictures
from hybridgen.data.synthetic.questions import Question, majority_shares, score_answers
from hybridgen.data.synthetic.source import LENGTH, TASKS, IndexedSource

__all__ = [
    "CATEGORIES",
    "Dolls",
    "LENGTH",
    "Question",
    "SIZE",
    "SLOTS",
    "SPLITS",
    "Source",
    "Spec",
    "TASKS",
    "caption",
    "draw_spec",
    "held_out_pairs",
    "judge_pictures",
    "majority_baselines",
    "nearest_specs",
    "parse_caption",
    "questions",
    "render",
    "render_batch",
    "score_answers",
    "score_pictures",
    "spec_of",
]


class Dolls(IndexedSource):
    """Figures as chat records: `Dolls("train" or "held_out", "draw" or "answer", seed=0)[123]`; 32x32 pixels."""

    dataset = "dolls"
    splits = SPLITS
    kinds = CATEGORIES

    @property
    def names(self) -> list[str]:
        return phrases()

    def _draw(self, index: int, rng: np.random.Generator) -> Spec:
        return draw_spec(rng, self.split == "held_out", self.oversampling)

    def _render(self, spec: Spec) -> Image.Image:
        return render(spec)

    def _caption(self, spec: Spec, rng: np.random.Generator) -> str:
        return caption(spec)

    def _questions(self, spec: Spec, rng: np.random.Generator) -> list[Question]:
        return questions(spec, rng)

    def _reasoning(self, spec: Spec, question: Question) -> str:
        return reasoning(spec, question)


Source = Dolls


def spec_of(record: dict) -> Spec:
    """The figure that a record of this dataset shows, from its "meta" (also after a round trip through JSON)."""
    return Spec(**record["meta"]["spec"])


def majority_baselines(n: int, seed: int, split: str = "train") -> dict[str, dict[str, float]]:
    """What constant answers and a constant picture would score on `n` figures of a split.

    Returns {"answers": {category: share, ..., "all"}, "pictures": {slot: share, ..., "slots", "all_seven"}}, the
    names that `score_answers` and `score_pictures` use.
    """
    source = Dolls(split, "answer", seed)
    asked = [Question(*item) for index in range(n) for item in source[index]["meta"]["questions"]]
    return {"answers": majority_shares(asked), "pictures": majority_slots([source.spec(index) for index in range(n)])}
