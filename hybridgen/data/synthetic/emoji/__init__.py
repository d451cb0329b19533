"""The emoji dataset: 7,012 real pictures in four styles with names, tags and questions, as chat records.

This file joins the parts: pictures are in `pictures`, words in `language`, scores in `scoring`. Training captions come
in three forms (name, name and tags, tags alone); the held-out splits always have name and tags, so that every held-out
prompt names one picture.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from hybridgen.data.synthetic.emoji.language import (
    CATEGORIES,
    caption,
    open_caption,
    parse_caption,
    questions,
    reasoning,
    tagged_caption,
    tags_only_caption,
)
from hybridgen.data.synthetic.emoji.pictures import (
    SIZE,
    SPLITS,
    STYLES,
    EmojiSpec,
    render,
    render_batch,
    specs_of_split,
)
from hybridgen.data.synthetic.emoji.scoring import judge_pictures, majority_pictures, nearest_specs, score_pictures
from hybridgen.data.synthetic.questions import Question, majority_shares, score_answers
from hybridgen.data.synthetic.source import LENGTH, TASKS, SyntheticSource

__all__ = [
    "CATEGORIES",
    "Emoji",
    "LENGTH",
    "Question",
    "SIZE",
    "SPLITS",
    "STYLES",
    "Source",
    "EmojiSpec",
    "TASKS",
    "caption",
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
    "specs_of_split",
    "tagged_caption",
    "tags_only_caption",
]


class Emoji(SyntheticSource):
    """Emoji as chat records: `Emoji("train", "combo" or "new", "draw" or "answer", seed=0)[123]`; 64x64 pixels on
    white.

    Every `len(specs_of_split(split))` records show each picture of the split once, in an order of their own.
    """

    dataset = "emoji"
    splits = SPLITS
    question_categories = CATEGORIES
    has_open_captions = True
    native_size = SIZE

    def _draw(self, index: int, rng: np.random.Generator) -> EmojiSpec:
        specs = specs_of_split(self.split)
        epoch, position = divmod(index, len(specs))
        return specs[_order(len(specs), self.seed, epoch)[position]]

    def _render(self, spec: EmojiSpec) -> Image.Image:
        return render(spec, self.size)

    def _caption(self, spec: EmojiSpec, rng: np.random.Generator) -> str:
        form = rng.random() if self.split == "train" else 1.0
        if form < 0.5:
            return caption(spec)
        return tags_only_caption(spec, rng) if form < 0.75 else tagged_caption(spec, rng)

    def _open_caption(self, spec: EmojiSpec, rng: np.random.Generator) -> str:
        return open_caption(spec, rng)

    def _questions(self, spec: EmojiSpec, rng: np.random.Generator) -> list[Question]:
        return questions(spec, rng)

    def _reasoning(self, spec: EmojiSpec, question: Question) -> str:
        return reasoning(spec, question)


Source = Emoji


@lru_cache(maxsize=8)  # an epoch is left behind once and for all, but a mixture reads several sources in turn
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def spec_of(record: dict) -> EmojiSpec:
    """The picture that a record of this dataset shows, from its "meta" (also after a round trip through JSON)."""
    return EmojiSpec(**record["meta"]["spec"])


def majority_baselines(n: int, seed: int, split: str = "train") -> dict[str, dict[str, float]]:
    """What constant answers and a constant picture would score on `n` pictures of a split.

    Returns {"answers": {category: share, ..., "all"}, "pictures": {"emoji", "style", "picture"}}, the names that
    `score_answers` and `score_pictures` use.
    """
    source = Emoji(split, "answer", seed)
    all_questions = [Question(*entry) for index in range(n) for entry in source[index]["meta"]["questions"]]
    return {
        "answers": majority_shares(all_questions),
        "pictures": majority_pictures([source.spec(index) for index in range(n)]),
    }
