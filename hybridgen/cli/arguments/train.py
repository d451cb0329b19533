"""What `hybridgen train` takes."""

import argparse

from hybridgen.cli.arguments.types import add_overrides, new_command, path_to
from hybridgen.core.recognition import require_file

ABOUT = """\
Train what a config file describes. A run that was interrupted goes on from its last saved state. For several
processes, start `accelerate launch scripts/train.py CONFIG` instead.

examples:
  hybridgen train configs/demo.yaml
  hybridgen train configs/demo.yaml output_dir=runs/wide optimizer.lr=1e-3
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "train", "train a model or a codec from a config file", ABOUT)
    command.add_argument("config", type=path_to, metavar="CONFIG", help="YAML file")
    add_overrides(command)


def check(options: argparse.Namespace) -> None:
    """Raises ValueError where there is no such file."""
    require_file("config", options.config, "give the path of a YAML file")
