"""What `hybridgen ask` takes."""

import argparse

from hybridgen.cli.arguments.types import (
    add_checkpoint,
    add_precision,
    add_text_options,
    check_image,
    check_text_options,
    new_command,
    path_name,
    path_to,
    seed_number,
    whole_number,
)
from hybridgen.core.names import PATHS
from hybridgen.core.recognition import SMALL, require_checkpoint

ABOUT = """\
Print the answer to a question about a picture, or about several, and nothing else: a line for each --question.
The answer is the likeliest, the same every time, unless --temperature, --top-k or --top-p draw its words.

examples:
  hybridgen ask runs/demo/checkpoint --image orc.png --question "what is worn on the body?"
  hybridgen ask runs/demo/checkpoint --image orc.png --question "is there a crossbow?" --path diffusion
  hybridgen ask runs/demo/checkpoint --image orc.png --image elf.png --question "who wears a robe?"
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "ask", "ask a question about a picture", ABOUT)
    add_checkpoint(command, default=SMALL)
    again = {"action": "append", "required": True}
    command.add_argument(
        "--image", type=path_to, metavar="FILE", help="the picture; give it again for more, read in this order", **again
    )
    command.add_argument("--question", metavar="TEXT", help="what to ask; give it again for more questions", **again)
    paths = ", ".join(PATHS)
    command.add_argument("--path", type=path_name, default=PATHS[0], help=f"one of {paths} (default: {PATHS[0]})")
    command.add_argument(
        "--max-new-tokens", type=whole_number(1), metavar="N", help="length of the answer (default: what has room)"
    )
    add_text_options(command.add_argument_group("how to choose words"), "")
    add_precision(command)
    command.add_argument("--seed", type=seed_number, help="of drawn words, + 1 for each question (default: random)")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    for image in options.image:
        check_image("--image", image)
    check_text_options(options, "")
    require_checkpoint(options.checkpoint)
