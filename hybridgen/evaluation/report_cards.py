"""What is put on show: an evaluation's pictures and answers as cards, and a training run's `metrics.jsonl` as curves.

It decides what stands beside what; `figures` draws it. The fact a newcomer gets wrong: a run logs a loss as the mean
since the last log, so training and held-out curves have different steps.
"""

import json
from pathlib import Path

from hybridgen.evaluation.figures import Card, Panel
from hybridgen.evaluation.suites import Evaluation


def drawing_cards(evaluation: Evaluation, path: str) -> list[Card]:
    """What was asked for, the true picture, and what a path drew."""
    prompts = evaluation.prompts
    return [
        Card({"true picture": true, path: drawn}, (caption,))
        for caption, true, drawn in zip(prompts.captions, prompts.pictures, evaluation.drawn[path], strict=True)
    ]


def answer_cards(evaluation: Evaluation) -> list[Card]:
    """Each picture with all that was asked about it, and the first path's answers."""
    path, given = next(iter(evaluation.given.items()))
    lines: dict[int, list[str]] = {}
    pictures = {}
    for picture, question, text in zip(evaluation.quiz.pictures, evaluation.quiz.asked, given, strict=True):
        right = evaluation.dataset.score_answers([text], [question])["all"]["right"]
        said = f"{question.question} {text}" + ("" if right else f"  (wrong: {question.answer})")
        pictures[id(picture)] = picture
        lines.setdefault(id(picture), []).append(said)
    return [Card({f"through {path}": pictures[key]}, tuple(lines[key]), side=256) for key in pictures]


def loss_panels(metrics: Path) -> list[Panel]:
    """One panel for each kind of loss in a run's `metrics.jsonl`: training, and held out where it was measured."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    kinds = list(dict.fromkeys(key for record in records for key in record if key.startswith("loss/")))
    panels = []
    for kind in kinds:
        lines = {}
        for name, key in (("training", kind), ("held out", f"validation/{kind}")):
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                lines[name] = tuple(map(list, zip(*points, strict=True)))
        panels.append(Panel(f"{kind.removeprefix('loss/')} loss", lines))
    return panels
