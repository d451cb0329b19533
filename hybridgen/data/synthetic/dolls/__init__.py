"""The dolls dataset: 2.4e8 pixel-art figures with exact captions, exact questions and exact scores, as chat records.

This file joins the parts: pictures are drawn in `pictures`, put into words in `language`, judged in `scoring`. The
split `held_out` holds out pairs of creature and clothing, not creatures: training shows both parts of each pair, apart.
"""

import numpy as np
from PIL import Image

from hybridgen.data.synthetic.dolls.language import (
    CATEGORIES,
    caption,
    open_caption,
    parse_caption,
    questions,
    reasoning,
)
from hybridgen.data.synthetic.dolls.pictures import (
    SIZE,
    SLOTS,
    SPLITS,
    DollSpec,
    draw_spec,
    held_out_pairs,
    phrases,
    render,
    render_batch,
)
from hybridgen.data.synthetic.dolls.scoring import judge_pictures, majority_slots, nearest_specs, score_pictures
from hybridgen.data.synthetic.questions import Question, majority_shares, score_answers
from hybridgen.data.synthetic.source import LENGTH, TASKS, SyntheticSource

__all__ = [
    "CATEGORIES",
    "Dolls",
    "LENGTH",
    "Question",
    "SIZE",
    "SLOTS",
    "SPLITS",
    "Source",
    "DollSpec",
    "TASKS",
    "caption",
    "draw_spec",
    "held_out_pairs",
    "judge_pictures",
    "majority_baselines",
    "nearest_specs",
    "open_caption",
    "parse_caption",
    "questions",
    "render",
    "render_batch",
    "score_answers",
    "score_pictures",
    "spec_of",
]


class Dolls(SyntheticSource):
    """Figures as chat records: `Dolls("train" or "held_out", "draw" or "answer", seed=0)[123]`; 32x32 pixels."""

    dataset = "dolls"
    splits = SPLITS
    question_categories = CATEGORIES
    has_open_captions = True
    native_size = SIZE

    @property
    def names(self) -> list[str]:
        return phrases()

    def _draw(self, index: int, rng: np.random.Generator) -> DollSpec:
        return draw_spec(rng, self.split == "held_out", self.oversampling)

    def _render(self, spec: DollSpec) -> Image.Image:
        return render(spec, self.size)

    def _caption(self, spec: DollSpec, rng: np.random.Generator) -> str:
        return caption(spec)

    def _open_caption(self, spec: DollSpec, rng: np.random.Generator) -> str:
        return open_caption(spec, rng)

    def _questions(self, spec: DollSpec, rng: np.random.Generator) -> list[Question]:
        return questions(spec, rng)

    def _reasoning(self, spec: DollSpec, question: Question) -> str:
        return reasoning(spec, question)


Source = Dolls


def spec_of(record: dict) -> DollSpec:
    """The figure that a record of this dataset shows, from its "meta" (also after a round trip through JSON)."""
    return DollSpec(**record["meta"]["spec"])


def majority_baselines(n: int, seed: int, split: str = "train") -> dict[str, dict[str, float]]:
    """What constant answers and a constant picture would score on `n` figures of a split.

    Returns {"answers": {category: share, ..., "all"}, "pictures": {slot: share, ..., "slots", "all_seven"}}, the
    names that `score_answers` and `score_pictures` use.
    """
    source = Dolls(split, "answer", seed)
    all_questions = [Question(*entry) for index in range(n) for entry in source[index]["meta"]["questions"]]
    return {
        "answers": majority_shares(all_questions),
        "pictures": majority_slots([source.spec(index) for index in range(n)]),
    }
