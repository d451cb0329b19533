"""What `hybridgen compare` takes."""

import argparse
from pathlib import Path

from hybridgen.cli.arguments.evaluate import add_evaluation, check_evaluation, suites_help
from hybridgen.cli.arguments.types import check_out, checkpoint_to, drawing_settings, new_command, path_to
from hybridgen.core.recognition import require_checkpoint, require_folder

ABOUT = """\
Put two evaluations side by side: each score of both, whether their difference says anything (by paired tests, as
both were asked the same), and the pictures of the same prompts beside each other, those where they differ first.
A and B are two folders that `hybridgen evaluate` wrote; or, with --suite, two checkpoints, which are evaluated first,
into folders beside the page.

examples:
  hybridgen compare scores guidance2 --out compare.html
  hybridgen compare runs/a/checkpoint runs/b/checkpoint --suite dolls --samples 64 --out compare.html
"""


_OF_CHECKPOINTS = ("option", "paths", "draw", "answer", "chat", "samples")  # say how these are evaluated


def add_arguments(commands) -> None:
    command = new_command(commands, "compare", "two evaluations side by side", ABOUT)
    command.epilog += f"\n{suites_help()}"
    for name in ("A", "B"):
        command.add_argument(
            name.lower(), metavar=name, type=checkpoint_to, help="an evaluation, or with --suite a checkpoint"
        )
    add_evaluation(command, required=False)
    command.add_argument(
        "--out", type=path_to, default=Path("compare.html"), metavar="FILE.html", help="default: compare.html"
    )


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening a folder."""
    if options.out.suffix != ".html":
        raise ValueError(f"--out {options.out} is no page; name a file that ends with .html")
    if options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder; name a file that ends with .html")
    check_out(options.out.parent)
    if options.a.resolve() == options.b.resolve():
        raise ValueError(f"{options.a} is given twice; name two evaluations, or two checkpoints")
    if options.suite is None:
        for folder in (options.a, options.b):
            require_folder("evaluation", folder, "give a folder that `hybridgen evaluate` wrote")
        if drawing_settings(options) or any(getattr(options, name) not in (None, []) for name in _OF_CHECKPOINTS):
            raise ValueError(
                "without --suite two evaluations are compared as they are; leave the settings of evaluating out, or "
                "name checkpoints and --suite"
            )
        return
    check_evaluation(options)
    for folder in (options.a, options.b):
        require_checkpoint(folder)
