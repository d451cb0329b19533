"""`hybridgen replay`: a picture drawn again from the manifest in its PNG (`checkpoints.manifest` makes them).

What a manifest says is read and checked by `checkpoints.replaying`. It names a checkpoint by the hash of its weights,
not by its folder: a folder that was trained on since has other weights, and is refused before anything is drawn.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.hashes import checkpoint_hashes
from hybridgen.checkpoints.manifest import is_image_of
from hybridgen.checkpoints.png import png_text, png_texts
from hybridgen.checkpoints.replaying import (
    call_arguments,
    check_weights,
    compare,
    drawn_here,
    read_manifest,
    scheduler_of,
)
from hybridgen.cli.pictures import open_picture, save_png
from hybridgen.cli.running import best_device, tell_steps
from hybridgen.core.pictures import read_picture
from hybridgen.core.progress import task_line
from hybridgen.core.recognition import checkpoint_path, require_checkpoint

STOPPED = "nothing was written"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the new file, where a folder is given for it, and the verdict; returns 1 if the pictures differ."""
    picture = open_picture(options.picture)
    replayed = replay(options.picture, picture, options.checkpoint)
    if options.out is not None:
        yield str(save_png(replayed.image, options.out, options.picture.stem, png_text(replayed.manifest)))
    yield replayed.verdict
    return 0 if replayed.identical else 1


@dataclass(frozen=True)
class Replay:
    """A picture drawn again.

    Args:
        image: the new picture.
        manifest: of the new picture.
        identical: whether every pixel is as it was.
        verdict: that, in one sentence.
    """

    image: Image.Image
    manifest: dict
    identical: bool
    verdict: str


def replay(file: Path, picture: Image.Image, checkpoint: Path | None = None) -> Replay:
    """Draw a picture again, as its manifest says, and compare.

    Args:
        checkpoint: None = the folder that the manifest names.

    Raises:
        ValueError: there is no manifest, or it is of other weights; before anything is drawn.
    """
    manifest = read_manifest(png_texts(file), file)
    folder = _find_checkpoint(manifest["checkpoint"], file) if checkpoint is None else checkpoint_path(checkpoint)
    require_checkpoint(folder, f"name the one that drew {file} after it")
    check_weights(manifest, checkpoint_hashes(folder), folder)
    pipeline = best_device(open_pipeline(folder))
    if manifest.get("dtype", "float32") != "float32":
        pipeline.to(getattr(torch, manifest["dtype"]))
    if (scheduler := scheduler_of(manifest, file)) is not None:
        pipeline.scheduler = scheduler
    pictures = _pictures_of(manifest, file)
    with task_line() as tell:
        tell_steps(pipeline, partial(tell, "drawing, step"))
        image = pipeline(**call_arguments(manifest), **pictures).images[0]
    new_manifest = drawn_here(manifest, pipeline.model.device.type) | {"checkpoint": str(folder)}
    return Replay(image, new_manifest, *compare(picture, image, manifest, new_manifest))


def _find_checkpoint(named: str, drawn: Path) -> Path:
    """The folder that a manifest names; old ones name it as seen from a folder around the picture that was drawn."""
    folder = checkpoint_path(named)
    places = [folder, *(parent / folder for parent in drawn.absolute().parents)]
    return next((place for place in places if place.is_dir()), folder)


def _pictures_of(manifest: dict, drawn: Path) -> dict:
    """What the pipeline is called with of other pictures than the one that was `drawn`."""
    pictures = {}
    if (before := manifest.get("image")) is not None:
        pictures |= {"image": _open_saved(before, "image", drawn), "read": before["read"]}
    if (edit := manifest.get("edit")) is not None:
        pictures |= {"edit_image": _open_saved(edit, "image", drawn), "strength": edit["strength"]}
        if edit["mask"] is not None:
            pictures["mask_image"] = _open_saved(edit["mask"], "mask", drawn)
    return pictures


def _open_saved(saved: dict, what: str, drawn: Path) -> Image.Image:
    """A picture that a manifest names: where it was or, moved, beside the picture that was `drawn`; old manifests name
    it as seen from a folder around that. Raises ValueError if it is gone or has changed."""
    named, folder = Path(saved["file"]), drawn.absolute().parent
    for file in (named, folder / named.name, *(parent / named for parent in (folder, *folder.parents))):
        if file.is_file():
            picture = read_picture(file)
            if is_image_of(saved, file, picture):
                return picture
    raise ValueError(
        f"the picture was drawn from the {what} {named}, which is no longer there or has changed; put it back, or "
        f"beside {drawn}"
    )
