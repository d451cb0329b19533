"""Arguments of the commands that make checkpoints out of others: init, convert, merge.

Nothing runs here (`cli`); the other commands' arguments stand in `arguments`.
"""

from pathlib import Path

from hybridgen.bridges.janus import WRITERS
from hybridgen.bridges.prompts import ROLES
from hybridgen.bridges.weights import SHARD_SIZE
from hybridgen.cli.argument_kinds import command_of, file_size, path_names, whole, widths
from hybridgen.core.layout import PATHS


def add_init(commands) -> None:
    command = command_of(
        commands,
        "init",
        "build a hybrid from pretrained parts",
        """\
        Graft paths onto a decoder: its text stays as it was to the bit, what is new starts silent. Nothing is trained;
        the folder that is written is one to train from, as model.from_pretrained. A Janus gives every part that no
        other option names.

        examples:
          hybridgen init start --backbone Qwen3-0.6B --vae sd3/vae --paths diffusion --image-size 256
          hybridgen init start --backbone Llama-3.2-1B --vision siglip2-base-patch16-384 --from-janus Janus-Pro-1B \
            --paths understanding,vq
          hybridgen init start --from-janus Janus-Pro-1B --vae sdxl/vae --paths understanding,diffusion,vq
        """,
    )
    command.add_argument("folder", metavar="DST", type=Path, help="folder to write; it must not be there yet")
    parts = command.add_argument_group("what it is made of")
    parts.add_argument("--backbone", metavar="DIR", type=Path, help="a Llama or Qwen decoder with its tokenizer")
    parts.add_argument("--gguf-file", metavar="NAME", help="a file in that folder to take both from")
    parts.add_argument("--vision", metavar="DIR", type=Path, help="a SigLIP, or one of ours; a .json = a new one")
    parts.add_argument("--vae", metavar="DIR", type=Path, help="an AutoencoderKL; none = diffusion on pixels")
    parts.add_argument("--vq", metavar="DIR", type=Path, help="a VQ tokenizer")
    parts.add_argument("--from-janus", metavar="DIR", type=Path, help="a Janus in any layout")
    named = ",".join(PATHS)
    parts.add_argument("--paths", required=True, type=path_names, metavar="PATH,...", help=f"some of {named}")
    shape = command.add_argument_group("how the new paths are built")
    shape.add_argument("--image-size", type=whole(1), metavar="N", help="side of drawn pictures (default: the donors')")
    shape.add_argument("--patch-size", type=whole(1), metavar="N", help="diffusion: latents (2) or pixels (8) a side")
    shape.add_argument(
        "--unet-channels", type=widths, metavar="N,", help="diffusion: of a U-Net, instead of linear patches"
    )
    shape.add_argument("--prediction", default="velocity", metavar="KIND", help="velocity (default), sample or epsilon")
    shape.add_argument("--bidirectional", action="store_true", help="tokens of a picture that is read see each other")
    shape.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja, instead of the tokenizer's own")
    shape.add_argument("--seed", type=whole(0), default=0, help="of what starts random (default: 0)")


def add_convert(commands) -> None:
    command = command_of(
        commands,
        "convert",
        "bring a Janus checkpoint in, or write one out",
        """\
        Write a checkpoint in another layout: ours, that of transformers (deepseek-community/Janus-Pro-1B) or that of
        DeepSeek (deepseek-ai/Janus-Pro-1B, Janus-1.3B). The source may be in any of the three, in one file or in
        shards, as safetensors or .bin; which, is found out. The new folder appears when all is written.

        examples:
          hybridgen convert Janus-Pro-1B --dry-run
          hybridgen convert Janus-Pro-1B janus --to hybridgen
          hybridgen convert janus Janus-Pro-1B-tuned --to janus-hf
        """,
    )
    command.add_argument("source", metavar="SRC", type=Path, help="folder of a checkpoint")
    command.add_argument("destination", metavar="DST", type=Path, nargs="?", help="folder that is not there yet")
    command.add_argument("--to", choices=tuple(WRITERS), default="hybridgen", help="layout (default: hybridgen)")
    command.add_argument("--dry-run", action="store_true", help="compare names, shapes and dtypes; write nothing")
    styles = " or ".join(ROLES)
    command.add_argument("--style", choices=tuple(ROLES), help=f"of the prompts: {styles} (default: found out)")
    command.add_argument(
        "--max-shard-size", metavar="SIZE", type=file_size, default=SHARD_SIZE,
        help=f"of a file of weights, such as 5GB (default: {SHARD_SIZE}, as transformers)",
    )  # fmt: skip


def add_merge(commands) -> None:
    command = command_of(
        commands,
        "merge",
        "merge a trained LoRA adapter into its model",
        """\
        Write the pipeline that an adapter was trained on with the adapter added to its weights. The adapter's folder
        can be sampled, asked and evaluated without that, too.

        examples:
          hybridgen merge runs/janus_pro_1b_lora/checkpoint merged
        """,
    )
    command.add_argument("adapter", metavar="ADAPTER", type=Path, help="folder of an adapter: checkpoint/ of its run")
    command.add_argument("folder", metavar="DST", type=Path, help="folder to write; it must not be there yet")
