"""`hybridgen init`: a hybrid out of pretrained parts, to train from; `bridges.assemble` builds it."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.bridges.assemble import AssemblyOptions, assemble
from hybridgen.checkpoints.loading import new_folder
from hybridgen.cli.arguments import channel_counts, new_command, path_names, whole_number
from hybridgen.core.layout import PATHS

ABOUT = """\
Add paths to a decoder: its text stays as it was to the bit, what is new starts silent. Nothing is trained;
the folder that is written is one to train from, as model.from_pretrained. A Janus gives every part that no
other option names.

examples:
  hybridgen init start --backbone Qwen3-0.6B --vae sd3/vae --paths diffusion --image-size 256
  hybridgen init start --backbone Llama-3.2-1B --vision siglip2-base-patch16-384 --from-janus Janus-Pro-1B \
--paths understanding,vq
  hybridgen init start --from-janus Janus-Pro-1B --vae sdxl/vae --paths understanding,diffusion,vq
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "init", "build a hybrid from pretrained parts", ABOUT)
    command.add_argument("folder", metavar="DST", type=Path, help="folder to write; it must not be there yet")
    _add_parts(command.add_argument_group("what it is made of"))
    _add_shape(command.add_argument_group("how the new paths are built"))


def _add_parts(group) -> None:
    group.add_argument("--backbone", metavar="DIR", type=Path, help="a Llama or Qwen decoder with its tokenizer")
    group.add_argument("--gguf-file", metavar="NAME", help="a file in that folder to take both from")
    group.add_argument("--vision", metavar="DIR", type=Path, help="a SigLIP, or one of ours; a .json = a new one")
    group.add_argument("--vae", metavar="DIR", type=Path, help="an AutoencoderKL; none = diffusion on pixels")
    group.add_argument("--vq", metavar="DIR", type=Path, help="a VQ tokenizer")
    group.add_argument("--from-janus", metavar="DIR", type=Path, help="a Janus in any layout")
    paths = ",".join(PATHS)
    group.add_argument("--paths", required=True, type=path_names, metavar="PATH,...", help=f"some of {paths}")


def _add_shape(group) -> None:
    group.add_argument(
        "--image-size", type=whole_number(1), metavar="N", help="side of drawn pictures (default: the parts')"
    )
    group.add_argument(
        "--patch-size",
        type=whole_number(1),
        metavar="N",
        help="diffusion: latents (default 2) or pixels (default 8) per side",
    )
    group.add_argument(
        "--unet-channels", type=channel_counts, metavar="N,", help="diffusion: of a U-Net, instead of linear patches"
    )
    group.add_argument("--prediction", default="velocity", metavar="KIND", help="velocity (default), sample or epsilon")
    group.add_argument("--bidirectional", action="store_true", help="tokens of a picture that is read see each other")
    group.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja, instead of the tokenizer's own")
    group.add_argument("--seed", type=whole_number(0), default=0, help="of what starts random (default: 0)")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder that was written."""
    template = options.chat_template
    assembly = AssemblyOptions(
        image_size=options.image_size,
        patch_size=options.patch_size,
        unet_channels=options.unet_channels,
        prediction_type=options.prediction,
        understanding_bidirectional=options.bidirectional,
        chat_template=None if template is None else template.read_text(encoding="utf-8"),
        seed=options.seed,
    )
    with new_folder(options.folder) as unfinished:
        assemble(
            options.paths,
            backbone=options.backbone,
            gguf_file=options.gguf_file,
            vision=options.vision,
            vae=options.vae,
            vq=options.vq,
            from_janus=options.from_janus,
            options=assembly,
        ).save_pretrained(unfinished)
    yield str(options.folder)
