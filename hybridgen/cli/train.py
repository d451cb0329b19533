"""`hybridgen train`: one process that trains what a config file describes; `scripts/train.py` is for several."""

import argparse
from collections.abc import Iterator

from hybridgen.training.config.checks import load_config
from hybridgen.training.run import train

STOPPED = "the same command goes on from what was saved last"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder of what was trained."""
    yield str(train(load_config(options.config, options.overrides)))
