"""`hybridgen ask`: the answer to a question about a picture."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.cli.arguments import add_checkpoint, new_command, path_name, whole_number
from hybridgen.cli.pictures import open_picture
from hybridgen.cli.running import best_device
from hybridgen.core.layout import PATHS

ABOUT = """\
Print the answer to a question about a picture, and nothing else.

examples:
  hybridgen ask runs/demo/checkpoint --image orc.png --question "what is worn on the body?"
  hybridgen ask runs/demo/checkpoint --image orc.png --question "is there a crossbow?" --path diffusion
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "ask", "ask a question about a picture", ABOUT)
    add_checkpoint(command)
    command.add_argument("--image", type=Path, required=True, metavar="FILE", help="the picture")
    command.add_argument("--question", required=True, metavar="TEXT", help="what to ask")
    paths = ", ".join(PATHS)
    command.add_argument("--path", type=path_name, default=PATHS[0], help=f"one of {paths} (default: {PATHS[0]})")
    command.add_argument(
        "--max-new-tokens", type=whole_number(1), default=32, help="length of the answer (default: 32)"
    )


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the answer."""
    image = open_picture(options.image)
    pipeline = best_device(open_pipeline(options.checkpoint))
    yield from pipeline.answer(image, options.question, path=options.path, max_new_tokens=options.max_new_tokens)
