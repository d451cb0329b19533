"""easy-VQA (PyPI easy-vqa 1.0, MIT, Victor Zhou): questions about pictures of one coloured shape, not made by us.

The package holds 4,000 pictures with 38,575 questions to learn from and 1,000 with 9,673 to be tested on, 64 x 64
pixels, thirteen answers, and its own split. It is read where it is installed; `scripts/write_easy_vqa.py` makes
training data of it, `evaluation.suites.easy_vqa` scores a model on it.
"""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "test")
SHAPES = frozenset({"circle", "rectangle", "triangle"})
YES_NO = frozenset({"yes", "no"})
KINDS = {"yes_no": "yes or no", "color": "colour", "shape": "shape"}  # of answers, and how people read them


class EasyQuestion(NamedTuple):
    """A question about one picture, and the one right answer."""

    picture: Path
    question: str
    answer: str

    @property
    def kind(self) -> str:
        """Of which of `KINDS` the answer is: what is not yes, no or a shape is a colour."""
        return "yes_no" if self.answer in YES_NO else "shape" if self.answer in SHAPES else "color"


def read_split(split: str) -> list[EasyQuestion]:
    """All questions of a split, in the package's order.

    Raises:
        ValueError: there is no such split, the package is not installed, or a picture of it is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"easy-VQA has no split {split!r}; choose {' or '.join(SPLITS)}")
    try:
        package = import_module("easy_vqa")
    except ImportError as error:
        raise ValueError(
            "easy-VQA's pictures are in the package easy-vqa, which is not installed: pip install hybridgen[easy-vqa]"
        ) from error
    questions, answers, numbers = getattr(package, f"get_{split}_questions")()
    pictures = getattr(package, f"get_{split}_image_paths")()
    if missing := sorted(set(numbers) - set(pictures)):
        raise ValueError(f"easy-vqa's {split} split lacks picture {missing[0]}.png; install the package again")
    items = zip(numbers, questions, answers, strict=True)
    return [EasyQuestion(Path(pictures[number]), question, answer) for number, question, answer in items]
