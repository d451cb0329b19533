"""The Q-Former: a fixed number of learnt queries in a small transformer, which look at a picture's features.

BLIP-2 (arXiv 2301.12597, sec. 3.1). The transformer is transformers' own, without its text side.

Shapes: I images, T features of one, Q queries, E the features' width, W the queries', H the backbone's.
"""

import torch
from torch import Tensor, nn
from transformers import AutoModel, Blip2QFormerConfig

from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.configuration_understanding import Grid
from hybridgen.paths.connectors.mlp import Aligner
from hybridgen.paths.flop_sites import FlopSite


class QFormer(Aligner):
    """Features (I, T, E) -> queries that looked at them (I, Q, W) -> (I, Q, H)."""

    def __init__(self, config: HybridGenConfig):
        settings = config.connector
        super().__init__(settings.hidden_size, config.text_config.hidden_size, settings.depth, settings.hidden_act)
        self.query_tokens = nn.Parameter(torch.randn(settings.num_query_tokens, settings.hidden_size))
        self.q_former = AutoModel.from_config(
            Blip2QFormerConfig(
                vocab_size=1,  # of the text side, which is not built
                hidden_size=settings.hidden_size,
                intermediate_size=settings.intermediate_size,
                num_hidden_layers=settings.num_hidden_layers,
                num_attention_heads=settings.num_attention_heads,
                cross_attention_frequency=settings.cross_attention_frequency,
                encoder_hidden_size=config.feature_width,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        rows, columns = config.feature_grid
        self.features = rows * columns

    def forward(self, features: Tensor, grid: Grid | None = None) -> Tensor:
        queries = self.query_tokens.expand(len(features), -1, -1)  # I, Q, W
        queries = self.q_former(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return super().forward(queries)

    def flop_sites(self) -> list[FlopSite]:
        sites, keys = [], self.features / len(self.query_tokens)  # per query
        for layer in self.q_former.encoder.layer:
            sites.append(FlopSite(layer.attention, 1))
            if layer.has_cross_attention:
                across = layer.crossattention.attention
                sites += [FlopSite(across.query, 1), FlopSite(across.key, keys), FlopSite(across.value, keys)]
                sites.append(FlopSite(layer.crossattention.output, 1))
            sites += [FlopSite(layer.intermediate_query, 1), FlopSite(layer.output_query, 1)]
        return [*sites, *super().flop_sites()]

    def attention_sites(self) -> list[tuple[int, int]]:
        queries, width = self.query_tokens.shape
        layers = self.q_former.encoder.layer
        return [(queries + self.features * layer.has_cross_attention, width) for layer in layers]
