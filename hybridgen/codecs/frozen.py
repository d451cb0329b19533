"""Codecs: pixels in [-1, 1] <-> what the backbone reads and writes. They are frozen.

The codec classes pass no gradient; `to_latents`, `to_pixels` and `quantize` do, for the stages that train a tokenizer.

`PixelCodec` and `VAECodec` serve the diffusion path (normalised latents), `VQCodec` the vq path (codes). Training of a
VQ tokenizer is a stage of its own (`training`); it shares `quantize` with `VQCodec`, so that codes mean the same in
both. A Janus tokenizer compares *directions*: DeepSeek normalises latents and codebook before it looks for the nearest
code. transformers' `JanusVQVAE.encode` does not, and finds other codes for the same picture; its decoding is also fixed
to one grid size; ours decodes a code map of any size.

Nothing here draws a random number (a VAE's posterior is read at its mode), moves a tensor to another device, or changes
the module it wraps, which must be in eval mode. Images of one size are worked on together, however they are given, as
many as `PIXELS_AT_ONCE` allows; alone or together, a codec's sums differ in their last bits (1e-5 of 1).

Shapes: I images, C channels, H x W pixels, h x w = H / f x W / f, D width of the codebook, V codes,
T codes of all images together.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.janus.modeling_janus import JanusVQVAE

from hybridgen.codecs.chameleon_vq import ChameleonVQ
from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.core.devices import sum_dtype
from hybridgen.core.files import read_json
from hybridgen.core.offload import at_hand, bring, device_of
from hybridgen.core.recognition import user_path
from hybridgen.core.sizes import Images, by_size
from hybridgen.core.versions import version_of
from hybridgen.image_processing_hybridgen import to_range
from hybridgen.paths.patches import check_size

PIXELS_AT_ONCE = 1 << 21  # 8 images of 512 x 512, of which Stable Diffusion's VAE holds about .6 GB each


class PixelCodec:
    """The diffusion path without a VAE: latents are the pixels themselves."""

    downsample_factor = 1

    def encode(self, images: Images) -> Images:
        return values_of(images) if isinstance(images, Tensor) else [*map(values_of, images)]

    def decode(self, latents: Images) -> Images:
        return latents


def values_of(images: Tensor) -> Tensor:
    """Pixels in [-1, 1]; levels of 8 bits, as training rows hold them, are made such."""
    return images if images.is_floating_point() else to_range(images)


class VAECodec:
    """Latents of a diffusers autoencoder, normalised: encode = (z - shift) * scale, decode undoes it.

    Args:
        vae: AutoencoderKL or its kin: `encode` gives a `latent_dist`, `latents` or `latent`, `decode` gives a `sample`.
    """

    def __init__(self, vae: nn.Module):
        self._vae = vae
        self.downsample_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale = vae.config.get("scaling_factor") or 1.0
        self.shift = vae.config.get("shift_factor") or 0.0

    @property
    def vae(self) -> nn.Module:
        """What is run (`_at_safe_precision`)."""
        return _at_safe_precision(self._vae)

    @torch.no_grad()
    def encode(self, images: Images) -> Images:
        """Pixels (I, 3, H, W) -> latents (I, C, h, w), float32; a list gives a list."""
        return _by_size(self._encode, images)

    def _encode(self, images: Tensor) -> Tensor:
        check_size(*images.shape[-2:], self.downsample_factor)
        vae = self.vae
        bring(vae)
        with _no_autocast(images):
            encoded = vae.encode(values_of(images).to(vae.dtype))
        if hasattr(encoded, "latent_dist"):
            z = encoded.latent_dist.mode()
        else:
            z = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        return (z.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Images) -> Images:
        """Latents (I, C, h, w) -> pixels (I, 3, H, W), float32; a list gives a list."""
        return _by_size(self._decode, latents, self.downsample_factor)

    def _decode(self, latents: Tensor) -> Tensor:
        vae, z = self.vae, latents.float() / self.scale + self.shift
        bring(vae)
        with _no_autocast(z):
            return vae.decode(z.to(vae.dtype)).sample.float()


def _by_size(run: Callable[[Tensor], Tensor], images: Images, factor: int = 1) -> Images:
    """What `run` makes of images, all of one size at once, but of no more than PIXELS_AT_ONCE (of one image, if it is
    larger); in the form in which they came.

    Args:
        factor: pixels along one side of an entry of the input.
    """
    if isinstance(images, Tensor):
        at_once = max(1, PIXELS_AT_ONCE // max(1, images.shape[-2:].numel() * factor**2))
        parts = [run(part) for part in images.split(at_once)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    made: list = [None] * len(images)
    for indices, group in by_size(images):
        for i, of_image in zip(indices, _by_size(run, group, factor), strict=True):
            made[i] = of_image
    return made


def measure_latents(vae: nn.Module, pictures: Iterable[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of an autoencoder's latents, before any shift and scale, over all their components.

    A VAE's `shift_factor` is this mean, its `scaling_factor` one over this deviation: `VAECodec` then gives latents of
    mean 0 and variance 1 on the same pictures (arXiv 2112.10752, sec. D.1, where the mean is left in).

    Args:
        pictures: batches (I, 3, H, W), at least one.
    """
    codec = VAECodec(vae)
    sums = torch.zeros(3, dtype=torch.float64)  # components, their sum, the sum of their squares
    for batch in pictures:
        z = codec.encode(batch).to(sum_dtype(batch.device)) / codec.scale + codec.shift
        sums += torch.stack([torch.tensor(float(z.numel())), z.sum().cpu(), z.pow(2).sum().cpu()])
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5


