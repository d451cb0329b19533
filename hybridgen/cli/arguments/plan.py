"""What `hybridgen plan` takes."""

import argparse

from hybridgen.cli.arguments.types import add_overrides, new_command, positive_number, share_above_0, whole_number
from hybridgen.core.recognition import require_file, user_path

ENGINES = ("ddp", "fsdp2", "hsdp")
ABOUT = """\
Say, before a run, what one process of it will hold in memory (weights, gradients, optimizer, activations, logits,
masks, codecs), whether that fits, which keys to change if not, and how many FLOPs and days it takes. No weight is
made: the run's own step is gone through with tensors that have shapes and no values. Exits with 1 if it does not fit.

examples:
  hybridgen plan configs/demo.yaml
  hybridgen plan configs/transfusion_7b.yaml --gpus 64 --memory 80 --engine fsdp2
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "plan", "memory and time of a run, before it", ABOUT)
    command.add_argument("config", metavar="CONFIG", help="a config of the model stage (.yaml)")
    add_overrides(command)
    command.add_argument(
        "--gpus", type=whole_number(0), default=0, metavar="N",
        help="GPUs of all machines together, a process each; 0 = one process on this machine's CPU (default)",
    )  # fmt: skip
    command.add_argument(
        "--memory", type=positive_number, metavar="GB", help="of each GPU (default: 80), or of this machine"
    )
    command.add_argument(
        "--engine", choices=ENGINES, default="ddp",
        help="what accelerate is launched with: ddp keeps a model on each GPU (default), fsdp2 shards it over all, "
        "hsdp over the 8 of a machine",
    )  # fmt: skip
    command.add_argument(
        "--tokens",
        type=positive_number,
        metavar="N",
        help="budget, such as 0.5e12 (default: those of the config's steps)",
    )
    command.add_argument(
        "--tflops", type=positive_number, metavar="X",
        help="what a GPU can do at most, in 1e12 FLOP/s (default: diagnostics.peak_tflops; none is guessed)",
    )  # fmt: skip
    command.add_argument("--mfu", type=share_above_0, default=0.4, metavar="X", help="the share of it reached (0.4)")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without loading a library."""
    require_file("config", user_path(options.config), "give the path of a YAML file")
