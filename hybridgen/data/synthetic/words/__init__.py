"""The words dataset: one to three short words in the fonts of matplotlib, with exact captions, questions and scores.

This file joins the parts: pictures are drawn in `pictures`, put into words in `language`, judged in `scoring`. The
split `held_out` shows words that training never drew: a model must spell, not remember.
"""

import numpy as np
from PIL import Image

from hybridgen.data.synthetic.questions import Question, majority_shares
from hybridgen.data.synthetic.source import LENGTH, TASKS, SyntheticSource
from hybridgen.data.synthetic.words.language import (
    CATEGORIES,
    caption,
    leave_open,
    open_caption,
    parse_caption,
    questions,
    reasoning,
    score_answers,
    spell,
)
from hybridgen.data.synthetic.words.pictures import (
    COLOURS,
    FAMILIES,
    SIZE,
    SPLITS,
    STYLES,
    WordsSpec,
    check_size,
    draw_spec,
    render,
    render_batch,
    vocabulary,
    words_of_split,
)
from hybridgen.data.synthetic.words.scoring import (
    judge_pictures,
    majority_pictures,
    nearest_specs,
    right_letters,
    score_pictures,
)

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "FAMILIES",
    "LENGTH",
    "Question",
    "SIZE",
    "SPLITS",
    "STYLES",
    "Source",
    "TASKS",
    "Words",
    "WordsSpec",
    "caption",
    "draw_spec",
    "judge_pictures",
    "leave_open",
    "majority_baselines",
    "nearest_specs",
    "open_caption",
    "parse_caption",
    "questions",
    "render",
    "render_batch",
    "right_letters",
    "score_answers",
    "score_pictures",
    "spec_of",
    "spell",
    "vocabulary",
    "words_of_split",
]

_SOLID = 0.3  # share of open captions whose words are not spelled: "apple"


class Words(SyntheticSource):
    """Written words as chat records: `Words("train" or "held_out", "draw" or "answer", seed=0)[123]`; 64x64 pixels.

    A share of the open captions has the word unspelled, as people write: `the word "apple" in serif`.
    """

    dataset = "words"
    splits = SPLITS
    question_categories = CATEGORIES
    names = (*FAMILIES, *STYLES, *COLOURS)
    has_open_captions = True
    native_size = SIZE

    def _check_size(self) -> None:
        check_size(self.size)

    def _draw(self, index: int, rng: np.random.Generator) -> WordsSpec:
        return draw_spec(rng, self.split == "held_out", self.oversampling)

    def _render(self, spec: WordsSpec) -> Image.Image:
        return render(spec, self.size)

    def _caption(self, spec: WordsSpec, rng: np.random.Generator) -> str:
        return caption(spec)

    def _open_caption(self, spec: WordsSpec, rng: np.random.Generator) -> str:
        words = open_caption(spec, rng)
        if rng.random() < _SOLID:
            for line in spec.lines:
                words = words.replace(f'"{spell(line)}"', f'"{line}"')
        return words

    def _questions(self, spec: WordsSpec, rng: np.random.Generator) -> list[Question]:
        return questions(spec, rng)

    def _reasoning(self, spec: WordsSpec, question: Question) -> str:
        return reasoning(spec, question)


Source = Words


def spec_of(record: dict) -> WordsSpec:
    """What a record of this dataset shows, from its "meta" (also after a round trip through JSON)."""
    fields = record["meta"]["spec"]
    return WordsSpec(**{**fields, "lines": tuple(fields["lines"])})


def majority_baselines(n: int, seed: int, split: str = "train") -> dict[str, dict[str, float]]:
    """What constant answers and a constant picture would score on `n` pictures of a split.

    Returns {"answers": {category: share, ..., "all"}, "pictures": {score: share}}, the names that `score_answers` and
    `score_pictures` use.
    """
    source = Words(split, "answer", seed)
    all_questions = [Question(*entry) for index in range(n) for entry in source[index]["meta"]["questions"]]
    return {
        "answers": majority_shares(all_questions),
        "pictures": majority_pictures([source.spec(index) for index in range(n)]),
    }
