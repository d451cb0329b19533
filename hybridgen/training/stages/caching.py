"""What frozen codecs and towers make of a picture, kept on disk: latents, codes, features.

An entry's key is the content of the picture as the codec sees it (its pixels, after resizing), and a folder belongs to
one set of weights: with others it is refused, never silently used or overwritten. The fact a newcomer gets wrong: an
entry is made from its picture *alone*, not in a batch, so that what is kept depends on nothing but the picture, and a
run that finds half of its entries is the same as one that finds all or none.

    cache/latents/cache.json                     {"version": 1, "weights": "..."}
    cache/latents/segment_3f0c....safetensors    entries by key; written aside, then renamed; never changed
"""

import atexit
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridgen.codecs.frozen import VAECodec, VQCodec

VERSION = 1
SEGMENT = 256  # entries that are written together
DESCRIPTION = "cache.json"


class Cache:
    """Entries of one kind.

    Args:
        folder: made if need be.
        kind: `latents`, `codes` or `features`.
        weights: what identifies the codec, see `weights_key`.

    Raises:
        ValueError: the folder holds what other weights made, or something else than a cache.
    """

    def __init__(self, folder: str | Path, kind: str, weights: str):
        self.folder = Path(folder) / kind
        self._check(kind, weights)
        self._known: dict[str, Path] = {}
        for segment in sorted(self.folder.glob("segment_*.safetensors")):
            try:
                with safe_open(segment, "pt") as entries:
                    self._known |= dict.fromkeys(entries.keys(), segment)
            except SafetensorError as error:
                raise ValueError(f"data.cache: {segment} is no whole file of a cache ({error}); remove it") from error
        self._open: dict[Path, safe_open] = {}
        self._fresh: dict[str, Tensor] = {}
        atexit.register(self.flush)

    def _check(self, kind: str, weights: str) -> None:
        description = self.folder / DESCRIPTION
        wanted = {"version": VERSION, "weights": weights}
        if not description.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = description.with_name(f"{DESCRIPTION}.{os.getpid()}")
            aside.write_text(json.dumps(wanted), encoding="utf-8")
            os.replace(aside, description)
            return
        try:
            found = json.loads(description.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{description} is not JSON ({error.msg}); remove the folder {self.folder}") from error
        if found != wanted:
            raise ValueError(
                f"data.cache {str(self.folder.parent)!r} is stale: its {kind} were made by weights "
                f"{found.get('weights')!r}, but these are {weights!r}; remove {self.folder}, or name another folder"
            )

    def __len__(self) -> int:
        return len(self._known) + len(self._fresh)

    def all_of(self, pictures: Tensor | list[Tensor], make: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The entry of each picture (3, H, W), on its device.

        Args:
            make: pictures (1, 3, H, W) -> their entries (1, ...).
        """
        return [self._entry(picture, make) for picture in pictures]

    def _entry(self, picture: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        key = picture_key(picture)
        if key in self._fresh:
            return self._fresh[key].to(picture.device)
        if key in self._known:
            segment = self._known[key]
            if segment not in self._open:
                self._open[segment] = safe_open(segment, "pt")
            return self._open[segment].get_tensor(key).to(picture.device)
        entry = make(picture[None])[0].detach()
        self._fresh[key] = entry.cpu().contiguous()
        if len(self._fresh) >= SEGMENT:
            self.flush()
        return entry

    def flush(self) -> None:
        """Write what is not yet on disk."""
        if not self._fresh or not self.folder.is_dir():
            return
        segment = self.folder / f"segment_{uuid.uuid4().hex}.safetensors"  # several processes may write
        aside = segment.with_suffix(".tmp")
        save_file(self._fresh, aside)
        os.replace(aside, segment)
        self._known |= dict.fromkeys(self._fresh, segment)
        self._fresh = {}


def picture_key(picture: Tensor) -> str:
    """What identifies the content of a picture (3, H, W)."""
    values = picture.detach().cpu().contiguous()
    shape = f"{values.dtype} {tuple(values.shape)}".encode()
    return hashlib.blake2b(shape + values.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


def weights_key(module: nn.Module) -> str:
    """What identifies a module: its kind, and every weight by name, type and value."""
    key = hashlib.blake2b(type(module).__name__.encode(), digest_size=16)
    for name, values in sorted(module.state_dict().items()):
        values = values.detach().cpu().contiguous()
        key.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        key.update(values.flatten().view(torch.uint8).numpy())
    config = getattr(module, "config", None)
    settings = {name: config.get(name) for name in ("scaling_factor", "shift_factor")} if hasattr(config, "get") else {}
    key.update(repr(settings).encode())
    return key.hexdigest()


class CachedInputs:
    """Latents, codes and features of a stage's pictures, through caches where a folder is given.

    Args:
        folder: None = nothing is kept, and pictures are encoded in batches.
        latents, vq: the codecs, None where the model has no such path.
        tower: of the understanding path.
    """

    def __init__(self, folder: str | None, latents, vq: VQCodec | None, tower: nn.Module | None):
        self._latents, self._vq, self._tower = latents, vq, tower
        self._caches: dict[str, Cache] = {}
        self._folder = folder
        if folder is None:
            return
        self._seen_by = None if tower is None else weights_key(tower)  # now, while no process shares its weights
        if isinstance(latents, VAECodec):  # pixels need no cache
            self._caches["latents"] = Cache(folder, "latents", weights_key(latents.vae))
        if vq is not None:
            self._caches["codes"] = Cache(folder, "codes", weights_key(vq.model))

    def latents(self, pictures: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """As the codec's `encode`."""
        if (cache := self._caches.get("latents")) is None:
            return self._latents.encode(pictures)
        found = cache.all_of(pictures, self._latents.encode)
        return torch.stack(found) if isinstance(pictures, Tensor) else found

    def codes(self, pictures: Tensor | list[Tensor]) -> Tensor:
        """As the codec's `encode`: codes (T,)."""
        if (cache := self._caches.get("codes")) is None:
            return self._vq.encode(pictures)
        return torch.cat(cache.all_of(pictures, lambda picture: self._vq.encode(picture)[None]))

    def features(self, pixels: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
        """Pixels (I, 3, h, w) as they are, or the tower's features (I, tokens, width) while it is frozen."""
        if self._folder is None or any(weight.requires_grad for weight in self._tower.parameters()):
            return pixels
        halved = torch.is_autocast_enabled(pixels.device.type)
        kind = "features-bf16" if halved else "features-fp32"  # a precision is part of what they are
        if kind not in self._caches:
            self._caches[kind] = Cache(self._folder, kind, self._seen_by)
        with torch.no_grad():
            return torch.stack(self._caches[kind].all_of(pixels, look))

    def flush(self) -> None:
        """Write what is not yet on disk."""
        for cache in self._caches.values():
            cache.flush()
