"""Answering about what was never seen: a dataset's questions about held-out pictures, by exact match.

A high share alone means little: what is answered without looking stands beside it (`controls`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from PIL import Image

from hybridgen.evaluation.controls import Controlled, answer_with_controls, most_frequent
from hybridgen.evaluation.intervals import score_by_groups
from hybridgen.evaluation.samples import first_records
from hybridgen.evaluation.work import Work


@dataclass
class Quiz:
    """Questions about pictures: parallel lists, a picture standing as often as it is asked about."""

    pictures: list[Image.Image] = field(default_factory=list)
    questions: list = field(default_factory=list)  # of the dataset's Question

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def wordings(self) -> list[str]:
        """What is asked, in words."""
        return [question.question for question in self.questions]

    def by_picture(self) -> list[tuple[Image.Image, list[int]]]:
        """Each picture once, with the places of its questions."""
        places: dict[int, list[int]] = {}
        for place, picture in enumerate(self.pictures):
            places.setdefault(id(picture), []).append(place)
        return [(self.pictures[of_picture[0]], of_picture) for of_picture in places.values()]


def held_out_quiz(dataset: ModuleType, split: str, samples: int, seed: int, size: int | None = None) -> Quiz:
    """Every question about the first `samples` pictures of a dataset's split, of `size` pixels a side.

    Raises:
        ValueError: no sample is asked for, or more than the split has.
    """
    quiz = Quiz()
    for record in first_records(dataset, split, "answer", samples, seed, size):
        picture = record["messages"][0]["content"][0]["image"]
        for item in record["meta"]["questions"]:
            quiz.pictures.append(picture)
            quiz.questions.append(dataset.Question(*item))
    return quiz


def answer(work: Work, quiz: Quiz, path: str, score_answers: Callable[[list[str], list], dict]) -> Controlled:
    """The quiz answered through a path: tallies by category and over "all", with 95 % intervals over pictures and the
    controls beside each.

    Args:
        score_answers: the dataset's: answers, questions -> {category: tally}.
    """

    def score(answers: list[str]) -> dict[str, dict]:
        def of_some(places: list[int]) -> dict[str, dict]:
            return score_answers([answers[i] for i in places], [quiz.questions[i] for i in places])

        return score_by_groups(of_some, list(map(id, quiz.pictures)))

    categories = [question.category for question in quiz.questions]
    constants = most_frequent(categories, [[question.answer] for question in quiz.questions])
    return answer_with_controls(work, path, quiz.pictures, quiz.wordings, score, constants)
