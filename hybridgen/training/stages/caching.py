"""Outputs of frozen codecs and towers, cached on disk: latents, codes, features.

The key of an entry is the picture's content as the codec sees it (its pixels, after resizing). A folder belongs to one
set of weights; with others it is refused, never silently used or overwritten. An entry is made from its picture alone,
not in a batch, so that it depends on nothing else: a run that has half of its entries equals one that has all or none.

    cache/latents/cache.json                     {"version": 1, "weights": "..."}
    cache/latents/segment_3f0c....safetensors    entries by key; never changed once written
"""

import atexit
import hashlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridgen.codecs.frozen import VAECodec, VQCodec
from hybridgen.core.files import read_json, whole_file, write_json

VERSION = 1
SEGMENT = 256  # entries that are written together
DESCRIPTION = "cache.json"


class EncodingCache:
    """Entries of one kind.

    Args:
        folder: of all caches; made if it is not there.
        kind: `latents`, `codes` or `features`.
        weights: identifies the codec, see `weights_key`.

    Raises:
        ValueError: the folder holds entries of other weights, or is no cache.
    """

    def __init__(self, folder: str | Path, kind: str, weights: str):
        self.folder = Path(folder) / kind
        self._check(kind, weights)
        self._segment_of: dict[str, Path] = {}
        self._segments: set[Path] = set()  # whose entries are known
        self._changed = -1  # when the folder was last, by the file system's clock
        self._look_for_segments()
        self._open: dict[Path, safe_open] = {}
        self._unwritten: dict[str, Tensor] = {}
        atexit.register(self.flush)

    def _look_for_segments(self) -> None:
        """Learn of the entries that were written since the last look, by whatever process."""
        changed = self.folder.stat().st_mtime_ns
        if changed == self._changed:
            return
        # file systems count in ticks: what changed just now may change again without another time
        self._changed = changed if time.time_ns() - changed > 1_000_000_000 else -1
        for segment in sorted(set(self.folder.glob("segment_*.safetensors")) - self._segments):
            try:
                with safe_open(segment, "pt") as entries:
                    self._segment_of |= dict.fromkeys(entries.keys(), segment)
            except SafetensorError as error:
                raise ValueError(f"data.cache: {segment} is no whole file of a cache ({error}); remove it") from error
            self._segments.add(segment)

    def _check(self, kind: str, weights: str) -> None:
        file, expected = self.folder / DESCRIPTION, {"version": VERSION, "weights": weights}
        if not file.is_file():
            write_json(file, expected)
            return
        try:
            description = read_json(file)
        except ValueError as error:
            raise ValueError(f"data.cache: {file} is not JSON; remove the folder {self.folder}") from error
        if description != expected:
            raise ValueError(
                f"data.cache {str(self.folder.parent)!r} is stale: its {kind} were made by weights "
                f"{description.get('weights')!r}, but these are {weights!r}; remove {self.folder}, or name another "
                "folder"
            )

    def __len__(self) -> int:
        return len(self._segment_of) + len(self._unwritten)

    def entries(self, pictures: Tensor | list[Tensor], encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The entry of each picture (3, H, W), on its device.

        Args:
            encode: pictures (1, 3, H, W) -> their entries (1, ...).
        """
        return [self._entry(picture, encode) for picture in pictures]

    def _entry(self, picture: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        key = picture_key(picture)
        if key in self._unwritten:
            return self._unwritten[key].to(picture.device)
        if key not in self._segment_of:
            self._look_for_segments()
        if key in self._segment_of:
            segment = self._segment_of[key]
            if segment not in self._open:
                self._open[segment] = safe_open(segment, "pt")
            return self._open[segment].get_tensor(key).to(picture.device)
        entry = encode(picture[None])[0].detach()
        self._unwritten[key] = entry.cpu().contiguous()
        if len(self._unwritten) >= SEGMENT:
            self.flush()
        return entry

    def flush(self) -> None:
        """Write the entries that are not yet on disk."""
        if not self._unwritten or not self.folder.is_dir():
            return
        segment = self.folder / f"segment_{uuid.uuid4().hex}.safetensors"  # several processes may write
        with whole_file(segment) as aside:
            save_file(self._unwritten, aside)
        self._segment_of |= dict.fromkeys(self._unwritten, segment)
        self._segments.add(segment)
        self._unwritten = {}


def picture_key(picture: Tensor) -> str:
    """A hash of the content of a picture (3, H, W)."""
    values = picture.detach().cpu().contiguous()
    shape = f"{values.dtype} {tuple(values.shape)}".encode()
    return hashlib.blake2b(shape + values.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


def weights_key(module: nn.Module) -> str:
    """A hash of a module: its class, and every weight by name, type and value."""
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
    """Latents, codes and features of a stage's pictures, from caches if there is a folder for them.

    Args:
        folder: None = nothing is cached, and pictures are encoded in batches.
        latent_codec, vq: the codecs, None where the model has no such path.
        tower: of the understanding path.
    """

    def __init__(self, folder: str | None, latent_codec, vq: VQCodec | None, tower: nn.Module | None):
        self._latent_codec, self._vq, self._tower = latent_codec, vq, tower
        self._caches: dict[str, EncodingCache] = {}
        self._folder = folder
        if folder is None:
            return
        # now, before its weights are sharded; where they are, and here are only their shapes, it is not asked for
        empty = tower is None or any(weight.is_meta for weight in tower.parameters())
        self._tower_key = None if empty else weights_key(tower)
        if isinstance(latent_codec, VAECodec):  # pixels need no cache
            self._caches["latents"] = EncodingCache(folder, "latents", weights_key(latent_codec.vae))
        if vq is not None:
            self._caches["codes"] = EncodingCache(folder, "codes", weights_key(vq.model))

    def latents(self, pictures: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """As the codec's `encode`."""
        if (cache := self._caches.get("latents")) is None:
            return self._latent_codec.encode(pictures)
        latents = cache.entries(pictures, self._latent_codec.encode)
        return torch.stack(latents) if isinstance(pictures, Tensor) else latents

    def codes(self, pictures: Tensor | list[Tensor]) -> Tensor:
        """As the codec's `encode`: codes (T,)."""
        if (cache := self._caches.get("codes")) is None:
            return self._vq.encode(pictures)
        return torch.cat(cache.entries(pictures, lambda picture: self._vq.encode(picture)[None]))

    def features(self, pixels: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Pixels (I, 3, h, w) as they are, or, if the tower is frozen and cached, its features (I, tokens, width)."""
        if self._folder is None or any(weight.requires_grad for weight in self._tower.parameters()):
            return pixels
        autocast = torch.is_autocast_enabled(pixels.device.type)
        kind = "features-bf16" if autocast else "features-fp32"  # other precision, other features
        if kind not in self._caches:
            self._caches[kind] = EncodingCache(self._folder, kind, self._tower_key)
        with torch.no_grad():
            return torch.stack(self._caches[kind].entries(pixels, encode))

    def flush(self) -> None:
        """Write the entries that are not yet on disk."""
        for cache in self._caches.values():
            cache.flush()
