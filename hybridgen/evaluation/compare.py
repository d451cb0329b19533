"""Two evaluations of the same thing, item by item: what is better, and whether the data say so.

Both are folders that `evaluate` wrote. They must have asked the same: the same suites, samples, seed, options and
files; checkpoints, paths and settings of drawing may differ, and are what is compared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hybridgen.core.files import read_json
from hybridgen.core.values import shown
from hybridgen.evaluation.differences import Difference, compare_items
from hybridgen.evaluation.folder import IDENTITY, differences, load_items
from hybridgen.evaluation.result import TASKS, Item
from hybridgen.evaluation.scores import load_scores

# keys of the identity in which two evaluations must agree; the last is not in older ones
_SAME = ("samples", "seed", "options", "files", "contents")


@dataclass(frozen=True)
class Line:
    """One category of both, in words.

    Args:
        first, second: the two numbers, with their intervals.
        difference: the second less the first, with its interval.
    """

    label: str
    first: str
    second: str
    difference: str
    n: int
    verdict: str
    is_shown: bool


@dataclass(frozen=True)
class Part:
    """One task by one path: a line for each category, and each item of both, those that differ first."""

    task: str
    path: str
    lines: list[Line]
    pairs: list[tuple[Item, Item]]


@dataclass(frozen=True)
class SideBySide:
    """Two evaluations side by side.

    Args:
        summary: what is compared, in a sentence.
        facts: what differs between the two, and what could not be compared.
        suites: name -> its parts.
    """

    summary: str
    facts: dict[str, str]
    suites: dict[str, list[Part]] = field(default_factory=dict)

    def in_lines(self) -> Iterator[str]:
        """Each category as a line to read."""
        for suite, parts in self.suites.items():
            for part in parts:
                begin = f"{suite}, {TASKS[part.task][0].format(path=part.path)}"
                for line in part.lines:
                    yield f"{begin}, {line.label}: {line.first}, then {line.second}; {line.difference}: {line.verdict}"


def compare(first: Path, second: Path) -> SideBySide:
    """
    1. Read both folders, and see that they asked the same.
    2. For each suite, task and path of both: compare each category, item by item.

    Raises:
        ValueError: in one sentence, why the two cannot be compared.
    """
    identities, scores = zip(*(_read(folder) for folder in (first, second)), strict=True)
    same = [name for name in _SAME if all(name in each for each in identities)]
    for key, one, other in differences(*({name: each[name] for name in same} for each in identities)):
        raise ValueError(
            f"{first} and {second} were not evaluated on the same: {key} is {shown(one)} in the first and "
            f"{shown(other)} in the second; evaluate one of them again"
        )
    suites = [name for name in scores[0]["suites"] if name in scores[1]["suites"]]
    if not suites:
        raise ValueError(
            f"{first} and {second} were not evaluated on the same: the suites are {', '.join(scores[0]['suites'])} in "
            f"the first and {', '.join(scores[1]['suites'])} in the second; evaluate one of them again"
        )
    left_out: list[str] = [name for name in {**scores[0]["suites"], **scores[1]["suites"]} if name not in suites]
    parts = {name: _compare_suite(name, (first, second), scores, left_out) for name in suites}
    if not any(parts.values()):
        raise ValueError(
            f"{first} and {second} have no task in common that both did by the same path ({', '.join(left_out)}); "
            "evaluate one of them again, by the paths of the other"
        )
    facts = {"A": str(first), "B": str(second)}
    for key, one, other in (*differences(*identities), *differences(*(each.get("versions", {}) for each in scores))):
        facts[f"{key}: A, B"] = f"{shown(one)}, {shown(other)}"
    if left_out:
        facts["only in one of them"] = ", ".join(left_out)
    return SideBySide(f"The same items of {', '.join(suites)}: A is {first}, B is {second}.", facts, parts)


def _read(folder: Path) -> tuple[dict, dict]:
    """The identity and the scores of an evaluation that is done."""
    again = "; give a folder that `hybridgen evaluate` wrote, or evaluate again"
    identity = read_json(folder / IDENTITY, missing=again)
    if not (folder / "scores.json").is_file():
        raise ValueError(f"{folder} has no scores.json: the evaluation is not done; the same command finishes it")
    return identity, load_scores(folder / "scores.json")


def _compare_suite(name: str, folders: tuple[Path, Path], scores: tuple[dict, dict], left_out: list[str]) -> list[Part]:
    """The parts that both have; `left_out` gets the names of those that one has."""
    parts, items = [], [load_items(folder / name) for folder in folders]
    first, second = (each["suites"][name] for each in scores)
    for task in TASKS:
        paths = {**first.get(task, {}), **second.get(task, {})}
        for path in paths:
            if path not in first.get(task, {}) or path not in second.get(task, {}):
                left_out.append(f"{name}, {TASKS[task][0].format(path=path)}")
                continue
            pairs = list(_paired(name, task, path, items))
            tallies = (first[task][path]["scores"], second[task][path]["scores"])
            lines = list(_lines(tallies, pairs, first.get("labels", {})))
            parts.append(Part(task, path, lines, sorted(pairs, key=_how_alike)))
    return parts


def _paired(name: str, task: str, path: str, items: list[dict]) -> list[tuple[Item, Item]]:
    """The same items of both; none where one of them was handed none. Raises ValueError where they are not the same."""
    first, second = (each.get(task, {}).get(path, []) for each in items)
    if not first or not second:
        return []
    prompts = [[item.prompt for item in each] for each in (first, second)]
    if prompts[0] != prompts[1]:
        raise ValueError(
            f"suite {name} asked other things in the two evaluations ({task}, {path}), as another version of hybridgen "
            "or of its data does; evaluate both again"
        )
    return list(zip(first, second, strict=True))


def _how_alike(pair: tuple[Item, Item]) -> tuple[float, bool]:
    """The more two verdicts differ, the earlier; then where answers differ."""
    first, second = pair
    distance = abs(first.mean - second.mean) if first.verdict and second.verdict else 0.0
    return -distance, first.answer == second.answer


def _lines(tallies: tuple[dict, dict], pairs: list[tuple[Item, Item]], labels: dict[str, str]) -> Iterator[Line]:
    for category, one in sorted(tallies[0].items(), key=lambda pair: pair[0] == "all"):  # the total last
        other = tallies[1].get(category)
        if other is None:
            continue
        judged = [pair for pair in pairs if category in pair[0].verdict and category in pair[1].verdict]
        label = labels.get(category, category.replace("_", " "))
        values = [[item.verdict[category] for item in column] for column in zip(*judged, strict=True)]
        if judged and all(map(_is_mean_of, (one, other), values)):
            found = compare_items(*values, groups=[_group(place, pair[0]) for place, pair in enumerate(judged)])
            yield _line_of_items(label, one, other, found)
        else:  # a number of the whole, as a distance of distributions is
            apart = None not in (one["low"], other["low"]) and (
                one["high"] < other["low"] or other["high"] < one["low"]
            )
            verdict = "the intervals lie apart" if apart else "the intervals overlap: no difference shown"
            difference = f"{_value(other) - _value(one):+.4g}"
            yield Line(label, _in_words(one), _in_words(other), difference, one["n"], verdict, apart)


def _group(place: int, item: Item) -> object:
    """Items about the same pictures, or of the same group, are not independent."""
    return item.group or tuple(sorted(map(str, item.pictures.values()))) or place


def _is_mean_of(tally: dict, values: list[float]) -> bool:
    """Whether a value is the mean of its items' verdicts, so that these say how much higher another one is; a CIDEr, of
    which an item holds a share, is not. Shares always are: of parts, where an item holds the share of its own."""
    if "share" in tally:
        return True
    return math.isclose(_scale(tally) * math.fsum(values) / len(values), tally["value"], rel_tol=1e-6, abs_tol=1e-9)


def _scale(tally: dict) -> int:
    """From verdicts, which are shares, to the number as it is shown: in percent, or as it is."""
    return 100 if "share" in tally or tally.get("unit") == "%" else 1


def _line_of_items(label: str, one: dict, other: dict, found: Difference) -> Line:
    scale = _scale(one)
    unit = " points" if scale == 100 else f" {one.get('unit', '')}".rstrip()
    test = f"p = {found.p:.2g}" if found.p is not None else "bootstrap"
    interval = "" if found.low is None else f"{scale * found.low:+.3g} to {scale * found.high:+.3g}, "
    difference = f"{scale * found.mean:+.4g}{unit} ({interval}{test})"
    verdict = ("B is higher" if found.mean > 0 else "A is higher") if found.is_shown else "no difference shown"
    return Line(label, _in_words(one), _in_words(other), difference, found.n, verdict, found.is_shown)


def _value(tally: dict) -> float:
    return tally["share"] if "share" in tally else tally["value"]


def _in_words(tally: dict) -> str:
    if "share" in tally:
        return f"{100 * tally['share']:.1f} % ({100 * tally['low']:.1f} to {100 * tally['high']:.1f})"
    unit = f" {tally['unit']}" if tally.get("unit") else ""
    interval = "" if tally["low"] is None else f" ({tally['low']:.4g} to {tally['high']:.4g})"
    return f"{tally['value']:.4g}{unit}{interval}"
