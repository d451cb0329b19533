"""Manifests read again (`pipeline_manifest` makes them): a picture drawn once more from the text of its PNG.

    read_manifest    a PNG -> what it says under "manifest", checked
    replay           drawn again, and compared

The fact a newcomer gets wrong: a checkpoint is named by the hash of its weights, not by its folder. A folder that was
trained on since has other weights, and is refused before anything is drawn.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from PIL import Image

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.hashes import file_hash, origin
from hybridgen.checkpoints.manifest import FORMAT, KEY, versions
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.settings import OF_PATH

_ORIGIN = ("checkpoint", "config", "weights")
_NEEDED = ("prompt", "path", "seed", "height", "width", "settings", "scheduler")


@dataclass(frozen=True)
class Replay:
    """A picture drawn again.

    Args:
        image: the new one.
        facts: its manifest.
        identical: whether every pixel is as it was.
        verdict: that, in one sentence.
    """

    image: Image.Image
    facts: dict
    identical: bool
    verdict: str


def read_manifest(file: Path, picture: Image.Image) -> dict:
    """What a PNG says of how it was made. Raises ValueError if it says nothing, or not enough."""
    text = getattr(picture, "text", {}).get(KEY)
    if text is None:
        raise ValueError(
            f"{file} carries no manifest, so nobody knows how it was drawn; give a PNG as `hybridgen sample` wrote it"
        )
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} carries a manifest that is not valid JSON ({error}); it was changed") from error
    missing = sorted({*_NEEDED, *_ORIGIN} - set(facts)) if isinstance(facts, dict) else ["everything"]
    if missing == list(_ORIGIN):
        raise ValueError(
            f"{file} was drawn by weights that no checkpoint was known to have, so nothing can draw it again"
        )
    if missing:
        raise ValueError(f"{file} carries a manifest without {', '.join(missing)}; it was changed")
    known = OF_PATH.get(facts["path"], ())
    guider = [field.name for field in fields(Guidance)]
    strange = [
        *(name for name in ("settings",) if not isinstance(facts[name], dict)),
        *(name for name in facts["settings"] or () if name not in known),
        *(name for name in facts.get("guider") or () if name not in guider),
        *(name for name in ("class", "config") if facts["scheduler"] is not None and name not in facts["scheduler"]),
    ]
    if not known or strange:
        what = f"{strange[0]!r}" if known else f"path {facts['path']!r}"
        raise ValueError(f"{file} carries a manifest whose {what} is none that can be drawn by; it was changed")
    if prior := facts.get("prior_messages", facts.get("said_before")):  # older PNGs' name
        raise ValueError(
            f"{file} was drawn in a conversation, after {prior} messages and parts of messages that its "
            "manifest does not hold, so its prompt alone would draw another picture"
        )
    if facts.get("format", 0) > FORMAT:
        raise ValueError(f"{file} carries a manifest of a later hybridgen (format {facts['format']}); update hybridgen")
    return facts


def check_weights(facts: dict, checkpoint: Path) -> None:
    """Raises ValueError if a checkpoint is not the one that a manifest is of."""
    found = origin(checkpoint)
    for name in ("weights", "config"):
        if (there := found[name]) != facts[name]:
            what = "weights" if name == "weights" else "settings (config.json, processor or codec)"
            raise ValueError(
                f"the picture was drawn by other {what} than those of {checkpoint}: their hash was "
                f"{facts[name][:12]}, here it is {there[:12]}; name the checkpoint that drew it"
            )


def replay(file: Path, picture: Image.Image, checkpoint: Path | None = None) -> Replay:
    """Draw a picture again, as its manifest says, and compare.

    Args:
        checkpoint: None = the folder that the manifest names.

    Raises:
        ValueError: there is no manifest, or it is of other weights; before anything is drawn.
    """
    facts = read_manifest(file, picture)
    folder = Path(facts["checkpoint"]) if checkpoint is None else Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"checkpoint {folder} does not exist; name the one that drew {file} after it")
    check_weights(facts, folder)
    pipeline = open_pipeline(folder)
    if torch.cuda.is_available():
        pipeline.to("cuda")
    if hasattr(torch, facts.get("dtype", "")) and facts["dtype"] != "float32":
        pipeline.to(getattr(torch, facts["dtype"]))
    _set_scheduler(pipeline, facts["scheduler"], file)
    condition = facts.get("image")
    image = pipeline(
        facts["prompt"],
        path=facts["path"],
        seed=facts["seed"],
        negative_prompt=facts.get("negative_prompt"),
        height=facts["height"],
        width=facts["width"],
        guider=None if facts.get("guider") is None else Guidance(**facts["guider"]),
        **{} if condition is None else {"image": _condition(condition), "read": condition["read"]},
        **facts["settings"],
    ).images[0]
    now = facts | {"checkpoint": str(folder), "device": pipeline.model.device.type}
    now["versions"] = versions()
    return Replay(image, now, *_compared(picture, image, facts, now))


def _set_scheduler(pipeline: HybridGenPipeline, told: dict | None, file: Path) -> None:
    if told is None:
        return
    kind = getattr(diffusers, told["class"], None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"{file} was drawn by {told['class']}, which this diffusers does not have; update diffusers")
    pipeline.scheduler = kind.from_config(told["config"])


def _condition(told: dict) -> Image.Image:
    file = Path(told["file"])
    if not file.is_file() or file_hash(file) != told["sha256"]:
        raise ValueError(f"the picture was drawn from the image {file}, which is no longer there or has changed")
    with Image.open(file) as opened:
        return opened.convert("RGB")


def _compared(before: Image.Image, after: Image.Image, then: dict, now: dict) -> tuple[bool, str]:
    old, new = (np.asarray(image.convert("RGB")).astype(int) for image in (before, after))
    others = [
        f"{name} was {version} and is {now['versions'].get(name, 'not there')}"
        for name, version in then.get("versions", {}).items()
        if now["versions"].get(name) != version
    ]
    if then.get("device") not in (None, now["device"]):
        others.append(f"the device was {then['device']} and is {now['device']}")
    why = f" ({'; '.join(others)})" if others else ""
    if old.shape != new.shape:
        return (
            False,
            f"differs: the picture is {before.width}x{before.height}, drawn again {after.width}x{after.height}",
        )
    if (old == new).all():
        return True, f"identical: all {after.width}x{after.height} pixels are as they were{why}"
    differing, most = int((old != new).any(-1).sum()), int(np.abs(old - new).max())
    why = why or "; versions and weights are the same, so it was another processor, or the picture was changed"
    return False, f"differs: {differing} of {old.shape[0] * old.shape[1]} pixels, by at most {most} of 255 levels{why}"
