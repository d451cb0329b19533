"""What `hybridgen app` takes."""

import argparse

from hybridgen.cli.arguments.serve import add_bounds, add_where, check_served
from hybridgen.cli.arguments.types import add_checkpoint, add_precision, new_command
from hybridgen.core.recognition import SMALL

ABOUT = """\
Open a checkpoint as a web page: draw by both paths side by side, ask about a picture through every path, chat, and draw
a picture again from its PNG. Needs: pip install 'hybridgen[app]'

The page asks for nothing outside of this machine, and works on a phone. Many can use it at once; the addresses of
`hybridgen serve` are there too, without a key. Ctrl-C ends it.

examples:
  hybridgen app runs/demo/checkpoint
  hybridgen app runs/demo/checkpoint --host 0.0.0.0 --port 8080 --max-steps 50
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "app", "open a checkpoint as a web page: draw, ask, chat, replay", ABOUT)
    add_checkpoint(command, default=SMALL)
    add_where(command, 7860)
    add_bounds(command, grace=3.0)
    add_precision(command)


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    check_served(options)
