"""`hybridgen ask`: the answer to a question about a picture."""

import argparse
from collections.abc import Iterator

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.cli.pictures import open_picture
from hybridgen.cli.running import best_device

STOPPED = "nothing was written"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the answer."""
    image = open_picture(options.image)
    pipeline = best_device(open_pipeline(options.checkpoint))
    yield from pipeline.answer(image, options.question, path=options.path, max_new_tokens=options.max_new_tokens)
