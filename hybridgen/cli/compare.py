"""`hybridgen compare`: two evaluations, or two checkpoints that are evaluated first, side by side on one page."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.cli.evaluate import evaluate_into
from hybridgen.core.files import write_whole
from hybridgen.evaluation.compare import compare
from hybridgen.evaluation.page import render_comparison
from hybridgen.evaluation.processes import Processes

STOPPED = "no page was written; of two checkpoints, what was drawn and answered is kept, and the same command goes on"


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the differences, then the page."""
    folders = (options.a, options.b) if options.suite is None else _evaluated(options)
    if folders is None:  # not the first of several processes
        return
    comparison = compare(*folders)
    write_whole(options.out, render_comparison(comparison))
    yield from comparison.in_lines()
    yield str(options.out)


def _evaluated(options: argparse.Namespace) -> tuple[Path, Path] | None:
    """The folders of two checkpoints' evaluations, beside the page; None in all processes but the first."""
    folders = tuple(options.out.with_suffix("") / name for name in ("a", "b"))
    with Processes.launched() as processes:
        for checkpoint, folder in zip((options.a, options.b), folders, strict=True):
            evaluate_into(checkpoint, options, folder)
    return folders if processes.is_main else None
