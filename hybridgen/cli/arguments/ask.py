"""What `hybridgen ask` takes."""

import argparse

from hybridgen.cli.arguments.types import add_checkpoint, check_image, new_command, path_name, path_to, whole_number
from hybridgen.core.names import PATHS
from hybridgen.core.recognition import require_checkpoint

ABOUT = """\
Print the answer to a question about a picture, and nothing else.

examples:
  hybridgen ask runs/demo/checkpoint --image orc.png --question "what is worn on the body?"
  hybridgen ask runs/demo/checkpoint --image orc.png --question "is there a crossbow?" --path diffusion
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "ask", "ask a question about a picture", ABOUT)
    add_checkpoint(command)
    command.add_argument("--image", type=path_to, required=True, metavar="FILE", help="the picture")
    command.add_argument("--question", required=True, metavar="TEXT", help="what to ask")
    paths = ", ".join(PATHS)
    command.add_argument("--path", type=path_name, default=PATHS[0], help=f"one of {paths} (default: {PATHS[0]})")
    command.add_argument(
        "--max-new-tokens", type=whole_number(1), default=32, help="length of the answer (default: 32)"
    )


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    check_image("--image", options.image)
    require_checkpoint(options.checkpoint)
