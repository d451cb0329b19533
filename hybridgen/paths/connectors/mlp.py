"""The plain connector, a token a feature, and the base of all others: each ends in its linear layers.

Shapes: I images, T features of one, E their width, H the backbone's width.
"""

from torch import Tensor, nn
from transformers.activations import ACT2FN

from hybridgen.configuration_understanding import Grid
from hybridgen.paths.flop_sites import FlopSite
from hybridgen.paths.initial import XavierLinear


class Aligner(nn.Module):
    """`depth` linear layers with an activation between them, named as transformers' Janus names them (Janus, sec. 2.2).

    Connects both the understanding path (features of the vision tower) and the vq path (embeddings of codes).
    """

    def __init__(self, in_features: int, out_features: int, depth: int, hidden_act: str):
        super().__init__()
        self.fc1 = XavierLinear(in_features, out_features)
        self.hidden_layers = nn.ModuleList(XavierLinear(out_features, out_features) for _ in range(1, depth))
        self.activation_fn = ACT2FN[hidden_act]

    def forward(self, features: Tensor, grid: Grid | None = None) -> Tensor:
        """Features (..., E) -> (..., H). `grid`: theirs, for connectors to which it matters; None = the config's."""
        features = self.fc1(features)  # ..., H
        for layer in self.hidden_layers:
            features = layer(self.activation_fn(features))  # ..., H
        return features

    def flop_sites(self) -> list[FlopSite]:
        """Every part with matrices, in the order of the computation; uses are counted per token that comes out."""
        return [FlopSite(layer, 1) for layer in (self.fc1, *self.hidden_layers)]

    def attention_sites(self) -> list[tuple[int, int]]:
        """Of each attention, the keys that a token sees, and the width of all heads."""
        return []
