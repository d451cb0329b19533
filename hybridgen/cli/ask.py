"""`hybridgen ask`: the answer to a question about a picture, or about several."""

import argparse
import sys
from collections.abc import Iterator

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.cli.pictures import open_picture
from hybridgen.cli.running import TRUNCATED, best_device

STOPPED = "nothing was written"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the answers, one for each question."""
    images = [open_picture(file) for file in options.image]
    pipeline = best_device(open_pipeline(options.checkpoint))
    answers = pipeline.answer(
        [images],
        options.question,
        path=options.path,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        precision=options.precision,
    )
    for answer in answers:
        yield answer
        if answer.truncated:
            print(TRUNCATED, file=sys.stderr)
