"""The Perceiver resampler: a fixed number of learnt latents gather what the features of a picture hold.

Flamingo (arXiv 2204.14198, sec. 3.1.1), in the form of transformers' Idefics, which is the oracle of its test.

Shapes: I images, T features of one, L latents, E the width of both, D that of all heads, H the backbone's width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.configuration_understanding import Grid, PerceiverResamplerSettings
from hybridgen.paths.connectors.mlp import Aligner
from hybridgen.paths.flop_sites import FlopSite

WIDENING = 4  # the feed-forward layers' inner width, in widths of a latent


class PerceiverResampler(Aligner):
    """Features (I, T, E) -> latents that read them, layer by layer -> (I, L, H)."""

    def __init__(self, config: HybridGenConfig):
        settings, width = config.connector, config.feature_width
        super().__init__(width, config.text_config.hidden_size, settings.depth, settings.hidden_act)
        self.latents = nn.Parameter(torch.randn(settings.num_latents, width))
        self.layers = nn.ModuleList(ResamplerLayer(width, settings) for _ in range(settings.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        rows, columns = config.feature_grid
        self.features = rows * columns

    def forward(self, features: Tensor, grid: Grid | None = None) -> Tensor:
        latents = self.latents.expand(len(features), -1, -1)  # I, L, E
        for layer in self.layers:
            latents = layer(latents, features)  # I, L, E
        return super().forward(self.norm(latents))

    def flop_sites(self) -> list[FlopSite]:
        sites = []
        for layer in self.layers:
            attention, keys = layer.attention, 1 + self.features / len(self.latents)  # per latent
            sites += [FlopSite(attention.q_proj, 1), FlopSite(attention.k_proj, keys), FlopSite(attention.v_proj, keys)]
            sites += [FlopSite(attention.out_proj, 1), FlopSite(layer.feed_forward, 1)]
        return [*sites, *super().flop_sites()]

    def attention_sites(self) -> list[tuple[int, int]]:
        keys = self.features + len(self.latents)
        return [(keys, layer.attention.q_proj.out_features) for layer in self.layers]


class ResamplerLayer(nn.Module):
    """Attention and a feed-forward layer, each added to the latents."""

    def __init__(self, width: int, settings: PerceiverResamplerSettings):
        super().__init__()
        self.attention = ResamplerAttention(width, settings.num_attention_heads, settings.head_dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, WIDENING * width, bias=False),
            ACT2FN[settings.hidden_act],
            nn.Linear(WIDENING * width, width, bias=False),
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        latents = latents + self.attention(latents, features)
        return latents + self.feed_forward(latents)


class ResamplerAttention(nn.Module):
    """Latents (I, L, E) see the features (I, T, E) and one another."""

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.features_norm, self.latents_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        latents = self.latents_norm(latents)
        seen = torch.cat([self.features_norm(features), latents], dim=1)  # I, T + L, E
        projected = self.q_proj(latents), self.k_proj(seen), self.v_proj(seen)
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for each in projected)  # I, heads, ..., head
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))
