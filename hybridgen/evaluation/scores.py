"""`scores.json`: written whole, read again, and put into lines.

What stands in it, `suites.Evaluation` says. The fact a newcomer gets wrong: a share alone is not a score. Its
interval, and what a blind answerer and the true pictures get, stand beside it wherever it is shown.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from hybridgen.core.files import write_whole
from hybridgen.evaluation.suites import SUITES

BESIDE = ("majority", "blank", "true", "codec")  # shares that stand beside a score


def in_lines(scores: dict) -> Iterator[str]:
    """The scores of each path and category as lines to read, such as `drawing by vq: head  97.3 % of 256 (...)`."""
    suite = SUITES[scores["suite"]]
    for task, verb in (("generation", "drawing by"), ("understanding", "answering through")):
        for path, result in scores[task].items():
            for category, tally in result["scores"].items():
                interval = f"95 % interval {100 * tally['low']:.1f} to {100 * tally['high']:.1f}"
                beside = ", ".join(f"{name} {100 * tally[name]:.1f}" for name in BESIDE if name in tally)
                share = f"{100 * tally['share']:.1f} % of {tally['n']}"
                yield f"{verb} {path}, {suite.word(category)}: {share} ({interval}; {beside})"


def save_scores(scores: dict, folder: Path) -> Path:
    """`scores.json` in a folder, whole or not at all; returns its path."""
    path = Path(folder) / "scores.json"
    write_whole(path, json.dumps(scores, indent=1) + "\n")
    return path


def load_scores(path: Path) -> dict:
    """Scores as they were saved. Raises ValueError naming the file when it is not a `scores.json`."""
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a scores.json ({error}); delete it to evaluate again") from error
    if not isinstance(scores, dict) or "generation" not in scores or "understanding" not in scores:
        raise ValueError(f"{path} is not a scores.json of hybridgen; delete it to evaluate again")
    return scores
