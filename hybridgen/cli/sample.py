"""`hybridgen sample`: pictures from prompts, as PNG files with a manifest.

Which path draws may be known only once the checkpoint is open; where `--path` is given, options of another path are
refused before.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.manifest import make_manifest
from hybridgen.cli.arguments import (
    DRAWING_OPTIONS,
    add_checkpoint,
    add_drawing_options,
    default_of,
    drawing_settings,
    new_command,
    nonnegative_number,
    path_name,
    whole_number,
)
from hybridgen.cli.pictures import open_picture, png_text, save_png, slug, writable_folder
from hybridgen.cli.running import best_device
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.settings import OF_PATH, check_belongs

ABOUT = """\
Draw pictures and print the paths of the PNG files. Each carries its prompt, path, seed and settings as text,
and no file is ever written over. Picture i is drawn with seed + i, whatever is drawn beside it.

examples:
  hybridgen sample runs/demo/checkpoint --prompt "an orc wearing a purple robe, blue background" --out pictures
  hybridgen sample runs/demo/checkpoint --prompt "an elf, sand background" --path vq --num-images 8 --out elves
"""
_GUIDERS = {"apg": {"eta": 0.0, "momentum": -0.5}}  # the paper's: nothing along the prediction, against the last update


def add_arguments(commands) -> None:
    command = new_command(commands, "sample", "draw pictures from prompts", ABOUT)
    add_checkpoint(command)
    what = command.add_argument_group("what to draw")
    what.add_argument("--prompt", action="append", required=True, help="what to draw; give it again for more prompts")
    what.add_argument("--negative-prompt", help="what guidance leads away from (default: the empty prompt)")
    what.add_argument("--num-images", type=whole_number(1), default=1, help="pictures of each prompt (default: 1)")
    for side in ("--height", "--width"):
        what.add_argument(
            side, type=whole_number(1), action="append", help="in pixels, once or for each prompt (default: as trained)"
        )
    what.add_argument("--image", type=Path, metavar="FILE", help="a picture that stands before the prompt")
    what.add_argument(
        "--read", type=path_name, metavar="PATH", help="path by which --image is read (default: the checkpoint's first)"
    )
    how = command.add_argument_group("how to draw")
    how.add_argument("--path", type=path_name, help="diffusion or vq (default: the first that the checkpoint has)")
    how.add_argument(
        "--seed", type=whole_number(0), default=0, help="seed of the first picture, then + 1 each (default: 0)"
    )
    add_drawing_options(how)
    _add_guidance(command.add_argument_group("how to guide"))
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNG files")


def _add_guidance(group) -> None:
    number = {"type": nonnegative_number, "metavar": "X"}
    group.add_argument(
        "--guider", choices=("cfg", "apg", "zero_star"), help="plain, projected, or CFG-Zero* guidance (default: cfg)"
    )
    group.add_argument(
        "--guidance-rescale", help=f"0 to 1, against glare ({default_of('--guidance-rescale')})", **number
    )
    group.add_argument(
        "--guidance-interval",
        nargs=2,
        type=nonnegative_number,
        metavar=("START", "STOP"),
        help="shares of the steps that are guided (default: 0 1)",
    )
    group.add_argument(
        "--image-guidance", help=f"how closely to follow --image ({default_of('--image-guidance')})", **number
    )
    group.add_argument(
        "--shift",
        help="flow matching: above 1, more steps in the noise (default: the checkpoint's, else its scheduler's)",
        **number,
    )


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the files."""
    guidance, settings = _guidance(options), drawing_settings(options)
    if options.path in OF_PATH:
        check_belongs(settings, [options.path], DRAWING_OPTIONS)
    if options.read is not None and options.image is None:
        raise ValueError("--read says how to read --image, but none is given; leave it out")
    out = writable_folder(options.out)
    condition = {} if options.image is None else {"image": open_picture(options.image)}
    pipeline = best_device(open_pipeline(options.checkpoint))
    path = pipeline.writing_path(options.path)
    check_belongs(settings, [path], DRAWING_OPTIONS)
    settings = pipeline.sampling_settings(path, **settings)
    if options.image is not None:
        condition["read"] = options.read or pipeline.model.config.paths[0]
    images = pipeline(
        options.prompt,
        path=path,
        seed=options.seed,
        negative_prompt=options.negative_prompt,
        num_images_per_prompt=options.num_images,
        height=_one_or_each(options.height),
        width=_one_or_each(options.width),
        guider=guidance,
        **condition,
        **settings,
    ).images
    for number, image in enumerate(images):
        prompt, seed = options.prompt[number // options.num_images], options.seed + number
        made_by = make_manifest(
            pipeline,
            pipeline.origin,
            path,
            prompt,
            seed,
            (image.height, image.width),
            settings,
            negative_prompt=options.negative_prompt,
            guidance=guidance,
            image=options.image,
            read=condition.get("read"),
        )
        yield str(save_png(image, out, f"{slug(prompt)}-{path}-seed{seed}", png_text(made_by)))


def _guidance(options: argparse.Namespace) -> Guidance | None:
    if options.guider is None and options.guidance_interval is None:
        return None
    method, (start, stop) = options.guider or "cfg", options.guidance_interval or (0.0, 1.0)
    return Guidance(method=method, start=start, stop=stop, **_GUIDERS.get(method, {}))


def _one_or_each(sides: list[int] | None) -> int | list[int] | None:
    """A side that is given once holds for all prompts."""
    return sides[0] if sides is not None and len(sides) == 1 else sides
