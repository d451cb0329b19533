"""Answering about what was never seen: exact match by category, beside what answering blindly would score.

A high share alone means little, so two blind baselines stand beside it: the majority baseline (the best constant answer
of each category) and the blank control (the same questions, asked of an empty gray picture). A model can beat the
majority baseline without looking, because the wording of a question tells something; the blank control shows how much.
"""

from dataclasses import dataclass, field
from types import ModuleType

from PIL import Image

from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.samples import first_records
from hybridgen.evaluation.work import Work

GRAY = (127, 127, 127)


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


def answer_blank(work: Work, quiz: Quiz, path: str) -> list[str]:
    """The quiz' questions, asked of an empty gray picture. Each wording is asked once: the answer cannot differ."""
    wordings = list(dict.fromkeys(quiz.wordings))
    blank = [Image.new("RGB", quiz.pictures[0].size, GRAY)] * len(wordings)
    label = f"answering through {path}, of a blank picture"
    by_wording = dict(zip(wordings, work.answer(path, blank, wordings, f"blank-{path}", label=label), strict=True))
    return [by_wording[wording] for wording in quiz.wordings]


def score(
    dataset: ModuleType, quiz: Quiz, answers: list[str], blank: list[str], majority: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Tallies by category and over "all", with 95 % intervals, and beside each what answering blindly scores.

    Args:
        blank: the answers to an empty picture (`answer_blank`).
        majority: share of the best constant answer, by category.
    """
    of_blank = dataset.score_answers(blank, quiz.questions)
    return {
        name: {**with_interval(tally), "majority": majority.get(name, 0.0), "blank": of_blank[name]["share"]}
        for name, tally in dataset.score_answers(answers, quiz.questions).items()
    }
