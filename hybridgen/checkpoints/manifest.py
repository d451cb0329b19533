"""Manifests: what made a picture, as JSON can hold it; the same whether `hybridgen sample` drew it or a conversation.

A pipeline knows what it was loaded from only for as long as its weights, and the files, are what they were then
(`Provenance`): of pictures that it draws after more training, nobody can say by what they were drawn.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from hybridgen.checkpoints.hashes import checkpoint_hashes, file_hash, weights_state
from hybridgen.core.pictures import picture_file, pixels_hash
from hybridgen.core.recognition import checkpoint_path
from hybridgen.core.versions import version_of
from hybridgen.sampling.guidance import Guidance
from hybridgen.version import __version__

KEY = "manifest"
FORMAT = 3  # the latest that is read; a picture that is no edit is written as 2, which earlier versions read too
_WITHOUT_EDIT = 2  # 1: of a seed, the low 32 bits alone counted


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a picture looks like."""
    return {"hybridgen": __version__, **{name: version(name) for name in ("torch", "transformers", "diffusers")}}


def make_manifest(
    pipe,
    drawn_by: dict[str, str],
    path: str,
    prompt: str,
    seed: int,
    size: tuple[int, int],
    settings: dict,
    negative_prompt: str | None = None,
    guidance: Guidance | None = None,
    image: dict | None = None,
    prior_messages: int = 0,
    edit: dict | None = None,
) -> dict:
    """What made one picture.

    Args:
        pipe: the `HybridGenPipeline` that drew it.
        drawn_by: its `origin`; empty = unknown, and nobody can check it.
        size: height and width in pixels.
        settings: as `HybridGenPipeline.sampling_settings` gives them, of this picture.
        guidance: what the call had as guider.
        image: the picture before the prompt, see `image_origin`.
        prior_messages: messages of a conversation, and parts of the last, before the picture and beside the prompt; 0 =
            the prompt alone draws it again.
        edit: the picture that was redrawn, see `edit_origin`.
    """
    scheduler = pipe.scheduler if path == "diffusion" else None
    return {
        "format": _WITHOUT_EDIT if edit is None else FORMAT,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "prior_messages": prior_messages,
        "path": path,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "settings": settings,
        "guider": None if guidance is None else _method_of(guidance),
        "image": image,
        **({} if edit is None else {"edit": edit}),
        "scheduler": scheduler and {"class": type(scheduler).__name__, "config": _in_order(scheduler.config)},
        **drawn_by,
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "device": pipe.model.device.type,
        "versions": versions(),
    }


def image_origin(file: str | Path, picture: Image.Image, read: str) -> dict:
    """What a manifest says of a picture that stands before the prompt: its file, named from anywhere, what was seen of
    it, and the path by which it was read."""
    return {**_file_origin(file, picture), "read": read}


def edit_origin(
    file: str | Path,
    picture: Image.Image,
    mask_file: str | Path | None,
    mask: Image.Image | None,
    strength: float | None,
) -> dict:
    """What a manifest says of a picture that is redrawn: its file and its mask's, as `image_origin` does, and the share
    of the steps that were taken."""
    masked = None if mask is None else _file_origin(mask_file, mask)
    return {**_file_origin(file, picture), "mask": masked, "strength": 1.0 if strength is None else strength}


def _file_origin(file: str | Path, picture: Image.Image) -> dict:
    file = picture_file(file).absolute()
    return {"file": str(file), "sha256": file_hash(file), "pixels": pixels_hash(picture).hex()}


def is_image_of(origin: dict, file: Path, picture: Image.Image) -> bool:
    """Whether a file is the one that `image_origin` was told, or the same pixels (old manifests hold none)."""
    return file_hash(file) == origin["sha256"] or pixels_hash(picture).hex() == origin.get("pixels")


def _in_order(config: dict) -> dict:
    """A scheduler's config. The names of the values that diffusers filled in come in another order in each process."""
    name = "_use_default_values"
    return dict(config) | ({name: sorted(config[name])} if name in config else {})


def _method_of(guidance: Guidance) -> dict:
    """All of it but the scales and the interval, which stand in the settings."""
    in_settings = ("scale", "image_scale", "guidance_rescale", "start", "stop")
    return {name: value for name, value in asdict(guidance).items() if name not in in_settings}


class Provenance:
    """The folder that weights were loaded from, for as long as they, and its files, are what they were then.

    Args:
        folder: of the checkpoint.
        components: its modules with weights, as loaded.
    """

    def __init__(self, folder: str | Path, components: list[nn.Module]):
        self._folder = checkpoint_path(folder)
        self._files, self._weights = weights_state(folder), _weights_versions(components)
        self._samples = [_sample_of(component) for component in components]
        self._origin: dict[str, str] | None = None  # hashed once

    def origin(self, components: list[nn.Module]) -> dict[str, str]:
        """The folder and its hashes; empty where weights or files have changed since.

        Another dtype is no change, as a manifest says which it is; a second one may be: what was rounded stays so.
        """
        if not self.holds(components):
            return {}
        if self._origin is None:
            self._origin = checkpoint_hashes(self._folder) if self._files == weights_state(self._folder) else {}
        return self._origin

    def holds(self, components: list[nn.Module]) -> bool:
        """Whether the weights are what they were then."""
        if self._weights != _weights_versions(components):
            return False
        samples = [_sample_of(component) for component in components]
        pairs = [(loaded, now) for loaded, now in zip(self._samples, samples, strict=True) if now is not None]
        return all(torch.equal(loaded.to(now.dtype), now) for loaded, now in pairs)

    @contextmanager
    def moving(self, components: list[nn.Module]) -> Iterator[None]:
        """Inside, weights are put into other tensors without another value, as offloading does: no change."""
        held = self.holds(components)
        yield
        self._weights = _weights_versions(components) if held else []  # changed before: never to be known again


def _sample_of(component: nn.Module) -> Tensor | None:
    """Some values of a module's largest weight, on the CPU; None while it is offloaded layer by layer."""
    largest = max(component.parameters(), key=Tensor.numel, default=torch.zeros(0)).detach().flatten()
    if "_hf_hook" in component.__dict__ and largest.is_meta:
        return None
    return largest[:: max(1, len(largest) // 64)].cpu().clone()


def _weights_versions(components: list[nn.Module]) -> list[tuple[int, int, int]]:
    """The identity of each module, its number of weights, and how often they were changed in place."""
    counted = [[version_of(parameter) for parameter in component.parameters()] for component in components]
    return [(id(part), len(versions), sum(versions)) for part, versions in zip(components, counted, strict=True)]
