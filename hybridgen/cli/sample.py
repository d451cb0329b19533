"""`hybridgen sample`: pictures from prompts, as PNG files with a manifest.

Which path draws may be known only once the checkpoint is open; where `--path` is given, options of another path are
refused before.
"""

import argparse
from collections.abc import Iterator

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.manifest import image_origin, make_manifest
from hybridgen.cli.arguments.types import DRAWING_OPTIONS, drawing_settings
from hybridgen.cli.pictures import open_picture, png_text, save_png, slug, writable_folder
from hybridgen.cli.running import best_device
from hybridgen.core.names import check_belongs
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.seeds import nth_seed

STOPPED = "the pictures whose paths were printed are written"  # after Ctrl-C
_APG = {"eta": 0.0, "momentum": -0.5}  # the paper's: nothing along the prediction, against the last update


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the files."""
    settings = drawing_settings(options)
    out = writable_folder(options.out)
    files, negatives = (_for_each(options, given) for given in (options.image, options.negative_prompt))
    opened = {file: open_picture(file) for file in options.image or ()}
    condition = {} if options.image is None else {"image": [opened[file] for file in files]}
    pipeline = best_device(open_pipeline(options.checkpoint))
    path = pipeline.writing_path(options.path)
    guidance = _guidance(options, path)
    check_belongs(settings, [path], DRAWING_OPTIONS)
    settings = pipeline.sampling_settings(path, **settings)
    if options.image is not None:
        condition["read"] = options.read or pipeline.model.config.paths[0]
    origins = {file: image_origin(file, picture, condition["read"]) for file, picture in opened.items()}
    images = pipeline(
        options.prompt,
        path=path,
        seed=options.seed,
        negative_prompt=negatives,
        num_images_per_prompt=options.num_images,
        height=_for_each(options, options.height),
        width=_for_each(options, options.width),
        guider=guidance,
        **condition,
        **settings,
    ).images
    for number, image in enumerate(images):
        place, seed = number // options.num_images, nth_seed(options.seed, number)
        prompt = options.prompt[place]
        made_by = make_manifest(
            pipeline,
            pipeline.origin,
            path,
            prompt,
            seed,
            (image.height, image.width),
            settings,
            negative_prompt=negatives[place],
            guidance=guidance,
            image=origins.get(files[place]),
        )
        yield str(save_png(image, out, f"{slug(prompt)}-{path}-seed{seed}", png_text(made_by)))


def _guidance(options: argparse.Namespace, path: str) -> Guidance | None:
    if options.guider is None and options.guidance_interval is None:
        return None
    method, (start, stop) = options.guider or "cfg", options.guidance_interval or (0.0, 1.0)
    apg = {name: value for name, value in _APG.items() if method == "apg" and (path != "vq" or name != "momentum")}
    return Guidance(method=method, start=start, stop=stop, **apg)


def _for_each(options: argparse.Namespace, given: list | None) -> list:
    """What is given for each prompt: what is given once holds for all, and what is not given is None."""
    return given if given is not None and len(given) > 1 else (given or [None]) * len(options.prompt)
