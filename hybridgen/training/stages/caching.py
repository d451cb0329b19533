"""Outputs of frozen codecs and towers, cached on disk: latents, codes, features.

The key of an entry is the picture's content as it comes in a batch (its pixels, after resizing), and is made where
batches are made. A folder belongs to one set of weights; with others it is refused, never silently used or overwritten.
All processes of a run, and other runs, use one folder: what one has written the others find. On a CPU an entry is made
from its picture alone, not in a batch, which would decide its last bits: a run that has half of its entries equals one
that has all or none, and a run that was interrupted one that was not. Elsewhere, where this is not promised, what a
batch lacks is encoded at once.

    cache/latents/cache.json                     {"version": 1, "weights": "..."}
    cache/latents/segment_3f0c....safetensors    entries by key; never changed once written
"""

import atexit
import hashlib
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridgen.codecs.frozen import VAECodec, VQCodec
from hybridgen.core.files import read_json, whole_file, write_json
from hybridgen.core.sizes import Images, by_size
from hybridgen.data.loading import Batch
from hybridgen.paths.understanding import Layers

VERSION = 1
SEGMENT = 256  # entries that are written together
WRITE_SECONDS = 30  # after which fewer are written, so that other processes find them
OPEN_SEGMENTS = 64  # files that are kept open; a process may not map 65,536
SLOW_LOOK = 0.05  # seconds; a look into the folder that takes longer comes at most once in a hundred times as long
DESCRIPTION = "cache.json"
KEYS = {"keys": "as in the batch"}  # metadata of segments; older ones have keys of normalised pixels alone
CACHED = ("diffusion_images", "vq_images", "pixel_values")  # of a batch


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
        self._older_keys: dict[str, str] | None = None  # key -> that of an older segment; None = there is none
        self._changed = -1  # when the folder was last, by the file system's clock
        self._next_look = 0.0
        self._look_for_segments()
        self._opened = lru_cache(OPEN_SEGMENTS)(lambda segment: safe_open(segment, "pt"))
        self._unwritten: dict[str, Tensor] = {}
        self._unwritten_since = 0.0
        atexit.register(self.flush)

    def _look_for_segments(self) -> None:
        """Learn of the entries that were written since the last look, by whatever process."""
        started = time.monotonic()
        if started < self._next_look or (changed := self.folder.stat().st_mtime_ns) == self._changed:
            return
        # file systems count in ticks: what changed just now may change again without another time
        self._changed = changed if time.time_ns() - changed > 1_000_000_000 else -1
        for segment in sorted(set(self.folder.glob("segment_*.safetensors")) - self._segments):
            try:
                with safe_open(segment, "pt") as entries:
                    self._segment_of |= dict.fromkeys(entries.keys(), segment)
                    if entries.metadata() != KEYS and self._older_keys is None:
                        self._older_keys = {}
            except SafetensorError as error:
                raise ValueError(f"data.cache: {segment} is no whole file of a cache ({error}); remove it") from error
            self._segments.add(segment)
        took = time.monotonic() - started
        self._next_look = started + 100 * took if took > SLOW_LOOK else 0.0

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

    def entries(
        self, pictures: Images, encode: Callable[[Tensor], Tensor], keys: list[str] | None = None
    ) -> list[Tensor]:
        """The entry of each picture (3, H, W), on its device.

        1. What is not known is looked for in the folder, where another process may have written it.
        2. What is not there either is encoded, each picture once: alone on a CPU, elsewhere all of a size at once.

        Args:
            encode: pictures of one size (I, 3, H, W) -> their entries (I, ...).
            keys: of the pictures (`picture_key`), from before they were normalised; None = they are as they came.
        """
        given = list(map(picture_key, pictures)) if keys is None else keys
        of_keys = dict(zip(given, pictures, strict=True))
        if not all(map(self._has, of_keys)):
            self._look_for_segments()
        missing = [key for key in of_keys if not self._has(key)]
        if keys is not None and self._older_keys is not None:
            self._older_keys |= {key: picture_key(of_keys[key]) for key in missing}
            missing = [key for key in missing if not self._has(key)]
        made: dict[str, Tensor] = {}
        for numbers, of_one_size in by_size([of_keys[key] for key in missing]):
            batches = of_one_size.split(1) if _decides_bits(of_one_size) else [of_one_size]
            entries = torch.cat([encode(batch).detach() for batch in batches])
            made |= zip((missing[number] for number in numbers), entries, strict=True)
        found = {key: made[key] if key in made else self._read(key).to(of_keys[key].device) for key in of_keys}
        self._keep(made)
        return [found[key] for key in given]

    def _place(self, key: str) -> str:
        """The key under which an entry stands in its segment."""
        older = (self._older_keys or {}).get(key)
        return key if older is None or older not in self._segment_of else older

    def _has(self, key: str) -> bool:
        return key in self._unwritten or self._place(key) in self._segment_of

    def _read(self, key: str) -> Tensor:
        if key in self._unwritten:
            return self._unwritten[key]
        place = self._place(key)
        return self._opened(self._segment_of[place]).get_tensor(place)

    def _keep(self, made: dict[str, Tensor]) -> None:
        now = time.monotonic()
        if not self._unwritten:
            self._unwritten_since = now
        self._unwritten |= {key: entry.cpu().contiguous() for key, entry in made.items()}
        if len(self._unwritten) >= SEGMENT or now - self._unwritten_since > WRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the entries that are not yet on disk."""
        if not self._unwritten or not self.folder.is_dir():
            return
        segment = self.folder / f"segment_{uuid.uuid4().hex}.safetensors"  # several processes may write
        with whole_file(segment) as aside:
            save_file(self._unwritten, aside, KEYS)
        self._segment_of |= dict.fromkeys(self._unwritten, segment)
        self._segments.add(segment)
        self._unwritten = {}


def _decides_bits(batch: Tensor) -> bool:
    """Whether an encoder's last bits depend on what else is in the batch, where runs are promised to be so."""
    return batch.device.type == "cpu"


