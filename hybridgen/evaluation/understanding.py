"""Answering about what was never seen: exact match by category, beside what a blind answerer would score.

Two blind answerers, because a high share alone means little: the majority baseline (the best constant answer of each
category) and the blank control (the same questions, asked of an empty gray picture). The fact a newcomer gets wrong:
a model can beat the majority baseline without looking, because the wording of a question tells something; the blank
control shows how much.
"""

import time
from dataclasses import dataclass, field
from types import ModuleType

from PIL import Image

from hybridgen.evaluation.generation import AT_ONCE, Progress, silent
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.samples import first_records
from hybridgen.pipeline_hybridgen import HybridGenPipeline

GRAY = (127, 127, 127)
MOST_TOKENS = 32  # more than the longest answer of any dataset has, with what it follows from


@dataclass
class Quiz:
    """Questions about pictures: parallel lists, a picture standing as often as it is asked about."""

    pictures: list[Image.Image] = field(default_factory=list)
    asked: list = field(default_factory=list)  # of the dataset's Question

    def __len__(self) -> int:
        return len(self.asked)


def held_out_quiz(dataset: ModuleType, split: str, samples: int, seed: int) -> Quiz:
    """Every question about the first `samples` pictures of a dataset's split.

    Raises:
        ValueError: no sample is asked for, or more than the split has.
    """
    quiz = Quiz()
    for record in first_records(dataset, split, "answer", samples, seed):
        for item in record["meta"]["questions"]:
            quiz.pictures.append(record["messages"][0]["content"][0]["image"])
            quiz.asked.append(dataset.Question(*item))
    return quiz


def answer(pipeline: HybridGenPipeline, quiz: Quiz, path: str, progress: Progress = silent) -> tuple[list[str], float]:
    """One answer a question, read through `path`, and the seconds it took."""
    given, started = [], time.perf_counter()
    for start in range(0, len(quiz), AT_ONCE):
        chunk = slice(start, start + AT_ONCE)
        questions = [question.question for question in quiz.asked[chunk]]
        given += pipeline.answer(quiz.pictures[chunk], questions, path=path, max_new_tokens=MOST_TOKENS)
        progress(len(given), len(quiz))
    return given, time.perf_counter() - started


def answer_blank(pipeline: HybridGenPipeline, quiz: Quiz, path: str) -> list[str]:
    """The quiz' questions, asked of an empty gray picture. Each wording is asked once: the answer cannot differ."""
    different = {question.question: question for question in quiz.asked}
    blank = Image.new("RGB", quiz.pictures[0].size, GRAY)
    answers, _ = answer(pipeline, Quiz([blank] * len(different), list(different.values())), path)
    said = dict(zip(different, answers, strict=True))
    return [said[question.question] for question in quiz.asked]


def score(
    dataset: ModuleType, quiz: Quiz, given: list[str], blank: list[str], majority: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Tallies by category and over "all", with 95 % intervals, and beside each what answering blindly scores."""
    blind = dataset.score_answers(blank, quiz.asked)
    return {
        name: {**with_interval(tally), "majority": majority.get(name, 0.0), "blank": blind[name]["share"]}
        for name, tally in dataset.score_answers(given, quiz.asked).items()
    }
