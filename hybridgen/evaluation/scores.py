"""`scores.json`: written whole, read again, and put into lines.

What stands in it, `result` says: {"suites": {NAME: {task: {path: {"scores": {category: tally}}}}}, "checkpoint",
"versions", "hardware", ...}. A number alone is not a score: its interval, and what a blind answerer and the true
pictures get, stand beside it wherever it is shown.
"""

from collections.abc import Iterator
from pathlib import Path

from hybridgen.core.files import read_json, write_json
from hybridgen.evaluation.result import BASELINES, TASKS

_OF_ALL = ("checkpoint", "versions", "hardware", "seconds", "parameters", "targets")  # of older files' keys


def in_lines(scores: dict) -> Iterator[str]:
    """The scores of each path and category as lines to read, such as `drawing by vq, creature: 97.3 % of 256 (...)`;
    of several suites, each begins with the name of its own. Last come a suite's notes."""
    for suite, of_suite in scores["suites"].items():
        labels, begin = of_suite.get("labels", {}), f"{suite}, " if len(scores["suites"]) > 1 else ""
        for task, (verb, _) in TASKS.items():
            for path, result in of_suite.get(task, {}).items():
                for category, tally in result["scores"].items():
                    label = labels.get(category, category.replace("_", " "))
                    yield f"{begin}{verb.format(path=path)}, {label}: {in_words(tally)}"
        yield from (f"{begin}{note}" for note in of_suite.get("notes", ()))


def in_words(tally: dict) -> str:
    """A tally with its count, its interval and what stands beside it."""
    if "share" in tally:
        number = f"{100 * tally['share']:.1f} % of {tally['n']}"
        interval = f"95 % interval {100 * tally['low']:.1f} to {100 * tally['high']:.1f}{_over_groups(tally)}"
        beside = [f"{name} {100 * tally[name]:.1f}" for name in BASELINES if name in tally]
    else:
        unit = f" {tally['unit']}" if tally.get("unit") else ""
        number = f"{tally['value']:.4g}{unit} of {tally['n']}"
        interval = "no interval"  # of a single item
        if tally["low"] is not None:
            interval = f"95 % interval {tally['low']:.4g} to {tally['high']:.4g}{_over_groups(tally)}"
        beside = [f"{name} {tally[name]:.4g}" for name in BASELINES if name in tally]
    return f"{number} ({'; '.join([interval, ', '.join(beside)] if beside else [interval])})"


def _over_groups(tally: dict) -> str:
    return f" over {tally['groups']} groups" if "groups" in tally else ""


def save_scores(scores: dict, folder: Path) -> Path:
    """`scores.json` in a folder, whole or not at all; returns its path."""
    path = Path(folder) / "scores.json"
    write_json(path, scores)
    return path


def load_scores(path: Path) -> dict:
    """Scores as they were saved; those of older files, which held one suite, in today's form.

    Raises:
        ValueError: naming the file, that it is not a `scores.json`.
    """
    try:
        scores = read_json(path)
    except ValueError:
        scores = {}
    if {"suite", "generation", "understanding"} <= scores.keys():
        of_all = {key: scores.pop(key) for key in _OF_ALL if key in scores}
        return {"suites": {scores.pop("suite"): scores}, "seed": scores.get("seed"), **of_all}
    if not isinstance(scores.get("suites"), dict):
        raise ValueError(f"{path} is not a scores.json of hybridgen; delete it to evaluate again")
    return scores
