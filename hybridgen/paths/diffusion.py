"""The diffusion path: noisy patches and their timestep -> embeddings; hidden states -> a prediction for each patch.

One conditioning vector an image, none for text. Named after DiT (arXiv 2212.09748): `patch_embed`,
`timestep_embedder`, `final_layer`. What a prediction means (velocity, epsilon, x0) is `noise.py`'s.

Shapes: I images, T patches of all images together, D = p * p * C, H the backbone's width.
"""

from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn

from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.paths.initial import XavierLinear, ZeroLinear
from hybridgen.paths.patches import sincos_table


class PatchEmbed(nn.Module):
    """Patches (T, D) and their (row, column) (T, 2) -> (T, H): one linear layer plus a fixed 2-D position table."""

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        self.proj = XavierLinear(config.patch_size**2 * config.in_channels, hidden_size)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        embeddings = self.proj(patches)
        return embeddings + sincos_table(positions, embeddings.shape[-1]).to(embeddings.dtype)


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
    """Hidden states (T, H) and each patch's conditioning (T, H) -> predicted patches (T, D).

    Starts at zero: an untrained head predicts nothing, and a backbone that gains this path is undisturbed by it.
    """

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.modulation = ZeroLinear(hidden_size, 2 * hidden_size)
        self.linear = ZeroLinear(hidden_size, config.patch_size**2 * config.in_channels)

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        shift, scale = self.modulation(nn.functional.silu(conditioning)).chunk(2, dim=-1)  # T, H each
        return self.linear(self.norm(hidden_states) * (1 + scale) + shift)
