"""What `hybridgen init` takes."""

import argparse

from hybridgen.cli.arguments.types import channel_counts, new_command, path_names, path_to, seed_number, whole_number
from hybridgen.core.names import CHAT_TEMPLATES, PATHS
from hybridgen.core.recognition import check_absent, does_not_exist, is_there, require_folder

PREDICTIONS = ("velocity", "sample", "epsilon")
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
    command.add_argument("folder", metavar="DST", type=path_to, help="folder to write; it must not be there yet")
    _add_parts(command.add_argument_group("what it is made of"))
    _add_shape(command.add_argument_group("how the new paths are built"))


def _add_parts(group) -> None:
    group.add_argument("--backbone", metavar="DIR", type=path_to, help="a Llama or Qwen decoder with its tokenizer")
    group.add_argument("--gguf-file", metavar="NAME", help="a file in that folder to take both from")
    group.add_argument("--vision", metavar="DIR", type=path_to, help="a SigLIP, or one of ours; a .json = a new one")
    group.add_argument("--vae", metavar="DIR", type=path_to, help="an AutoencoderKL; none = diffusion on pixels")
    group.add_argument("--vq", metavar="DIR", type=path_to, help="a VQ tokenizer")
    group.add_argument("--from-janus", metavar="DIR", type=path_to, help="a Janus in any layout")
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
    group.add_argument("--prediction", default="velocity", choices=PREDICTIONS, help="(default: velocity)")
    group.add_argument("--bidirectional", action="store_true", help="tokens of a picture that is read see each other")
    group.add_argument(
        "--chat-template",
        metavar="FILE",
        help=f"Jinja, or one of {', '.join(CHAT_TEMPLATES)}, instead of the tokenizer's own",
    )
    group.add_argument("--seed", type=seed_number, default=0, help="of what starts random (default: 0)")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening a part."""
    check_absent(options.folder)
    if options.backbone is None and options.from_janus is None:
        given = "--gguf-file names a file in --backbone, but" if options.gguf_file else "a hybrid needs a backbone, but"
        raise ValueError(
            f"{given} neither --backbone nor --from-janus is given; give the folder of a decoder or a Janus"
        )
    for what, folder in (("backbone", options.backbone), ("VAE", options.vae), ("VQ tokenizer", options.vq)):
        if folder is not None:
            require_folder(what, folder, "give a folder that save_pretrained wrote")
    if options.from_janus is not None:
        require_folder("Janus", options.from_janus, "give the folder of a checkpoint")
    if options.vision is not None and not is_there(options.vision):
        raise does_not_exist("vision tower", options.vision, "give a folder that save_pretrained wrote, or a .json")