def picture_key(picture: Tensor) -> str:
    """A hash of the content of a picture (3, H, W)."""
    values = picture.detach().cpu().contiguous()
    key = hashlib.blake2b(f"{values.dtype} {tuple(values.shape)}".encode(), digest_size=16)
    key.update(values.view(torch.uint8).numpy())
    return key.hexdigest()


def with_keys(batch: Batch) -> Batch:
    """The batch with the key of each picture that may be cached, made where batches are made."""
    return batch | {"cache_keys": {name: list(map(picture_key, batch[name])) for name in CACHED if name in batch}}


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
        folder: None = nothing is cached.
        latent_codec, vq: the codecs, None where the model has no such path.
        tower: of the understanding path.
        layers: the tower's hidden states that are its features; None = its output.
    """

    def __init__(
        self, folder: str | None, latent_codec, vq: VQCodec | None, tower: nn.Module | None, layers: Layers = None
    ):
        self._latent_codec, self._vq, self._tower = latent_codec, vq, tower
        self._caches: dict[str, EncodingCache] = {}
        self._folder = folder
        if folder is None:
            return
        # now, before its weights are sharded; where they are, and here are only their shapes, it is not asked for
        empty = tower is None or any(weight.is_meta for weight in tower.parameters())
        of_layers = "" if layers is None else f" layers {list(layers)}"
        self._tower_key = None if empty else weights_key(tower) + of_layers
        if isinstance(latent_codec, VAECodec):  # pixels need no cache
            self._caches["latents"] = EncodingCache(folder, "latents", weights_key(latent_codec.vae))
        if vq is not None:
            self._caches["codes"] = EncodingCache(folder, "codes", weights_key(vq.model))

    def latents(self, batch: Batch) -> Images:
        """Of the batch's `diffusion_images`, as the codec's `encode`."""
        pictures = batch["diffusion_images"]
        if (cache := self._caches.get("latents")) is None:
            return self._latent_codec.encode(pictures)
        latents = cache.entries(pictures, self._latent_codec.encode, keys_in(batch, "diffusion_images"))
        return torch.stack(latents) if isinstance(pictures, Tensor) else latents

    def codes(self, batch: Batch) -> Tensor:
        """Of the batch's `vq_images`, as the codec's `encode`: codes (T,)."""
        pictures, vq = batch["vq_images"], self._vq
        if (cache := self._caches.get("codes")) is None:
            return vq.encode(pictures)
        keys = keys_in(batch, "vq_images")
        return torch.cat(cache.entries(pictures, lambda of_a_size: vq.encode(of_a_size).view(len(of_a_size), -1), keys))

    def features(self, batch: Batch, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """The batch's `pixel_values` (I, 3, h, w) as they are, or, if the tower is frozen and cached, its features (I,
        tokens, width), which `encode` makes of pixels."""
        pixels = batch["pixel_values"]
        if self._folder is None or any(weight.requires_grad for weight in self._tower.parameters()):
            return pixels
        autocast = torch.is_autocast_enabled(pixels.device.type)
        kind = "features-bf16" if autocast else "features-fp32"  # other precision, other features
        if kind not in self._caches:
            self._caches[kind] = EncodingCache(self._folder, kind, self._tower_key)
        with torch.no_grad():
            return torch.stack(self._caches[kind].entries(pixels, encode, keys_in(batch, "pixel_values")))

    def flush(self) -> None:
        """Write the entries that are not yet on disk."""
        for cache in self._caches.values():
            cache.flush()


def keys_in(batch: Batch, name: str) -> list[str] | None:
    """The keys of a batch's pictures, where it has them."""
    return batch.get("cache_keys", {}).get(name)