class VQCodec:
    """Codes of a VQ tokenizer, one of `VQ_KINDS`.

    Args:
        model: the tokenizer. A Janus tokenizer compares directions, the others compare latents with codes as they are.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self.directions = compares_directions(model)
        config = model.config.to_dict() if isinstance(model, PreTrainedModel) else model.config
        self.downsample_factor = vq_downsample_factor(config)

    @property
    def model(self) -> nn.Module:
        """What is run (`_at_safe_precision`)."""
        return _at_safe_precision(self._model)

    @property
    def codebook(self) -> Tensor:
        """(V, D), as the decoder reads it."""
        embedding = self.model.quantize.embedding
        with at_hand(embedding):
            return F.normalize(embedding.weight, dim=-1) if self.directions else embedding.weight

    @torch.no_grad()
    def encode(self, images: Images) -> Tensor:
        """Pixels (I, 3, H, W), or a list of (3, H, W), -> codes (T,) in reading order."""
        codes = _by_size(self._encode, images)  # I, h, w
        if isinstance(codes, Tensor):
            return codes.flatten()
        empty = torch.zeros(0, dtype=torch.long, device=device_of(self.model))
        return torch.cat([empty, *(of_image.flatten() for of_image in codes)])

    def _encode(self, images: Tensor) -> Tensor:
        check_size(*images.shape[-2:], self.downsample_factor)
        model = self.model
        bring(model)
        with _no_autocast(images):
            pixels = _doubled(model, values_of(images).to(model.dtype), self.downsample_factor)
            z = to_latents(model, pixels)[: len(images)]  # I, D, h, w
        with at_hand(model.quantize.embedding):
            return quantize(z.float(), model.quantize.embedding.weight.float(), self.directions).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (I, h, w) -> pixels (I, 3, H, W), float32."""
        return _by_size(self._decode, codes, self.downsample_factor)

    def check_decodes(self) -> None:
        """Raises ValueError for a tokenizer without a decoder, which only reads pictures."""
        if self._model.decoder is None:
            raise ValueError(
                "this VQ tokenizer has no decoder, so it reads pictures and draws none: transformers' Chameleons leave "
                "it out; convert again with hybridgen convert --vq-decoder FILE (vqgan.ckpt of Meta's release), or ask "
                "for the codes alone (output_type='latent')"
            )

    def _decode(self, codes: Tensor) -> Tensor:
        self.check_decodes()
        bring(self.model)
        entries = F.embedding(codes, self.codebook).permute(0, 3, 1, 2).contiguous()  # I, D, h, w
        with _no_autocast(codes):
            return to_pixels(self.model, _doubled(self.model, entries))[: len(codes)].float()


def _doubled(model: nn.Module, images: Tensor, side: int = 1) -> Tensor:
    """Images (I, ., H, W), one of a single cell of `side` pixels twice, where a norm of the model would have groups of
    one value: torch refuses these, in eval mode too, but not where there are two images."""
    if len(images) > 1 or images.shape[-2:] != (side, side):
        return images
    norms = (part for part in model.modules() if isinstance(part, nn.GroupNorm))
    return images.repeat(2, 1, 1, 1) if any(norm.num_groups == norm.num_channels for norm in norms) else images


VQ_KINDS = {kind.__name__: kind for kind in (JanusVQVAE, ChameleonVQ, VQModel, PatchVQ)}


def vq_kind(config: Mapping) -> str | None:
    """The name of a tokenizer's class, as its config.json tells it; None = it is none that is known."""
    types = {kind.config_class.model_type: name for name, kind in VQ_KINDS.items() if issubclass(kind, PreTrainedModel)}
    name = config.get("_class_name") or types.get(config.get("model_type"))
    return name if name in VQ_KINDS else None


