"""`scores.json`: written whole, read again, and put into lines.

What stands in it, `suites.Evaluation` says. A share alone is not a score: its interval, and what a blind answerer and
the true pictures get, stand beside it wherever it is shown.
"""

from collections.abc import Iterator
from pathlib import Path

from hybridgen.core.files import read_json, write_json
from hybridgen.evaluation.suites import SUITES

BASELINES = ("majority", "blank", "true", "codec")  # shares that stand beside a score


def in_lines(scores: dict) -> Iterator[str]:
    """The scores of each path and category as lines to read, such as `drawing by vq, head: 97.3 % of 256 (...)`."""
    suite = SUITES[scores["suite"]]
    verbs = {"generation": "drawing by", "understanding": "answering through", "conversation": "talking, drawing by"}
    for task, verb in verbs.items():
        for path, result in scores.get(task, {}).items():  # older files hold no conversations
            for category, tally in result["scores"].items():
                interval = f"95 % interval {100 * tally['low']:.1f} to {100 * tally['high']:.1f}"
                beside = [f"{name} {100 * tally[name]:.1f}" for name in BASELINES if name in tally]
                share = f"{100 * tally['share']:.1f} % of {tally['n']}"
                told = "; ".join([interval, ", ".join(beside)] if beside else [interval])
                yield f"{verb} {path}, {suite.label(category)}: {share} ({told})"


def save_scores(scores: dict, folder: Path) -> Path:
    """`scores.json` in a folder, whole or not at all; returns its path."""
    path = Path(folder) / "scores.json"
    write_json(path, scores)
    return path


def load_scores(path: Path) -> dict:
    """Scores as they were saved. Raises ValueError naming the file when it is not a `scores.json`."""
    try:
        scores = read_json(path)
    except ValueError:
        scores = {}
    if not {"generation", "understanding"} <= scores.keys():
        raise ValueError(f"{path} is not a scores.json of hybridgen; delete it to evaluate again")
    return scores
