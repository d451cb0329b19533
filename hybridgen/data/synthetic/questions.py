"""Questions with exact answers, and counting who got them right: shared by the synthetic datasets.

Not a metric for free prose: an answer is right when it equals the expected one after `normalise_answer`. A share means
little without the share of the best constant answer, which `majority_shares` gives for the same questions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Tally = dict[str, float]  # {"right": int, "n": int, "share": float}


class Question(NamedTuple):
    """A question about one picture: its category (the name its score carries), its wording and the one right answer."""

    category: str
    question: str
    answer: str


def normalise_answer(text: str) -> str:
    """The form in which answers are compared: lower case, single spaces, no trailing period."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def tally(right: int, n: int) -> Tally:
    """Counts, which an interval needs, and their share; the share of nothing is 0."""
    return {"right": int(right), "n": int(n), "share": float(right / n) if n else 0.0}


def score_answers(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, Tally]:
    """Exact match of `answers[i]` with `questions[i].answer`, a tally for each category met and one named "all".

    Raises ValueError when the two differ in length.
    """
    if len(answers) != len(questions):
        raise ValueError(
            f"{len(answers)} answers were given to {len(questions)} questions: pass one answer for each question, "
            "in order"
        )
    right, n = Counter(), Counter()
    for text, question in zip(answers, questions, strict=True):
        hit = normalise_answer(text) == normalise_answer(question.answer)
        for name in (question.category, "all"):
            right[name] += hit
            n[name] += 1
    return {name: tally(right[name], n[name]) for name in n}


def majority_shares(questions: Iterable[Question]) -> dict[str, float]:
    """The share of each category's most frequent answer, and under "all" what answering so everywhere would score."""
    answers = defaultdict(Counter)
    for question in questions:
        answers[question.category][normalise_answer(question.answer)] += 1
    best = {name: counts.most_common(1)[0][1] for name, counts in answers.items()}
    total = sum(counts.total() for counts in answers.values())
    shares = {name: best[name] / answers[name].total() for name in best}
    return shares | {"all": sum(best.values()) / total if total else 0.0}
