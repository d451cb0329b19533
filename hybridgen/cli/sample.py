"""`hybridgen sample`: pictures from prompts, as PNG files with a manifest.

Which path draws may be known only once the checkpoint is open; where `--path` is given, options of another path are
refused before.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.manifest import edit_origin, image_origin, make_manifest
from hybridgen.checkpoints.png import png_text, slug
from hybridgen.cli import sample_file
from hybridgen.cli.arguments.types import DRAWING_OPTIONS, drawing_settings
from hybridgen.cli.errors import one_line
from hybridgen.cli.pictures import open_picture, save_png
from hybridgen.cli.running import best_device, guidance_named, tell_steps
from hybridgen.core.names import check_belongs
from hybridgen.core.progress import TaskLine, task_line
from hybridgen.sampling.seeds import nth_seed

STOPPED = "the pictures whose paths were printed are written; with --prompts, the same command goes on"  # after Ctrl-C
BATCH = 32  # pictures between two that are written: guided, 64 rows of the backbone


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the files."""
    if options.prompts is not None:
        yield from sample_file.run(options, BATCH)
    else:
        with task_line() as tell:
            yield from _draw(options, tell)


def _draw(options: argparse.Namespace, tell: TaskLine) -> Iterator[str]:
    """
    1. Open the checkpoint, and check every prompt and setting before the first picture.
    2. Draw batch by batch, and write each picture as its batch is done.
    """
    settings = drawing_settings(options)
    files, negatives = (_for_each(options, given) for given in (options.image, options.negative_prompt))
    edits, masks = (_for_each(options, given) for given in (options.edit, options.mask))
    given = [*(options.image or ()), *(options.edit or ()), *(options.mask or ())]
    opened = {None: None, **{file: open_picture(file) for file in given}}
    pipeline = best_device(open_pipeline(options.checkpoint))
    path = pipeline.writing_path(options.path)
    guidance = guidance_named(options.guider, path)
    check_belongs(settings, [path], DRAWING_OPTIONS)
    settings = pipeline.sampling_settings(path, **settings)
    read = None if options.image is None else options.read or pipeline.model.config.paths[0]
    origins = {file: image_origin(file, opened[file], read) for file in options.image or ()}
    of_all = {"path": path, "guider": guidance, "read": read, "strength": options.strength, **settings}
    of_each = {
        "prompt": options.prompt,
        "negative_prompt": negatives,
        "height": _for_each(options, options.height),
        "width": _for_each(options, options.width),
    }
    if options.image is not None:
        of_each["image"] = [opened[file] for file in files]
    if options.edit is not None:
        of_each["edit_image"] = [opened[file] for file in edits]
    if options.mask is not None:
        of_each["mask_image"] = [opened[file] for file in masks]
    pipeline.check_call(**of_each, **of_all)
    edited = [
        None if edit is None else edit_origin(edit, opened[edit], mask, opened[mask], options.strength)
        for edit, mask in zip(edits, masks, strict=True)
    ]

    total, first = len(options.prompt) * options.num_images, 0
    calls, what = -(-total // BATCH), f"drawing {total:,} {'picture' if total == 1 else 'pictures'}, step"
    tell_steps(pipeline, lambda step, of: tell(what, first // BATCH * of + step, calls * of))
    for first in range(0, total, BATCH):
        numbers = range(first, min(first + BATCH, total))
        places = [number // options.num_images for number in numbers]
        of_batch = {name: [values[place] for place in places] for name, values in of_each.items()}
        seeds = [nth_seed(options.seed, number) for number in numbers]
        images = pipeline(seed=seeds, **of_batch, **of_all).images
        for number, place, seed, image in zip(numbers, places, seeds, images, strict=True):
            prompt = options.prompt[place]
            size = (image.height, image.width)
            made_by = make_manifest(
                pipeline, pipeline.origin, path, prompt, seed, size, settings,
                negative_prompt=negatives[place], guidance=guidance, image=origins.get(files[place]),
                edit=edited[place],
            )  # fmt: skip
            with _saying_what_is_written(number, total):
                file = save_png(image, options.out, f"{slug(prompt)}-{path}-seed{seed}", png_text(made_by))
            yield str(file)


@contextmanager
def _saying_what_is_written(written: int, total: int) -> Iterator[None]:
    """Inside, an error of the disk says how many pictures are safe."""
    try:
        yield
    except OSError as error:
        safe = f"{written} of {total} pictures are written" if written else "no picture is written"
        raise OSError(f"{one_line(error)}; {safe}") from error


def _for_each(options: argparse.Namespace, given: list | None) -> list:
    """What is given for each prompt: what is given once holds for all, and what is not given is None."""
    return given if given is not None and len(given) > 1 else (given or [None]) * len(options.prompt)
