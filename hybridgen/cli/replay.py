"""`hybridgen replay`: a picture drawn again from the manifest in its PNG (`checkpoints.manifest` makes them).

    read_manifest    a PNG -> what it says under "manifest", checked
    replay           drawn again, and compared

A manifest names a checkpoint by the hash of its weights, not by its folder: a folder that was trained on since has
other weights, and is refused before anything is drawn.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from PIL import Image

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.hashes import checkpoint_hashes
from hybridgen.checkpoints.manifest import FORMAT, KEY, is_image_of, versions
from hybridgen.cli.pictures import open_picture, png_text, png_texts, save_png
from hybridgen.cli.running import best_device, tell_steps
from hybridgen.core.names import DEFAULTS, OF_PATH
from hybridgen.core.pictures import read_picture
from hybridgen.core.progress import task_line
from hybridgen.core.recognition import checkpoint_path, require_checkpoint
from hybridgen.core.values import one_line, shown
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.guidance import Guidance

STOPPED = "nothing was written"  # after Ctrl-C
_ORIGIN = ("checkpoint", "config", "weights")
_REQUIRED = ("prompt", "path", "seed", "height", "width", "settings", "scheduler")


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
    manifest = read_manifest(file)
    folder = _find_checkpoint(manifest["checkpoint"], file) if checkpoint is None else checkpoint_path(checkpoint)
    require_checkpoint(folder, f"name the one that drew {file} after it")
    check_weights(manifest, folder)
    pipeline = best_device(open_pipeline(folder))
    if manifest.get("dtype", "float32") != "float32":
        pipeline.to(getattr(torch, manifest["dtype"]))
    _set_scheduler(pipeline, manifest["scheduler"], file)
    condition = manifest.get("image")
    with task_line() as tell:
        tell_steps(pipeline, partial(tell, "drawing, step"))
        image = pipeline(
            manifest["prompt"],
            path=manifest["path"],
            seed=_seed_of(manifest),
            negative_prompt=manifest.get("negative_prompt"),
            height=manifest["height"],
            width=manifest["width"],
            guider=None if manifest.get("guider") is None else Guidance(**manifest["guider"]),
            **{} if condition is None else {"image": _open_condition(condition, file), "read": condition["read"]},
            **_settings_of(manifest),
        ).images[0]
    new_manifest = manifest | {"checkpoint": str(folder), "device": pipeline.model.device.type, "versions": versions()}
    return Replay(image, new_manifest, *_compare(picture, image, _changes(manifest, new_manifest)))


def read_manifest(file: Path) -> dict:
    """What a PNG says of how it was made. Raises ValueError if it says nothing, or not enough."""
    text = png_texts(file).get(KEY)
    if text is None:
        raise ValueError(
            f"{file} carries no manifest, so nobody knows how it was drawn; give a PNG as `hybridgen sample` wrote it"
        )
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} carries a manifest that is not valid JSON ({error}); it was changed") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{file} carries a manifest that is no JSON object; it was changed")
    version = manifest.get("format", 0)
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"{file} carries a manifest of a later hybridgen (format {version}); update hybridgen")
    missing = sorted({*_REQUIRED, *_ORIGIN} - set(manifest))
    if missing == list(_ORIGIN):
        raise ValueError(
            f"{file} was drawn by weights that no checkpoint was known to have, so nothing can draw it again"
        )
    if missing:
        raise ValueError(f"{file} carries a manifest without {', '.join(missing)}; it was changed")
    if (what := next(_wrong_values(manifest), None)) is not None:
        raise ValueError(f"{file} carries a manifest whose {what} is none that can be drawn by; it was changed")
    before = manifest.get("prior_messages") or manifest.get("said_before")  # the older name
    if before:
        raise ValueError(
            f"{file} was drawn in a conversation, after {before} messages and parts of messages that its "
            "manifest does not hold, so its prompt alone would draw another picture"
        )
    return manifest


def _whole(lowest: int, highest: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("file", "sha256", "read"))


def _is_scheduler(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class"), str) and isinstance(value.get("config"), dict)


_FIELDS: dict[str, Callable[[Any], bool]] = {  # what must hold of a field of a manifest, where it is there
    "format": _whole(0, FORMAT),
    "prompt": _is_text,
    "negative_prompt": _is_text,
    "prior_messages": _whole(0, 1_000_000),
    "said_before": _whole(0, 1_000_000),
    "path": lambda value: _is_text(value) and value in OF_PATH,
    "seed": _whole(0, 2**64 - 1),
    "height": _whole(1, 65_536),
    "width": _whole(1, 65_536),
    "settings": lambda value: isinstance(value, dict),
    "guider": lambda value: isinstance(value, dict),
    "image": _is_image,
    "scheduler": _is_scheduler,
    "checkpoint": lambda value: _is_text(value) and value != "",
    "weights": _is_text,
    "config": _is_text,
    "dtype": lambda value: value in ("float32", "float16", "bfloat16"),
    "device": _is_text,
    "versions": lambda value: isinstance(value, dict),
}
_DECIDING = {  # settings that every manifest of a path holds; the checkpoint's own may be others by now
    "diffusion": ("num_inference_steps", "guidance_scale"),
    "vq": ("guidance_scale", "temperature"),
}
_MAY_BE_NULL = ("negative_prompt", "guider", "image", "scheduler")


def _wrong_values(manifest: dict) -> Iterator[str]:
    """The fields of a manifest, and names in its settings, that nothing can be drawn by."""
    for name, holds in _FIELDS.items():
        value = manifest.get(name)
        if name in manifest and not (holds(value) or (value is None and name in _MAY_BE_NULL)):
            yield f"{name} {shown(value)}"
    guider_fields = {field.name for field in fields(Guidance)}
    settings, path = manifest["settings"], manifest["path"]
    yield from (repr(name) for name in settings if name not in OF_PATH[path])
    yield from (f"{name} None" for name in _DECIDING[path] if settings.get(name) is None)
    yield from (repr(name) for name in manifest.get("guider") or () if name not in guider_fields)


def _find_checkpoint(named: str, drawn: Path) -> Path:
    """The folder that a manifest names; old ones name it as seen from a folder around the picture that was drawn."""
    folder = checkpoint_path(named)
    places = [folder, *(parent / folder for parent in drawn.absolute().parents)]
    return next((place for place in places if place.is_dir()), folder)


def check_weights(manifest: dict, checkpoint: Path) -> None:
    """Raises ValueError if a checkpoint is not the one that a manifest is of."""
    hashes = checkpoint_hashes(checkpoint)
    for name in ("weights", "config"):
        if hashes[name] != manifest[name]:
            what = "weights" if name == "weights" else "settings (config.json, processor or codec)"
            raise ValueError(
                f"the picture was drawn by other {what} than those of {checkpoint}: their hash was "
                f"{manifest[name][:12]}, here it is {hashes[name][:12]}; name the checkpoint that drew it"
            )


def _seed_of(manifest: dict) -> int:
    """Format 1 is of a time when the low 32 bits of a seed alone counted."""
    seed = manifest["seed"]
    return seed % (1 << 32) if manifest.get("format", 0) < 2 and isinstance(seed, int) else seed


def _settings_of(manifest: dict) -> dict:
    """With what older manifests leave out, as it was then: the checkpoint's own may be another by now."""
    settings = manifest["settings"]
    if manifest.get("guider") is None and settings.get("guidance_interval") is None:
        return settings | {"guidance_interval": DEFAULTS["guidance_interval"]}
    return settings


