"""What `hybridgen sample` takes."""

import argparse
import os
from pathlib import Path

from hybridgen.cli.arguments.types import (
    add_checkpoint,
    add_drawing_options,
    check_drawing,
    check_image,
    check_out,
    default_of,
    new_command,
    nonnegative_number,
    path_name,
    path_to,
    picture_count,
    picture_side,
    seed_number,
    share,
    share_above_0,
)
from hybridgen.core.names import OF_PATH
from hybridgen.core.recognition import SMALL, require_checkpoint, require_file

FILES = (".txt", ".jsonl", ".parquet")
_OF_EACH = ("--height", "--width", "--negative-prompt", "--image", "--edit", "--mask")  # once, or for each prompt
ABOUT = """\
Draw pictures and print the paths of the PNG files. Each carries its prompt, path, seed and settings as text,
and no file is ever written over. Picture i is drawn with seed + i, whatever is drawn beside it.

examples:
  hybridgen sample runs/demo/checkpoint --prompt "an orc wearing a purple robe, blue background" --out pictures
  hybridgen sample runs/demo/checkpoint --prompt "an elf, sand background" --path vq --num-images 8 --out elves
  hybridgen sample runs/demo/checkpoint --prompts prompts.jsonl --out drawn
  hybridgen sample runs/demo/checkpoint --prompt "an elf, sand background" --edit elf.png --mask mask.png --out edited

A file of --prompts has one a row: a line of .txt, or a row of .jsonl or .parquet with its own settings (prompt,
negative_prompt, image, edit, mask, path, seed, num_images, size, height, width, steps, guidance, ...). --out is then a
data set when all is drawn (metadata.jsonl), and the same command goes on after a stop, also on another number of
processes (accelerate launch -m hybridgen sample ...).
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "sample", "draw pictures from prompts", ABOUT)
    add_checkpoint(command, default=SMALL)
    what = command.add_argument_group("what to draw")
    what.add_argument("--prompt", action="append", help="what to draw; give it again for more prompts")
    what.add_argument("--prompts", type=path_to, metavar="FILE", help="prompts from a .txt, .jsonl or .parquet instead")
    what.add_argument(
        "--negative-prompt",
        action="append",
        help="what guidance leads away from, once or for each prompt (default: the empty prompt)",
    )
    what.add_argument("--num-images", type=picture_count, default=1, help="pictures of each prompt (default: 1)")
    for side in ("--height", "--width"):
        what.add_argument(
            side, type=picture_side, action="append", help="in pixels, once or for each prompt (default: as trained)"
        )
    what.add_argument(
        "--image",
        type=path_to,
        action="append",
        metavar="FILE",
        help="a picture that stands before the prompt, once or for each prompt",
    )
    what.add_argument(
        "--read", type=path_name, metavar="PATH", help="path by which --image is read (default: the checkpoint's first)"
    )
    what.add_argument(
        "--edit",
        type=path_to,
        action="append",
        metavar="FILE",
        help="a picture of which a region is redrawn, in its own size, once or for each prompt",
    )
    what.add_argument(
        "--mask",
        type=path_to,
        action="append",
        metavar="FILE",
        help="of the size of --edit: white where that is redrawn, black where it stays",
    )
    what.add_argument(
        "--strength",
        type=share_above_0,
        metavar="X",
        help="diffusion path: below 1, --edit is noised so far only and stays nearer to what it was (default: 1)",
    )
    how = command.add_argument_group("how to draw")
    how.add_argument("--path", type=path_name, help="diffusion or vq (default: the first that the checkpoint has)")
    how.add_argument(
        "--seed", type=seed_number, default=0, help="seed of the first picture, then + 1 each (default: 0)"
    )
    add_drawing_options(how)
    _add_guidance(command.add_argument_group("how to guide"))
    command.add_argument(
        "--out",
        type=path_to,
        default=Path("pictures"),
        metavar="DIR",
        help="folder of the PNG files (default: pictures)",
    )


def _add_guidance(group) -> None:
    number = {"type": nonnegative_number, "metavar": "X"}
    group.add_argument(
        "--guider", choices=("cfg", "apg", "zero_star"), help="plain, projected, or CFG-Zero* guidance (default: cfg)"
    )
    group.add_argument(
        "--guidance-rescale",
        type=share,
        metavar="X",
        help=f"0 to 1, against glare ({default_of('--guidance-rescale')})",
    )
    group.add_argument(
        "--guidance-interval",
        nargs=2,
        type=share,
        metavar=("START", "STOP"),
        help=f"shares of the steps that are guided ({default_of('--guidance-interval')})",
    )
    group.add_argument(
        "--image-guidance", help=f"how closely to follow --image ({default_of('--image-guidance')})", **number
    )
    group.add_argument(
        "--shift",
        help="flow matching: above 1, more steps in the noise (default: the checkpoint's, else its scheduler's)",
        **number,
    )


def _check_prompts(options: argparse.Namespace) -> None:
    require_file("file of prompts", options.prompts, f"give one that ends with {', '.join(FILES)}")
    if options.prompts.suffix.lower() not in FILES:
        raise ValueError(f"--prompts {options.prompts} does not end with {', '.join(FILES)}; rename it, or write it so")
    for name in _OF_EACH:
        given = getattr(options, name.removeprefix("--").replace("-", "_"))
        if given is not None and len(given) > 1:
            raise ValueError(
                f"{name} is given {len(given)} times, but --prompts has rows; give it once, or in the rows"
            )


def _check_edits(options: argparse.Namespace) -> None:
    for name, given in (("--mask", options.mask), ("--strength", options.strength)):
        if given is not None and options.edit is None and options.prompts is None:  # whose rows may have their own
            raise ValueError(f"{name} is about the picture that is redrawn, but none is given; give --edit FILE")
    lacks_mask = options.mask is None and options.strength in (None, 1) and options.prompts is None
    if options.edit is not None and lacks_mask:
        raise ValueError(
            "--edit has no --mask, so that nothing of it would stay; give --mask FILE, white where it is redrawn, or a "
            "--strength below 1 (diffusion)"
        )


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("give --prompt, or --prompts FILE with one a row" + (", not both" if options.prompt else ""))
    if options.prompts is not None:
        _check_prompts(options)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several processes draw from a file; give --prompts FILE, or start one process")
    check_drawing(options, [options.path] if options.path in OF_PATH else None)
    if options.read is not None and options.image is None:
        raise ValueError("--read says how to read --image, but none is given; leave it out")
    if options.image_guidance not in (None, 1) and options.image is None:
        raise ValueError("--image-guidance says how closely to follow --image, but none is given; leave it out")
    for name in _OF_EACH:
        given = getattr(options, name.removeprefix("--").replace("-", "_"))
        if given is not None and len(given) not in (1, len(options.prompt or ())):
            raise ValueError(
                f"{name} is given {len(given)} times for {len(options.prompt)} prompts; give it once, or for each"
            )
    _check_edits(options)
    for name, files in (("--image", options.image), ("--edit", options.edit), ("--mask", options.mask)):
        for file in files or ():
            check_image(name, file)
    check_out(options.out)
    require_checkpoint(options.checkpoint)
