"""Manifests: all that made a picture, as JSON in the text of its PNG, and the picture drawn again from it.

    manifest(...)    origin of the pipeline, settings, seed -> what the PNG says under "manifest"
    read_manifest    a PNG -> that, checked
    replay           drawn again, and compared

The fact a newcomer gets wrong: a checkpoint is named by the hash of its weights, not by its folder. A folder that was
trained on since has other weights, and is refused before anything is drawn. Files are hashed once: what they are is
kept in the user's cache, by path, size and times.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from PIL import Image

from hybridgen.adapters import CONFIG, is_adapter, open_pipeline
from hybridgen.evaluation import provenance
from hybridgen.evaluation.scores import write_whole
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.pipeline_settings import OF_PATH
from hybridgen.sampling.guidance import Guidance

KEY, FORMAT = "manifest", 1
_LIBRARIES = ("hybridgen", "torch", "transformers", "diffusers")
_VOLATILE = ("_diffusers_version", "transformers_version", "_name_or_path", "base_model_name_or_path")
_NEEDED = ("prompt", "path", "seed", "height", "width", "settings", "scheduler", "checkpoint", "weights", "config")


# ------------------------------------------------------------------------------------------------------- writing


def origin(checkpoint: str | Path) -> dict[str, str]:
    """Where pictures come from: the folder, and the hashes of what is in it."""
    hashes = {"weights": weights_hash(checkpoint), "config": config_hash(checkpoint)}
    return {"checkpoint": str(checkpoint), **hashes}


def manifest(
    pipeline: HybridGenPipeline,
    drawn_by: dict[str, str],
    path: str,
    prompt: str,
    seed: int,
    size: tuple[int, int],
    settings: dict,
    negative_prompt: str | None = None,
    guidance: Guidance | None = None,
    image: Path | None = None,
    read: str | None = None,
) -> dict:
    """What made one picture.

    Args:
        drawn_by: the `origin` of the pipeline.
        size: height and width in pixels.
        settings: as `HybridGenPipeline.sampling_settings` gives them, of this picture.
        guidance: what the call had as guider.
        image, read: the file of the image condition, and the path by which it was read.
    """
    scheduler = pipeline.scheduler if path == "diffusion" else None
    return {
        "format": FORMAT,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "path": path,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "settings": settings,
        "guider": None if guidance is None else _without_scales(guidance),
        "image": None if image is None else {"file": str(image), "sha256": file_hash(image), "read": read},
        "scheduler": scheduler and {"class": type(scheduler).__name__, "config": dict(scheduler.config)},
        **drawn_by,
        "dtype": str(pipeline.model.dtype).removeprefix("torch."),
        "device": pipeline.model.device.type,
        "versions": {name: version for name, version in provenance.versions().items() if name in _LIBRARIES},
    }


def _without_scales(guidance: Guidance) -> dict:
    """The settings say what the scales are."""
    scales = ("scale", "image_scale", "guidance_rescale")
    return {name: value for name, value in asdict(guidance).items() if name not in scales}


def weights_hash(checkpoint: str | Path) -> str:
    """One hash of all safetensors of a checkpoint; of an adapter, those of its model as well."""
    files = [(str(file.relative_to(folder)), file) for folder in _folders(checkpoint) for file in _weights(folder)]
    return _joined([(name, file_hash(file)) for name, file in files])


def config_hash(checkpoint: str | Path) -> str:
    """One hash of what else decides a picture: the settings of model, processor, tokenizer and codecs. Not of the
    scheduler, which a manifest holds in full, nor of versions and paths."""
    told = []
    for folder in _folders(checkpoint):
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".json", ".jinja", ".model", ".txt") and _decides(file.relative_to(folder)):
                told.append((str(file.relative_to(folder)), _content(file)))
    return _joined(told)


def _folders(checkpoint: str | Path) -> list[Path]:
    folder = Path(checkpoint)
    if not is_adapter(folder):
        return [folder]
    base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return [folder, Path(base).parent]


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def _decides(file: Path) -> bool:
    ignored = ("generation_config.json", "model_index.json", "scheduler_config.json")
    return not file.name.endswith(".index.json") and file.name not in ignored and file.name != "README.md"


def _content(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    with contextlib.suppress(ValueError):
        settings = json.loads(text)
        if isinstance(settings, dict):
            settings = {name: value for name, value in settings.items() if name not in _VOLATILE}
        text = json.dumps(settings, sort_keys=True)
    return text


def _joined(named: list[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ hashes of files


def _kept_hashes() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridgen" / "hashes.json"


def file_hash(file: str | Path) -> str:
    """SHA-256 of a file, computed once for as long as the file stays what it is. A cache that cannot be read or written
    costs time, nothing else."""
    file, kept = Path(file).resolve(), {}
    stat = file.stat()
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(_kept_hashes().read_text(encoding="utf-8"))
    known = kept.get(str(file)) if isinstance(kept, dict) else None
    if isinstance(known, dict) and known.get("state") == state:
        return known["sha256"]
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    kept = {**(kept if isinstance(kept, dict) else {}), str(file): {"state": state, "sha256": found}}
    with contextlib.suppress(OSError):
        write_whole(_kept_hashes(), json.dumps(kept))
    return found


# ------------------------------------------------------------------------------------------------------- replaying


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
    missing = sorted(set(_NEEDED) - set(facts)) if isinstance(facts, dict) else ["everything"]
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
    now["versions"] = {name: version for name, version in provenance.versions().items() if name in _LIBRARIES}
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
