"""Answering about what was never seen: exact match by category, beside what answering blindly would score.

A high share alone means little, so two blind baselines stand beside it: the majority baseline (the best constant answer
of each category) and the blank control (the same questions, asked of an empty gray picture). A model can beat the
majority baseline without looking, because the wording of a question tells something; the blank control shows how much.
"""

import time
from dataclasses import dataclass, field
from types import ModuleType

from PIL import Image

from hybridgen.evaluation import generation
from hybridgen.evaluation.generation import Progress, no_progress
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.samples import first_records
from hybridgen.pipeline_hybridgen import HybridGenPipeline

GRAY = (127, 127, 127)
MAX_NEW_TOKENS = 32  # more than the longest answer of any dataset has, with its end token


@dataclass
class Quiz:
    """Questions about pictures: parallel lists, a picture standing as often as it is asked about."""

    pictures: list[Image.Image] = field(default_factory=list)
    questions: list = field(default_factory=list)  # of the dataset's Question

    def __len__(self) -> int:
        return len(self.questions)

    def by_picture(self) -> list[tuple[Image.Image, list[int]]]:
        """Each picture once, with the places of its questions."""
        places: dict[int, list[int]] = {}
        for place, picture in enumerate(self.pictures):
            places.setdefault(id(picture), []).append(place)
        return [(self.pictures[of_picture[0]], of_picture) for of_picture in places.values()]


def held_out_quiz(dataset: ModuleType, split: str, samples: int, seed: int) -> Quiz:
    """Every question about the first `samples` pictures of a dataset's split.

    Raises:
        ValueError: no sample is asked for, or more than the split has.
    """
    quiz = Quiz()
    for record in first_records(dataset, split, "answer", samples, seed):
        picture = record["messages"][0]["content"][0]["image"]
        for item in record["meta"]["questions"]:
            quiz.pictures.append(picture)
            quiz.questions.append(dataset.Question(*item))
    return quiz


def answer(
    pipeline: HybridGenPipeline, quiz: Quiz, path: str, progress: Progress = no_progress
) -> tuple[list[str], float]:
    """One answer per question, read through `path`, and the seconds it took."""
    answers, started = [], time.perf_counter()
    for start in range(0, len(quiz), generation.CHUNK):
        chunk = slice(start, start + generation.CHUNK)
        questions = [question.question for question in quiz.questions[chunk]]
        answers += pipeline.answer(quiz.pictures[chunk], questions, path=path, max_new_tokens=MAX_NEW_TOKENS)
        progress(len(answers), len(quiz))
    return answers, time.perf_counter() - started


def answer_blank(pipeline: HybridGenPipeline, quiz: Quiz, path: str) -> list[str]:
    """The quiz' questions, asked of an empty gray picture. Each wording is asked once: the answer cannot differ."""
    wordings = {question.question: question for question in quiz.questions}
    blank = Image.new("RGB", quiz.pictures[0].size, GRAY)
    answers, _ = answer(pipeline, Quiz([blank] * len(wordings), list(wordings.values())), path)
    by_wording = dict(zip(wordings, answers, strict=True))
    return [by_wording[question.question] for question in quiz.questions]


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
