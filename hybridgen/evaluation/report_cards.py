"""What a report shows: an evaluation's pictures and answers as cards, and a training run's `metrics.jsonl` as curves.

It decides what stands beside what; `core.figures` draws it.
"""

from pathlib import Path

from hybridgen.core.figures import Card, Panel, read_curves, side_by_side
from hybridgen.evaluation.suites import Evaluation


def drawing_cards(evaluation: Evaluation, path: str) -> list[Card]:
    """One card per prompt: the true picture, and what a path drew."""
    prompts = evaluation.prompts
    return side_by_side(prompts.captions, {"true picture": prompts.pictures, path: evaluation.drawings[path]})


def answer_cards(evaluation: Evaluation) -> list[Card]:
    """Each picture with all that was asked about it, and the first path's answers."""
    path, answers = next(iter(evaluation.answers.items()))
    cards = []
    for picture, places in evaluation.quiz.by_picture():
        lines = []
        for place in places:
            question, answer = evaluation.quiz.questions[place], answers[place]
            correction = "" if evaluation.is_right(answer, question) else f"  (wrong: {question.answer})"
            lines.append(f"{question.question} {answer}{correction}")
        cards.append(Card({f"through {path}": picture}, tuple(lines), side=256))
    return cards


def loss_panels(metrics: Path) -> list[Panel]:
    """One panel for each kind of loss in a run's `metrics.jsonl`: training, and held out where it was measured.

    A run logs a training loss as the mean since the last log, so the two have different steps.
    """
    curves, panels = read_curves(metrics), []
    for kind in (name for name in curves if name.startswith("loss/")):
        named = {"training": curves[kind]}
        if (held_out := f"validation/{kind}") in curves:
            named["held out"] = curves[held_out]
        panels.append(Panel(f"{kind.removeprefix('loss/')} loss", named))
    return panels
