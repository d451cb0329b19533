"""What `hybridgen demo` takes."""

import argparse

from hybridgen.cli.arguments.types import (
    OVERRIDES_HELP,
    add_overrides,
    check_out,
    new_command,
    path_to,
    picture_count,
    seed_number,
)

DEMOS = ("dolls", "emoji")  # the datasets that have a demo: CONFIGS of cli.demo, told without importing torch

ABOUT = """\
Train a VQ tokenizer, then one small model that draws by two paths and answers through two; score it on
pictures of kinds it never saw, and write report.html. A demo that was interrupted goes on where it was; one
that is finished says so.

examples:
  hybridgen demo
  hybridgen demo --seed 1 --out runs/seed1
  hybridgen demo --out runs/quick steps=50 codec:steps=20
  hybridgen demo --dataset emoji
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "demo", "train, draw, answer and report, from nothing, on two cores", ABOUT)
    what = command.add_argument_group("what to do")
    what.add_argument("--dataset", default="dolls", help=f"{' or '.join(DEMOS)} (default: dolls)")
    what.add_argument("--seed", type=seed_number, default=0, help="seed of training and evaluation (default: 0)")
    what.add_argument(
        "--samples", type=picture_count, default=256, help="pictures to draw and to ask about (default: 256)"
    )
    add_overrides(what, f"{OVERRIDES_HELP}; codec:KEY=VALUE replaces one of the codec's file")
    command.add_argument("--out", type=path_to, metavar="DIR", help="default: runs/demo, or runs/DATASET")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows before anything is made."""
    if options.dataset not in DEMOS:
        raise ValueError(f"there is no suite {options.dataset!r}; choose {' or '.join(DEMOS)}")
    if options.out is not None:
        check_out(options.out)
