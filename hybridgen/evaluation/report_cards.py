"""What a report shows: an evaluation's pictures and answers as cards, and a training run's `metrics.jsonl` as curves.

It decides what stands beside what; `core.figures` draws it.
"""

from pathlib import Path

from hybridgen.core.figures import Card, Panel, read_curves, side_by_side
from hybridgen.evaluation.result import Result


def drawing_cards(result: Result, path: str) -> list[Card]:
    """One card per prompt: the true picture, and what a path drew."""
    items = result.items["generation"][path]
    columns = {heading: [item.pictures[heading] for item in items] for heading in ("true picture", path)}
    return side_by_side([item.prompt for item in items], columns)


def answer_cards(result: Result) -> list[Card]:
    """Each picture with all that was asked about it, and the first path's answers."""
    path, items = next(iter(result.items["understanding"].items()))
    lines: dict[int, list[str]] = {}
    for item in items:
        correction = "" if item.mean == 1 else f"  (wrong: {item.expected})"
        lines.setdefault(id(item.pictures["shown"]), []).append(f"{item.prompt} {item.answer}{correction}")
    pictures = {id(item.pictures["shown"]): item.pictures["shown"] for item in items}
    return [Card({f"through {path}": pictures[key]}, tuple(of_one), side=256) for key, of_one in lines.items()]


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
