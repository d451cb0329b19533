"""What `hybridgen new` takes."""

import argparse

from hybridgen.cli.arguments.types import new_command, path_to, positive_number, whole_number
from hybridgen.core.recognition import SMALL, check_parents, is_there

ABOUT = f"""\
Look at a folder of captioned pictures (or a .jsonl, .parquet, .tar: what `hybridgen data` reads), choose a model, the
size of its pictures, batch and steps that fit data and machine, and write DIR/config.yaml, in which each choice is
explained. It says how long the training will take; `hybridgen train DIR/config.yaml` runs it as it is.

--from says what the training starts from: {SMALL} (the model that comes with hybridgen; the default where this
installation has it), the folder of a checkpoint, the folder of a Janus-Pro as it was downloaded (which is converted
into DIR/start), or none: random weights.

examples:
  hybridgen new mine --data pictures/
  hybridgen new mine --data 'shards/*.tar' --from none --gpus 8
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "new", "a config for your own pictures: what to train, and how long", ABOUT)
    command.add_argument("folder", metavar="DIR", type=path_to, help="folder for the config and the run")
    command.add_argument("--data", required=True, metavar="SOURCE", help="your pictures with their captions")
    command.add_argument("--from", dest="start", metavar="WHAT", help=f"{SMALL}, a checkpoint, a Janus, or none")
    command.add_argument(
        "--gpus", type=whole_number(0), metavar="N",
        help="GPUs to train on; 0 = this machine's CPU (default: the GPUs of this machine)",
    )  # fmt: skip
    command.add_argument(
        "--memory", type=positive_number, metavar="GB", help="of each (default: as it is here; 80 of GPUs elsewhere)"
    )


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the data."""
    if is_there(options.folder) and not options.folder.is_dir():
        raise ValueError(f"{options.folder} is a file, not a folder; choose another DIR")
    check_parents(options.folder, "another DIR")
