"""`hybridgen convert`: a Janus checkpoint in another layout; the reading and writing are those of `bridges.janus`."""

import argparse
import sys
from collections.abc import Iterator

from hybridgen.bridges.janus import conversion
from hybridgen.bridges.janus.checkpoint import open_janus
from hybridgen.bridges.janus.report import lost, report_lines

STOPPED = "nothing was written: the new folder appears when all of it is"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder that was written, or a table of what would be converted."""
    if options.dry_run:
        source = open_janus(options.source, options.style)
        yield from report_lines(source, options.to)
        conversion.check_conversion(source, options.to)
        return
    converted = conversion.convert(
        options.source, options.destination, options.to, options.style, options.max_shard_size
    )
    for name in converted.dropped:
        print(f"left out: {name}", file=sys.stderr)
    for what in lost(converted, options.to):
        print(f"lost: {what}", file=sys.stderr)
    yield str(options.destination)
