"""What `hybridgen demo` takes."""

import argparse
from pathlib import Path

from hybridgen.cli.arguments.types import (
    OVERRIDES_HELP,
    add_overrides,
    check_out,
    new_command,
    path_to,
    picture_count,
    seed_number,
)

ABOUT = """\
Show what hybridgen/small draws and answers, where the installation has it. Then train a VQ tokenizer, and one small
model that draws by two paths and answers through two; score it on pictures of kinds it never saw, and write
report.html. A demo that was interrupted goes on where it was; one that is finished says so.

examples:
  hybridgen demo
  hybridgen demo --seed 1 --out runs/seed1
  hybridgen demo --out runs/quick steps=50 codec:steps=20
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "demo", "train, draw, answer and report, from nothing, on two cores", ABOUT)
    what = command.add_argument_group("what to do")
    what.add_argument("--seed", type=seed_number, default=0, help="seed of training and evaluation (default: 0)")
    what.add_argument(
        "--samples", type=picture_count, default=256, help="pictures to draw and to ask about (default: 256)"
    )
    add_overrides(what, f"{OVERRIDES_HELP}; codec:KEY=VALUE replaces one of the codec's file")
    command.add_argument("--out", type=path_to, default=Path("runs", "demo"), metavar="DIR", help="default: runs/demo")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows before anything is made."""
    check_out(options.out)
