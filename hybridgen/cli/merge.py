"""`hybridgen merge`: the pipeline that a LoRA adapter was trained on, with the adapter added to its weights."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.bridges import adapters
from hybridgen.checkpoints.loading import is_adapter, new_folder
from hybridgen.cli.arguments import new_command

ABOUT = """\
Write the pipeline that an adapter was trained on with the adapter added to its weights. The adapter's folder
can be sampled, asked and evaluated without merging, too.

examples:
  hybridgen merge runs/janus_pro_1b_lora/checkpoint merged
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "merge", "merge a trained LoRA adapter into its model", ABOUT)
    command.add_argument("adapter", metavar="ADAPTER", type=Path, help="folder of an adapter: checkpoint/ of its run")
    command.add_argument("folder", metavar="DST", type=Path, help="folder to write; it must not be there yet")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder that was written."""
    if not is_adapter(options.adapter):
        raise ValueError(f"{options.adapter} is no adapter; give the checkpoint/ of a run with lora")
    with new_folder(options.folder) as unfinished:
        adapters.merge(adapters.open_pipeline(options.adapter)).save_pretrained(unfinished)
    yield str(options.folder)
