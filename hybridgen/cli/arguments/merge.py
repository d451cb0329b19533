"""What `hybridgen merge` takes."""

import argparse

from hybridgen.cli.arguments.types import new_command, path_to
from hybridgen.core.recognition import ADAPTER, check_absent, require_folder, what_folder_it_is

ABOUT = """\
Write the pipeline that an adapter was trained on with the adapter added to its weights. The adapter's folder
can be sampled, asked and evaluated without merging, too.

examples:
  hybridgen merge runs/janus_pro_1b_lora/checkpoint merged
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "merge", "merge a trained LoRA adapter into its model", ABOUT)
    command.add_argument(
        "adapter", metavar="ADAPTER", type=path_to, help="folder of an adapter: checkpoint/ of its run"
    )
    command.add_argument("folder", metavar="DST", type=path_to, help="folder to write; it must not be there yet")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the adapter."""
    require_folder("adapter", options.adapter, "give the checkpoint/ of a run with lora")
    if not (options.adapter / ADAPTER).is_file():
        kind = what_folder_it_is(options.adapter)
        raise ValueError(f"{options.adapter} is no adapter but {kind}; give the checkpoint/ of a run with lora")
    check_absent(options.folder)
