"""`hybridgen convert`: a Janus checkpoint in another layout; the reading and writing are those of `bridges.janus`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from hybridgen.bridges.janus import conversion
from hybridgen.bridges.janus.checkpoint import open_janus
from hybridgen.bridges.janus.prompts import ROLES
from hybridgen.bridges.janus.report import lost, report_lines
from hybridgen.bridges.weights import SHARD_SIZE
from hybridgen.cli.arguments import file_size, new_command

ABOUT = """\
Write a checkpoint in another layout: ours, that of transformers (deepseek-community/Janus-Pro-1B) or that of
DeepSeek (deepseek-ai/Janus-Pro-1B, Janus-1.3B). The layout of the source is detected: any of the three, in one file
or in shards, as safetensors or .bin. The new folder appears when all is written.

examples:
  hybridgen convert Janus-Pro-1B --dry-run
  hybridgen convert Janus-Pro-1B janus --to hybridgen
  hybridgen convert janus Janus-Pro-1B-tuned --to janus-hf
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "convert", "bring a Janus checkpoint in, or write one out", ABOUT)
    command.add_argument("source", metavar="SRC", type=Path, help="folder of a checkpoint")
    command.add_argument("destination", metavar="DST", type=Path, nargs="?", help="folder that is not there yet")
    layouts = tuple(conversion.WRITERS)
    command.add_argument("--to", choices=layouts, default="hybridgen", help="layout (default: hybridgen)")
    command.add_argument("--dry-run", action="store_true", help="compare names, shapes and dtypes; write nothing")
    styles = " or ".join(ROLES)
    command.add_argument("--style", choices=tuple(ROLES), help=f"of the prompts: {styles} (default: detected)")
    command.add_argument(
        "--max-shard-size", metavar="SIZE", type=file_size, default=SHARD_SIZE,
        help=f"largest file of weights, such as 5GB (default: {SHARD_SIZE}, as transformers)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder that was written, or a table of what would be converted."""
    if options.dry_run:
        source = open_janus(options.source, options.style)
        yield from report_lines(source, options.to)
        conversion.check_conversion(source, options.to)
        return
    if options.destination is None:
        raise ValueError("no folder to write to; name one after the source, or say --dry-run")
    converted = conversion.convert(
        options.source, options.destination, options.to, options.style, options.max_shard_size
    )
    for name in converted.dropped:
        print(f"left out: {name}", file=sys.stderr)
    for what in lost(converted, options.to):
        print(f"lost: {what}", file=sys.stderr)
    yield str(options.destination)
