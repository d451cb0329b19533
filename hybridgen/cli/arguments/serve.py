"""What `hybridgen serve` takes."""

import argparse
from pathlib import Path

from hybridgen.cli.arguments.types import (
    add_checkpoint,
    add_precision,
    new_command,
    path_to,
    positive_number,
    whole_number,
)
from hybridgen.core.recognition import SMALL, require_checkpoint

KEY_VARIABLE = "HYBRIDGEN_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ABOUT = f"""\
Serve a checkpoint to OpenAI's clients: pictures, edits, conversations, by one model for all of them at once. What
requests ask for is joined step by step, and each is the same picture as alone. Needs: pip install 'hybridgen[serve]'

Where {KEY_VARIABLE} is set, or --api-key-file given, every request needs that key. Nothing of a request is logged.
Ctrl-C, or SIGTERM, takes no more requests and ends what runs.

examples:
  hybridgen serve runs/demo/checkpoint
  hybridgen serve runs/demo/checkpoint --host 0.0.0.0 --port 8080 --api-key-file key.txt --max-waiting 1000
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "serve", "serve a checkpoint to OpenAI's clients over HTTP", ABOUT)
    add_checkpoint(command, default=SMALL)
    where = add_where(command, 8000)
    where.add_argument("--api-key-file", type=path_to, metavar="FILE", help=f"holds the key (default: ${KEY_VARIABLE})")
    add_bounds(command, grace=30.0)
    add_precision(command)


def add_where(command: argparse.ArgumentParser, port: int):
    """Where a server listens, and the name of what it serves; returns the group."""
    where = command.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 = all (default: 127.0.0.1)")
    where.add_argument("--port", type=whole_number(0, 65535), default=port, help=f"0 = a free one (default: {port})")
    where.add_argument("--name", help="of the model, as others see it (default: the checkpoint's last folder)")
    return where


def add_bounds(command: argparse.ArgumentParser, grace: float) -> None:
    """What a request may ask for."""
    bounds = command.add_argument_group("bounds")
    for option, kind, default, meaning in (
        ("--max-rows", whole_number(1), 64, "rows of the backbone at a time; a guided picture takes two"),
        ("--max-waiting", whole_number(0), 256, "requests that may wait; further ones are told to come again (429)"),
        ("--max-images", whole_number(1), 8, "pictures of one request"),
        ("--max-image-tokens", whole_number(1), 4096, "tokens, or codes, of a picture"),
        ("--max-steps", whole_number(1), 200, "denoising steps"),
        ("--max-new-tokens", whole_number(1), 4096, "tokens of text"),
        ("--max-body-mb", whole_number(1), 32, "megabytes of a request"),
        ("--max-megapixels", positive_number, 16.0, "of a picture that is sent"),
        ("--timeout", positive_number, 300.0, "seconds that a request may wait and be made"),
        ("--grace", positive_number, grace, "seconds that running requests have when the server ends"),
    ):
        bounds.add_argument(option, type=kind, default=default, metavar="N", help=f"{meaning} (default: {default:g})")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    if options.api_key_file is not None and not Path(options.api_key_file).is_file():
        raise ValueError(f"--api-key-file {options.api_key_file} is not there; name a file that holds the key")
    check_served(options)


def check_served(options: argparse.Namespace) -> None:
    """Raises ValueError for a name that is none, or a checkpoint."""
    if options.name is not None and not options.name.strip():
        raise ValueError("--name is empty; leave it out, or give the model a name")
    require_checkpoint(options.checkpoint)
