"""`hybridgen sample` and `hybridgen replay`: pictures from prompts, and drawn again from what their PNGs say.

Drawing is the pipeline's, manifests are `manifest`'s. The fact a newcomer gets wrong: which path draws may be known
only once the checkpoint is open; where `--path` is given, options of another path are refused before.
"""

import argparse
from collections.abc import Iterator

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.manifest import manifest
from hybridgen.cli import demo
from hybridgen.cli.arguments_drawing import OPTIONS, settings_given
from hybridgen.cli.pictures import folder_to_write, in_png, open_picture, save_png, slug
from hybridgen.cli.replay import replay
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.settings import OF_PATH, check_belongs

_GUIDERS = {"apg": {"eta": 0.0, "momentum": -0.5}}  # the paper's: nothing along the prediction, against the last update


def sample(options: argparse.Namespace) -> Iterator[str]:
    """Yields the files."""
    guidance, given = _guidance(options), settings_given(options)
    if options.path in OF_PATH:
        check_belongs(given, [options.path], OPTIONS)
    if options.read is not None and options.image is None:
        raise ValueError("--read says how to read --image, but none is given; leave it out")
    out = folder_to_write(options.out)
    condition = {} if options.image is None else {"image": open_picture(options.image)}
    pipeline = demo.best_device(open_pipeline(options.checkpoint))
    path = pipeline.writing_path(options.path)
    check_belongs(given, [path], OPTIONS)
    settings = pipeline.sampling_settings(path, **given)
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
        made = manifest(
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
        yield str(save_png(image, out, f"{slug(prompt)}-{path}-seed{seed}", in_png(made)))


def again(options: argparse.Namespace) -> Iterator[str]:
    """Yields the new file, where one is asked for, and the verdict."""
    picture = open_picture(options.picture)
    out = None if options.out is None else folder_to_write(options.out)
    drawn = replay(options.picture, picture, options.checkpoint)
    if out is not None:
        yield str(save_png(drawn.image, out, options.picture.stem, in_png(drawn.facts)))
    yield drawn.verdict
    return 0 if drawn.identical else 1


def _guidance(options: argparse.Namespace) -> Guidance | None:
    if options.guider is None and options.guidance_interval is None:
        return None
    method, (start, stop) = options.guider or "cfg", options.guidance_interval or (0.0, 1.0)
    return Guidance(method=method, start=start, stop=stop, **_GUIDERS.get(method, {}))


def _one_or_each(values: list[int] | None) -> int | list[int] | None:
    return values[0] if values is not None and len(values) == 1 else values
