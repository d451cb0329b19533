"""What made a picture, as JSON can hold it: the same whether `hybridgen sample` drew it or a conversation.

The fact a newcomer gets wrong: a pipeline knows what it was loaded from only for as long as its weights, and the files,
are what they were then. One that was trained since draws pictures of which nobody can say by what.
"""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hybridgen.checkpoints.hashes import file_hash, origin, weights_state
from hybridgen.checkpoints.loading import WEIGHTS
from hybridgen.sampling.guidance import Guidance
from hybridgen.version import __version__

if TYPE_CHECKING:
    from hybridgen.pipeline_hybridgen import HybridGenPipeline

KEY, FORMAT = "manifest", 1


def versions() -> dict[str, str]:
    """Of the libraries that decide pictures."""
    return {"hybridgen": __version__, **{name: version(name) for name in ("torch", "transformers", "diffusers")}}


def manifest(
    pipeline: "HybridGenPipeline",
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
    prior_messages: int = 0,
) -> dict:
    """What made one picture.

    Args:
        drawn_by: the `origin` of the pipeline; empty = unknown, and nobody can check it.
        size: height and width in pixels.
        settings: as `HybridGenPipeline.sampling_settings` gives them, of this picture.
        guidance: what the call had as guider.
        image, read: the file of the image condition, and the path by which it was read.
        prior_messages: messages of a conversation, and parts of the last, before the picture and beside the prompt; with 0
            the prompt alone draws it again.
    """
    scheduler = pipeline.scheduler if path == "diffusion" else None
    return {
        "format": FORMAT,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "prior_messages": prior_messages,
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
        "versions": versions(),
    }


def _without_scales(guidance: Guidance) -> dict:
    """The settings say what the scales are."""
    scales = ("scale", "image_scale", "guidance_rescale")
    return {name: value for name, value in asdict(guidance).items() if name not in scales}


class Manifesting:
    """Mixed into the pipeline: what it was loaded from."""

    _loaded: tuple[Path, list, list] | None = None
    _origin: dict[str, str] | None = None  # hashed once

    def loaded_from(self, folder: str | Path) -> None:
        """All weights are now those of this folder."""
        self._loaded, self._origin = (Path(folder), weights_state(folder), self._weights()), None

    @property
    def origin(self) -> dict[str, str]:
        """The folder and its hashes; empty where it was made of parts, or weights or files have changed since."""
        if self._loaded is None or self._loaded[2] != self._weights():
            return {}
        folder, files, _ = self._loaded
        if self._origin is None:
            self._origin = origin(folder) if files == weights_state(folder) else {}
        return self._origin

    def _weights(self) -> list[tuple[int, int, int]]:
        """Which modules they are in, and how often they were changed there."""
        parts = [part for name in WEIGHTS if (part := getattr(self, name, None)) is not None]
        counted = [[parameter._version for parameter in part.parameters()] for part in parts]
        return [(id(part), len(each), sum(each)) for part, each in zip(parts, counted, strict=True)]
