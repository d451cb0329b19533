"""What `hybridgen scale` takes."""

import argparse

from hybridgen.cli.arguments.study import add_jobs
from hybridgen.cli.arguments.types import check_out, new_command, path_to, whole_number
from hybridgen.core.recognition import require_file

ABOUT = """\
Train a ladder of sizes and budgets and fit L = E + A / N^alpha + B / D^beta to each held-out loss (text, codes,
diffusion), with bootstrap intervals. A config is one of a run, with a section `ladder` (its sizes and tokens); of
several, the second is compared with the first: the FLOPs it needs for the same loss. Runs that are finished are not
made again.

examples:
  hybridgen scale configs/scaling/*.yaml --out runs/scaling --plan
  hybridgen scale configs/scaling/*.yaml --out runs/scaling --jobs 2
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "scale", "fit a scaling law to a ladder of runs", ABOUT)
    command.add_argument("configs", type=path_to, nargs="+", metavar="CONFIG", help="YAML files with a ladder")
    command.add_argument("--out", type=path_to, required=True, metavar="DIR", help="folder for runs and report")
    command.add_argument(
        "--parameters", choices=("without-embeddings", "all"), default="without-embeddings",
        help="what N counts: without the tables over vocabulary and codebook and the heads over them (default), or all "
        "weights; scaling.json has both",
    )  # fmt: skip
    command.add_argument(
        "--bootstrap", type=whole_number(20, 100_000), default=400, metavar="N", help="refits for intervals (400)"
    )
    add_jobs(command)


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without loading a library."""
    names = [file.stem for file in options.configs]
    for file in options.configs:
        require_file("config", file, "give the path of a YAML file")
        if names.count(file.stem) > 1:
            raise ValueError(f"two configs are called {file.stem}, as their runs would be; rename one")
    check_out(options.out)
