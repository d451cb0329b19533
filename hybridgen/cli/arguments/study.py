"""What `hybridgen study` takes."""

import argparse

from hybridgen.cli.arguments.types import (
    add_overrides,
    check_out,
    new_command,
    path_to,
    seed_number,
    whole_number,
)
from hybridgen.core.recognition import require_file

ABOUT = """\
Compare ways of doing one thing: a folder with a config for each, and a study.yaml that says which are compared, by what
numbers, and how long each is trained (equal FLOPs, not equal steps). Trains and scores every config with every seed,
and writes report.html and study.json: points with seeds and intervals, learning curves, and a sentence for each
question. A run that is finished is not made again, one that was interrupted goes on.

examples:
  hybridgen study configs/study --out runs/study --plan
  hybridgen study configs/study --out runs/study --jobs 2
  hybridgen study configs/study --out runs/study --only causal --seeds 0
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "study", "compare configs at equal cost, over seeds", ABOUT)
    command.add_argument("study", type=path_to, metavar="DIR", help="folder with study.yaml and the configs")
    add_overrides(command)
    command.add_argument("--out", type=path_to, required=True, metavar="DIR", help="folder for runs and report")
    command.add_argument("--seeds", type=seed_number, nargs="+", metavar="N", help="instead of the study's")
    command.add_argument("--only", nargs="+", metavar="NAME", help="variants to run (the report shows all there are)")
    add_jobs(command)


def add_jobs(command) -> None:
    command.add_argument(
        "--jobs", type=whole_number(1, 1024), default=1, metavar="N",
        help="runs at a time, each in a process of its own (default: 1; `threads: 1` in configs makes results the same "
        "for any number)",
    )  # fmt: skip
    command.add_argument("--plan", action="store_true", help="say what each run will take, and end")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without loading a library."""
    require_file("study", options.study / "study.yaml", "give the folder of a study")
    if options.seeds is not None and len(set(options.seeds)) < len(options.seeds):
        raise ValueError("--seeds names a seed twice; give each once")
    check_out(options.out)
