"""Manifests read again: how a picture was drawn, as its PNG says, and whether it comes out the same.

Nothing of a manifest is believed: a file may have been changed, or made to look like one of ours.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import diffusers
import numpy as np
from diffusers import SchedulerMixin
from PIL import Image

from hybridgen.checkpoints.manifest import FORMAT, KEY, versions
from hybridgen.core.names import DEFAULTS, OF_PATH
from hybridgen.core.values import one_line, shown
from hybridgen.sampling.guidance import Guidance

_ORIGIN = ("checkpoint", "config", "weights")
_REQUIRED = ("prompt", "path", "seed", "height", "width", "settings", "scheduler")


def read_manifest(texts: dict[str, str], file: object) -> dict:
    """What a PNG says of how it was made.

    Args:
        texts: its text fields, see `png.png_texts`.
        file: what errors call it.

    Raises:
        ValueError: it says nothing, or not enough.
    """
    text = texts.get(KEY)
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
    return _is_file(value) and _is_text(value.get("read"))


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(value.get(key)) for key in ("file", "sha256"))


def _is_edit(value: Any) -> bool:
    if not _is_file(value) or not (value.get("mask") is None or _is_file(value["mask"])):
        return False
    strength = value.get("strength")
    return isinstance(strength, int | float) and not isinstance(strength, bool) and 0 < strength <= 1


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
    "edit": _is_edit,
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
_MAY_BE_NULL = ("negative_prompt", "guider", "image", "edit", "scheduler")


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


def check_weights(manifest: dict, hashes: dict[str, str], checkpoint: object) -> None:
    """Raises ValueError if a checkpoint is not the one that a manifest is of.

    Args:
        hashes: of the checkpoint (`hashes.checkpoint_hashes`).
        checkpoint: what errors call it.
    """
    for name in ("weights", "config"):
        if hashes[name] != manifest[name]:
            what = "weights" if name == "weights" else "settings (config.json, processor or codec)"
            raise ValueError(
                f"the picture was drawn by other {what} than those of {checkpoint}: their hash was "
                f"{manifest[name][:12]}, here it is {hashes[name][:12]}; name the checkpoint that drew it"
            )


def call_arguments(manifest: dict) -> dict:
    """What the pipeline is called with to draw the picture again, but for other pictures: one before its prompt, or one
    that it is an edit of.

    What older manifests leave out is filled in as it was then: the checkpoint's own may be another by now.
    """
    settings, seed, guider = manifest["settings"], manifest["seed"], manifest.get("guider")
    if guider is None and settings.get("guidance_interval") is None:
        settings = settings | {"guidance_interval": DEFAULTS["guidance_interval"]}
    if manifest.get("format", 0) < 2:
        seed %= 1 << 32  # of a time when the low 32 bits of a seed alone counted
    named = {name: manifest.get(name) for name in ("prompt", "path", "negative_prompt", "height", "width")}
    return {**named, "seed": seed, "guider": None if guider is None else Guidance(**guider), **settings}


def scheduler_of(manifest: dict, file: object) -> SchedulerMixin | None:
    """The scheduler that a picture was drawn by; None = it had none. Raises ValueError for what is none."""
    if (saved := manifest["scheduler"]) is None:
        return None
    scheduler = getattr(diffusers, saved["class"], None)
    if not (isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin)):
        raise ValueError(f"{file} was drawn by {saved['class']}, which this diffusers does not have; update diffusers")
    try:
        return scheduler.from_config(saved["config"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = one_line(error)
        raise ValueError(
            f"{file} carries settings that no {saved['class']} takes ({reason}); it was changed"
        ) from error


def drawn_here(manifest: dict, device: str) -> dict:
    """The manifest of the picture that is drawn again, on this device by these libraries."""
    return manifest | {"device": device, "versions": versions()}


def compare(before: Image.Image, after: Image.Image, manifest: dict, new_manifest: dict) -> tuple[bool, str]:
    """Whether all pixels are the same, and a sentence that says so or how they differ, and what may be why."""
    changes = _changes(manifest, new_manifest)
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