def _set_scheduler(pipeline: HybridGenPipeline, saved: dict | None, file: Path) -> None:
    if saved is None:
        return
    scheduler = getattr(diffusers, saved["class"], None)
    if not (isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin)):
        raise ValueError(f"{file} was drawn by {saved['class']}, which this diffusers does not have; update diffusers")
    try:
        pipeline.scheduler = scheduler.from_config(saved["config"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = one_line(error)
        raise ValueError(
            f"{file} carries settings that no {saved['class']} takes ({reason}); it was changed"
        ) from error


def _open_condition(saved: dict, drawn: Path) -> Image.Image:
    """The picture that stood before the prompt: where it was or, moved, beside the picture that was `drawn`; old
    manifests name it as seen from a folder around that. Raises ValueError if it is gone or has changed."""
    named, folder = Path(saved["file"]), drawn.absolute().parent
    for file in (named, folder / named.name, *(parent / named for parent in (folder, *folder.parents))):
        if file.is_file():
            picture = read_picture(file)
            if is_image_of(saved, file, picture):
                return picture
    raise ValueError(
        f"the picture was drawn from the image {named}, which is no longer there or has changed; put it back, or "
        f"beside {drawn}"
    )


def _changes(before: dict, after: dict) -> list[str]:
    """What differs between two manifests that may make pixels differ: versions of libraries, the device."""
    changes = [
        f"{name} was {version} and is {after['versions'].get(name, 'not there')}"
        for name, version in before.get("versions", {}).items()
        if after["versions"].get(name) != version
    ]
    if before.get("device") not in (None, after["device"]):
        changes.append(f"the device was {before['device']} and is {after['device']}")
    return changes


def _compare(before: Image.Image, after: Image.Image, changes: list[str]) -> tuple[bool, str]:
    """Whether all pixels are the same, and a sentence that says so or how they differ."""
    old, new = (np.asarray(image.convert("RGB")).astype(int) for image in (before, after))
    if old.shape != new.shape:
        sizes = f"the picture is {before.width}x{before.height}, drawn again {after.width}x{after.height}"
        return False, f"differs: {sizes}"
    why = f" ({'; '.join(changes)})" if changes else ""
    if (old == new).all():
        return True, f"identical: all {after.width}x{after.height} pixels are as they were{why}"
    differing, most = int((old != new).any(-1).sum()), int(np.abs(old - new).max())
    why = why or "; versions and weights are the same, so it was another processor, or the picture was changed"
    return False, f"differs: {differing} of {old.shape[0] * old.shape[1]} pixels, by at most {most} of 255 levels{why}"
