"""What `hybridgen replay` takes."""

import argparse

from hybridgen.cli.arguments.types import check_image, check_out, checkpoint_to, new_command, path_to
from hybridgen.core.recognition import require_checkpoint

ABOUT = """\
Draw a picture of `hybridgen sample` again, from the manifest in its PNG, and print whether every pixel is as it
was or what differs. Exit code 0 if it is identical, 1 if it differs. A checkpoint of other weights is refused.

examples:
  hybridgen replay pictures/an-elf-diffusion-seed0.png
  hybridgen replay pictures/an-elf-diffusion-seed0.png runs/demo/checkpoint --out again
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "replay", "draw a picture again from what its PNG says", ABOUT)
    command.add_argument("picture", metavar="PNG", type=path_to, help="a picture that hybridgen drew")
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=checkpoint_to,
        nargs="?",
        help="that drew it (default: the folder it names)",
    )
    command.add_argument("--out", type=path_to, metavar="DIR", help="folder for the picture drawn again")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the picture."""
    check_image("picture", options.picture)
    if options.out is not None:
        check_out(options.out)
    if options.checkpoint is not None:
        require_checkpoint(options.checkpoint)
