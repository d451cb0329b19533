"""`hybridgen train`: one process that trains what a config file describes; `scripts/train.py` is for several."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.cli.arguments import add_overrides, new_command
from hybridgen.training.config.checks import load_config
from hybridgen.training.run import train

ABOUT = """\
Train what a config file describes. A run that was interrupted goes on from its last saved state. For several
processes, start `accelerate launch scripts/train.py CONFIG` instead.

examples:
  hybridgen train configs/demo.yaml
  hybridgen train configs/demo.yaml output_dir=runs/wide optimizer.lr=1e-3
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "train", "train a model or a codec from a config file", ABOUT)
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    add_overrides(command)


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder of what was trained."""
    yield str(train(load_config(options.config, options.overrides)))
