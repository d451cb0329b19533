"""The diffusion path: noisy images and their timestep -> embeddings; hidden states -> a prediction for each image.

One conditioning vector per image, none for text. Named after DiT (arXiv 2212.09748): `patch_embed`,
`timestep_embedder`, `final_layer`; `unet` and `convnext` have classes of their own for the first and the last. What a
prediction means (velocity, epsilon, x0) is defined in `core.noise`.

Shapes: I images of one size, C x h x w a latent, T patches of an image, D = p * p * C, H the backbone's width.
"""

from collections.abc import Callable

from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, cat, nn

from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.paths.flop_sites import PER_IMAGE, FlopSite
from hybridgen.paths.initial import XavierLinear, ZeroLinear
from hybridgen.paths.patches import patch_positions, patchify, sincos_table, unpatchify


def images_alone(compute: Callable, part: nn.Module, images: Tensor, vectors: Tensor, *more: Tensor):
    """`compute` of images (I, ...), vectors (I or 1, H) and further tensors (I, ...): all at once or, where that would
    round otherwise, one image at a time.

    On a CPU, convolutions round differently with the number of images, and a sampled picture must be the same to the
    bit in any batch.
    """
    if part.training or images.device.type != "cpu" or len(images) <= 1:
        return compute(images, vectors, *more)
    tensors = images, vectors.expand(len(images), -1), *more
    each = [compute(*one) for one in zip(*(tensor.split(1) for tensor in tensors), strict=True)]
    return tuple(map(cat, zip(*each, strict=True))) if isinstance(each[0], tuple) else cat(each)


class PatchEmbed(nn.Module):
    """Images (I, C, h, w) and timestep vectors (I, H) -> tokens (I, T, H), and no skips (only `unet` has them).

    One linear layer, a fixed 2-D position table, and the timestep.
    """

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = XavierLinear(config.patch_size**2 * config.in_channels, hidden_size)

    def forward(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        patches = patchify(images, self.patch_size).to(self.proj.bias.dtype)  # a weight may be quantized, a bias never
        tokens = self.proj(patches)  # I, T, H
        positions = patch_positions(*images.shape[-2:], self.patch_size, device=images.device)  # T, 2
        return tokens + sincos_table(positions, tokens.shape[-1]).to(tokens.dtype) + vectors[:, None], []

    def flop_sites(self) -> list[FlopSite]:
        """Every part with matrices, in the order of the computation."""
        return [FlopSite(self.proj, 1, sees_image=True)]


class TimestepEmbedder(nn.Module):
    """Timesteps (I,) in [0, 1000] -> (I, H): a sinusoid through a two-layer MLP (DiT)."""

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        self.frequency_embedding_size = config.frequency_embedding_size
        self.mlp = TimestepEmbedding(config.frequency_embedding_size, hidden_size)

    def forward(self, timesteps: Tensor) -> Tensor:
        frequencies = get_timestep_embedding(
            timesteps.float(), self.frequency_embedding_size, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return self.mlp(frequencies.to(self.mlp.linear_1.bias.dtype))  # weights may be quantized, a bias never is


class FinalLayer(nn.Module):
    """Hidden states (I, T, H) and timestep vectors (I, H) -> predicted images (I, C, h, w).

    Starts at zero: an untrained head predicts nothing, and a backbone that gains this path is undisturbed by it.
    """

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        self.patch_size = config.patch_size
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.modulation = ZeroLinear(hidden_size, 2 * hidden_size)
        self.linear = ZeroLinear(hidden_size, config.patch_size**2 * config.in_channels)

    def forward(self, states: Tensor, vectors: Tensor, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
        shift, scale = self.modulation(nn.functional.silu(vectors))[:, None].chunk(2, dim=-1)  # I, 1, H each
        return unpatchify(self.linear(self.norm(states) * (1 + scale) + shift), self.patch_size, *size)

    def flop_sites(self) -> list[FlopSite]:
        """See `PatchEmbed.flop_sites`."""
        return [FlopSite(self.modulation, PER_IMAGE), FlopSite(self.linear, 1)]
