"""What `hybridgen chat` takes."""

import argparse
from pathlib import Path

from hybridgen.cli.arguments.types import (
    add_checkpoint,
    add_drawing_options,
    add_text_options,
    check_drawing,
    check_out,
    check_text_options,
    new_command,
    path_name,
    path_to,
    picture_side,
    seed_number,
    whole_number,
)
from hybridgen.core.names import OF_PATH, REREAD
from hybridgen.core.recognition import SMALL, require_checkpoint

SLASH_COMMANDS = """\
  /image FILE   attach a picture to the next message
  /draw TEXT    have a picture drawn, and nothing written
  /undo [N]     take back the last turn, or the last N
  /save         write the conversation so far to the --out folder, as a record to train on
  /help         show these
  /quit         end; so does the end of the input"""
ABOUT = f"""\
Read what you say from stdin, line by line, and print the answer as it is written. Pictures are written to
--out, each with a manifest, and their paths printed. The model decides whether it draws, unless you say /draw.
Lines that begin with / are commands:

{SLASH_COMMANDS}

At a terminal Ctrl-C stops an answer, and a mistake ends nothing. From a pipe a mistake ends the chat with exit code 2.

examples:
  hybridgen chat runs/demo/checkpoint
  hybridgen chat runs/demo/checkpoint --path vq --seed 0 --out talk
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "chat", "talk with a checkpoint, which answers and draws", ABOUT)
    add_checkpoint(command, default=SMALL)
    talk = command.add_argument_group("how to talk")
    talk.add_argument("--system", metavar="TEXT", help="system message to begin with (default: none)")
    talk.add_argument(
        "--read", type=path_name, metavar="PATH", help="path by which pictures are read (default: the first)"
    )
    talk.add_argument(
        "--reread",
        choices=REREAD,
        help="path by which the chat's own pictures are read; drawn = as they were drawn (default: the checkpoint's)",
    )
    talk.add_argument(
        "--max-new-tokens", type=whole_number(1), metavar="N", help="of one answer (default: 256, or what fits)"
    )
    add_text_options(talk, "text-")
    how = command.add_argument_group("how to draw")
    how.add_argument("--path", type=path_name, help="diffusion or vq (default: the first that the checkpoint has)")
    how.add_argument("--seed", type=seed_number, help="seed of the first turn, then + 1 each (default: random)")
    how.add_argument("--height", type=picture_side, help="in pixels (default: as trained)")
    how.add_argument("--width", type=picture_side, help="in pixels (default: as trained)")
    add_drawing_options(how)
    command.add_argument("--out", type=path_to, default=Path("chat"), metavar="DIR", help="default: chat")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    check_text_options(options, "text-")
    check_drawing(options, [options.path] if options.path in OF_PATH else None)
    check_out(options.out)
    require_checkpoint(options.checkpoint)
