"""`hybridgen convert`: another model's checkpoint in another layout; the reading and writing are those of `bridges`."""

import argparse
import sys
from collections.abc import Iterator

from hybridgen.bridges.families import convert, open_conversion

STOPPED = "nothing was written: the new folder appears when all of it is"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder that was written, or a table of what would be converted."""
    told = {"style": options.style, "vq_decoder": options.vq_decoder}
    if options.dry_run:
        yield from open_conversion(options.source, options.to, **told).report()
        return
    converted = convert(options.source, options.destination, options.to, options.max_shard_size, **told)
    for name in converted.checkpoint.dropped:
        print(f"left out: {name}", file=sys.stderr)
    for what in converted.lost():
        print(f"lost: {what}", file=sys.stderr)
    yield str(options.destination)
