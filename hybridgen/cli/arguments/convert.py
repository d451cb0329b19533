"""What `hybridgen convert` takes."""

import argparse

from hybridgen.bridges.layouts import LAYOUTS, SHARD_SIZE, STYLES
from hybridgen.cli.arguments.types import file_size, new_command, path_to
from hybridgen.core.recognition import check_absent, require_file, require_folder

ABOUT = """\
Write a checkpoint in another layout: ours, that of transformers (Janus, Chameleon, LLaVA 1.5) or that of DeepSeek
(Janus). What the source is is detected, in one file or in shards, as safetensors or .bin. The new folder appears when
all is written.

examples:
  hybridgen convert Janus-Pro-1B --dry-run
  hybridgen convert Janus-Pro-1B janus --to hybridgen
  hybridgen convert janus Janus-Pro-1B-tuned --to janus-hf
  hybridgen convert llava-1.5-7b-hf llava
  hybridgen convert chameleon-7b chameleon --vq-decoder data/tokenizer/vqgan.ckpt
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "convert", "bring another model's checkpoint in, or write one out", ABOUT)
    command.add_argument("source", metavar="SRC", type=path_to, help="folder of a checkpoint")
    command.add_argument("destination", metavar="DST", type=path_to, nargs="?", help="folder that is not there yet")
    command.add_argument("--to", choices=LAYOUTS, default="hybridgen", help="layout (default: hybridgen)")
    command.add_argument("--dry-run", action="store_true", help="compare names, shapes and dtypes; write nothing")
    styles = " or ".join(STYLES)
    command.add_argument("--style", choices=STYLES, help=f"of a Janus' prompts: {styles} (default: detected)")
    command.add_argument(
        "--vq-decoder", metavar="FILE", type=path_to,
        help="weights of a Chameleon's VQ decoder (vqgan.ckpt), which transformers' layout lacks",
    )  # fmt: skip
    command.add_argument(
        "--max-shard-size", metavar="SIZE", type=file_size, default=SHARD_SIZE,
        help=f"largest file of weights, such as 5GB (default: {SHARD_SIZE}, as transformers)",
    )  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    require_folder("checkpoint", options.source, "give the folder of a checkpoint")
    if options.vq_decoder is not None:
        require_file("--vq-decoder", options.vq_decoder, "give vqgan.ckpt of Meta's release")
    if options.dry_run:
        return
    if options.destination is None:
        raise ValueError("no folder to write to; name one after the source, or say --dry-run")
    check_absent(options.destination)