def load_vq(folder: str | Path) -> nn.Module:
    """A VQ tokenizer of any of these kinds, as its config.json says; frozen."""
    folder = user_path(folder)
    kind = VQ_KINDS[vq_kind(read_json(folder / "config.json")) or JanusVQVAE.__name__]
    return kind.from_pretrained(folder).eval().requires_grad_(False)


def build_vq(config: Mapping) -> nn.Module:
    """A VQ tokenizer without the weights of its folder, from its config.json."""
    kind = VQ_KINDS[vq_kind(config) or JanusVQVAE.__name__]
    made = kind(kind.config_class(**config)) if issubclass(kind, PreTrainedModel) else kind.from_config(dict(config))
    return made.eval().requires_grad_(False)


def compares_directions(model: nn.Module) -> bool:
    """Whether codes of this tokenizer are directions (Janus) or points (the others)."""
    return not isinstance(model, VQModel | ChameleonVQ)  # PatchVQ is a VQModel


def vq_downsample_factor(config: Mapping) -> int:
    """Pixels along one side of a code, from a tokenizer's config alone."""
    if "patch_size" in config:
        return config["patch_size"]  # PatchVQ
    levels = config.get("channel_multiplier") or config["block_out_channels"]
    return 2 ** (len(levels) - 1)


def to_latents(model: nn.Module, images: Tensor) -> Tensor:
    """Pixels (I, 3, H, W) -> latents (I, D, h, w), not yet quantized, with gradient."""
    return model.quant_conv(model.encoder(images))


def to_pixels(model: nn.Module, vectors: Tensor) -> Tensor:
    """Codes' vectors (I, D, h, w) -> pixels (I, 3, H, W), with gradient."""
    z = model.post_quant_conv(vectors)
    if not isinstance(model, VQModel):
        return model.decoder(z)
    return model.decoder(z, vectors if model.config.get("norm_type") == "spatial" else None)


class Quantized(NamedTuple):
    """What `quantize` makes of latents.

    Args:
        vectors: (I, D, h, w) the chosen codes; their gradient passes straight through to the latents.
        codes: (I, h, w).
        codebook_error: (I,) mean squared distance, with gradient to the codebook only.
        commitment_error: (I,) the same distance, with gradient to the latents only.
    """

    vectors: Tensor
    codes: Tensor
    codebook_error: Tensor
    commitment_error: Tensor


def quantize(z: Tensor, codebook: Tensor, directions: bool) -> Quantized:
    """Latents (I, D, h, w) -> their nearest codes in a codebook (V, D) (van den Oord et al., arXiv 1711.00937).

    1. With `directions`, latents and codebook are put on the unit sphere first (as DeepSeek's Janus and LlamaGen do).
    2. The nearest code is the one of the largest z . e - |e|^2 / 2: the distance without its constant.
    3. The gradient passes straight through the choice.
    """
    if directions:
        z, codebook = F.normalize(z, dim=1), F.normalize(codebook, dim=-1)
    places = z.permute(0, 2, 3, 1)  # I, h, w, D
    # one product for all places: a batch of small ones takes twice as long; in bf16 a near code would win by rounding
    with torch.no_grad(), _no_autocast(z):
        flat = places.flatten(0, 2).to(codebook.dtype)  # I * h * w, D
        scores = torch.addmm(codebook.pow(2).sum(-1) / -2, flat, codebook.T)  # I * h * w, V
        codes = scores.argmax(-1).view(places.shape[:3])  # I, h, w
    chosen = F.embedding(codes, codebook).permute(0, 3, 1, 2)  # I, D, h, w
    return Quantized(
        vectors=z + (chosen - z).detach(),
        codes=codes,
        codebook_error=(chosen - z.detach()).pow(2).flatten(1).mean(1),
        commitment_error=(chosen.detach() - z).pow(2).flatten(1).mean(1),
    )


_FLOAT32: WeakKeyDictionary[nn.Module, tuple[list, nn.Module]] = WeakKeyDictionary()  # the weights' state, and a copy


def _at_safe_precision(model: nn.Module) -> nn.Module:
    """The model itself, or a float32 copy of one in half precision, in which decoders overflow. The copy is made once,
    and again when the model's weights have been changed or moved."""
    if model.dtype != torch.float16:
        _FLOAT32.pop(model, None)
        return model
    weights = [*model.parameters(), *model.buffers()]
    state = [(weight.data_ptr(), version_of(weight), weight.device) for weight in weights]
    copied_from, copied = _FLOAT32.get(model, (None, None))
    if copied_from != state:
        copied = copy.deepcopy(model).float()
        _FLOAT32[model] = state, copied
    return copied


def _no_autocast(like: Tensor) -> torch.autocast:
    """A codec runs in its own precision, also inside a training step's autocast."""
    return torch.autocast(like.device.type, enabled=False)
