"""`hybridgen merge`: the pipeline that a LoRA adapter was trained on, with the adapter added to its weights."""

import argparse
from collections.abc import Iterator

from hybridgen.bridges import adapters
from hybridgen.checkpoints.loading import new_folder

STOPPED = "nothing was written: the new folder appears when all of it is"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder that was written."""
    with new_folder(options.folder) as unfinished:
        adapters.merge(adapters.open_pipeline(options.adapter)).save_pretrained(unfinished)
    yield str(options.folder)
