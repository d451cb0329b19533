"""`hybridgen train`: trains what a config file describes, and writes the page of it at the end.

`accelerate launch -m hybridgen train CONFIG` does it with several processes, of which the first alone speaks.
"""

import argparse
from collections.abc import Iterator

from hybridgen.cli.train_report import write_report
from hybridgen.core.launched import is_first
from hybridgen.training.config.checks import load_config
from hybridgen.training.distributed.launched import quiet_libraries
from hybridgen.training.run import train

STOPPED = "the same command goes on from what was saved last"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder of what was trained, then the page."""
    quiet_libraries(also_warnings=not is_first())
    config = load_config(options.config, options.overrides)
    checkpoint = train(config)
    if is_first():
        yield str(checkpoint)
        yield str(write_report(config, options.config))
