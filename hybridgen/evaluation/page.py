"""The pages of `hybridgen evaluate` and `hybridgen compare`: tables with counts, intervals and baselines, and pictures,
the worst first. Templates are those of `report`, which makes the demo's page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridgen.evaluation import environment
from hybridgen.evaluation.compare import SideBySide
from hybridgen.evaluation.report import CategoryTable, render_page, tables_of
from hybridgen.evaluation.result import TASKS, Item, Result

PAGE = "report.html"
SHOWN = 48  # items of a path on a page
SIDE = 128  # screen pixels of a picture's side


@dataclass(frozen=True)
class Sheet:
    """Items of one path, as they are shown."""

    title: str
    note: str
    items: list[Item]


@dataclass(frozen=True)
class SuitePart:
    """A suite on the page."""

    name: str
    about: str
    notes: list[str]
    tables: list[CategoryTable]
    sheets: list[Sheet]


def render_evaluation(results: dict[str, Result], scores: dict, out: Path) -> str:
    """The page of an evaluation.

    Args:
        results: of each suite.
        scores: the `scores.json` that goes with it.
        out: its folder.
    """
    suites = [
        SuitePart(name, _about(result), result.facts.get("notes", []), tables_of(result), _sheets(result))
        for name, result in zip(scores["suites"], results.values(), strict=True)
    ]
    facts = {
        "checkpoint": scores["checkpoint"],
        "folder": str(out),
        "seed": str(scores["seed"]),
        "hardware": environment.describe(scores["hardware"]),
        "versions": ", ".join(f"{name} {number}" for name, number in scores["versions"].items()),
    }
    return render_page(
        "evaluation.html.jinja",
        title=f"Evaluation: {', '.join(scores['suites'])}",
        summary=f"What {scores['checkpoint']} drew and answered. Every number stands with its count, its 95 % interval "
        "and what it must be read against; pictures and answers begin with the worst.",
        suites=suites,
        command=environment.command(),
        facts=facts,
        side=SIDE,
        version=scores["versions"]["hybridgen"],
        credit=" ".join(dict.fromkeys(result.credit for result in results.values() if result.credit)),
    )


def _about(result: Result) -> str:
    """A suite's facts in half a sentence."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.facts.items() if name != "notes")


def _sheets(result: Result) -> list[Sheet]:
    sheets = []
    for task, by_path in result.items.items():
        for path, items in by_path.items():
            shown = sorted(items, key=lambda item: item.mean)[:SHOWN]
            right = sum(item.mean == 1 for item in items)
            judged = any(item.verdict for item in items)
            note = f"{right} of {len(items)} right in all." if judged else ""
            if len(shown) < len(items):
                note += f" The {'worst' if judged else 'first'} {len(shown)} of {len(items)}."
            sheets.append(Sheet(title_of(task, path), note.strip(), shown))
    return sheets


def title_of(task: str, path: str) -> str:
    """A task and a path as a heading, such as `Drawing by vq`."""
    words = TASKS[task][0].format(path=path) if task in TASKS else f"{task}, {path}"
    return words[0].upper() + words[1:]


def render_comparison(comparison: SideBySide) -> str:
    """The page of two evaluations side by side."""
    suites = [
        {
            "name": suite,
            "parts": [
                {
                    "title": title_of(part.task, part.path),
                    "lines": part.lines,
                    "pairs": part.pairs[:SHOWN],
                    "note": _note(part.pairs),
                }
                for part in parts
            ],
        }
        for suite, parts in comparison.suites.items()
    ]
    return render_page(
        "compare.html.jinja",
        title="A beside B",
        summary=comparison.summary,
        facts=comparison.facts,
        suites=suites,
        side=SIDE,
        version=environment.versions()["hybridgen"],
        credit="",
    )


def _note(pairs: Sequence[tuple[Item, Item]]) -> str:
    differ = sum(first.mean != second.mean for first, second in pairs)
    shown = min(SHOWN, len(pairs))
    return f"{differ} of {len(pairs)} are judged otherwise; those come first. Shown: {shown}."
