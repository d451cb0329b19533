"""Connectors that make one token of each square of neighbouring features.

Shapes: I images, T = h * w features of one on a grid, E their width, f the side of a square, t = T / f^2 tokens, H the
backbone's width.
"""

from torch import Tensor, nn

from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.configuration_understanding import Grid
from hybridgen.paths.connectors.mlp import Aligner


class PixelShuffleAligner(Aligner):
    """The features of a square side by side, row by row (space to depth), then linear layers (InternVL 1.5, arXiv
    2404.16821, sec. 3.1; nanoVLM; Idefics 3, arXiv 2408.12637)."""

    def __init__(self, config: HybridGenConfig):
        settings = config.connector
        width = self.width(config.feature_width, settings.factor)
        super().__init__(width, config.text_config.hidden_size, settings.depth, settings.hidden_act)
        self.norm = nn.LayerNorm(width) if settings.norm else nn.Identity()
        self.grid, self.factor = config.feature_grid, settings.factor

    @staticmethod
    def width(of_features: int, factor: int) -> int:
        """Of what the linear layers read."""
        return of_features * factor**2

    def forward(self, features: Tensor, grid: Grid | None = None) -> Tensor:
        """(I, T, E) -> (I, t, H)."""
        return super().forward(self.norm(self.reduce(self.squares(features, grid or self.grid))))

    def squares(self, features: Tensor, grid: Grid) -> Tensor:
        """(I, T, E) -> (I, t, f * f, E): squares in reading order, and in each its features."""
        (rows, columns), f = grid, self.factor
        squares = features.unflatten(1, (rows // f, f, columns // f, f)).transpose(2, 3)  # I, h / f, w / f, f, f, E
        return squares.flatten(3, 4).flatten(1, 2)

    def reduce(self, squares: Tensor) -> Tensor:
        """(I, t, f * f, E) -> (I, t, width)."""
        return squares.flatten(2)


class AveragePoolAligner(PixelShuffleAligner):
    """The mean of a square (patch aggregation; Gemma 3, arXiv 2503.19786, pools its 64x64 features to 16x16)."""

    @staticmethod
    def width(of_features: int, factor: int) -> int:
        return of_features

    def reduce(self, squares: Tensor) -> Tensor:
        return squares.mean(2)
