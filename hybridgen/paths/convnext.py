"""Shallow ConvNeXt encoder and decoder around the backbone, as JanusFlow has them (arXiv 2411.07975, 3.1).

    image -> patches -> blocks -+-> linear layer -> tokens -> backbone -> norm, linear layer, norm -+-> blocks -> image
                                |                                                                   |
                                +----------------------------- long skip ---------------------------+

The blocks are those of diffusers' UViT (ConvNeXt V2, each scaled and shifted by the timestep's vector) with a kernel of
7 instead of 3. Everything but the patches runs on the grid of tokens, so an image may have any shape. Which of
DeepSeek's tensors is which of these stands in `bridges.janus.flow_names`.

Shapes: I images of one size, C x h x w a latent, T tokens of an image (rows x columns), c channels of the blocks, H the
backbone's width.
"""

from diffusers.models.unets.uvit_2d import ConvNextBlock, GlobalResponseNorm, RMSNorm
from torch import Tensor, cat, nn

from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.paths.diffusion import images_alone
from hybridgen.paths.flop_sites import PER_IMAGE, FlopSite
from hybridgen.paths.initial import XavierConv2d, XavierLinear, ZeroConv2d

__all__ = ["ConvNextDecoder", "ConvNextEncoder", "GlobalResponseNorm"]

EPS = 1e-6  # of every norm
KERNEL = 7


class ConvNextEncoder(nn.Module):
    """Images (I, C, h, w) and timestep vectors (I, H) -> tokens (I, T, H), and the one skip (I, c, rows, columns)."""

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        channels, side = config.convnext_channels, config.patch_size
        self.in_conv = XavierConv2d(config.in_channels, channels, side, stride=side)
        self.blocks = _blocks(channels, hidden_size, config.convnext_depth)
        self.proj = XavierLinear(channels, hidden_size)

    def forward(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens, skip = images_alone(self._forward, self, images, vectors)
        return tokens, [skip]

    def _forward(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        states = self.in_conv(images.to(self.in_conv.bias.dtype))  # I, c, rows, columns
        for block in self.blocks:
            states = block(states, vectors)
        return self.proj(states.flatten(2).mT), states

    def flop_sites(self) -> list[FlopSite]:
        """See `PatchEmbed.flop_sites`."""
        return [FlopSite(self.in_conv, 1, sees_image=True), *_block_sites(self.blocks), FlopSite(self.proj, 1)]


class ConvNextDecoder(nn.Module):
    """Hidden states (I, T, H), timestep vectors (I, H) and the skip -> predicted images (I, C, h, w).

    Starts at zero: an untrained head predicts nothing, and a backbone that gains this path is undisturbed by it.
    """

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        channels, side = config.convnext_channels, config.patch_size
        self.patch_size = side
        self.norm = RMSNorm(hidden_size, EPS)
        self.proj = XavierLinear(hidden_size, channels)
        self.in_norm = RMSNorm(channels, EPS)
        self.blocks = _blocks(2 * channels, hidden_size, config.convnext_depth)
        self.out_norm = RMSNorm(2 * channels, EPS)
        self.out_conv = ZeroConv2d(2 * channels, config.in_channels * side**2, 1)

    def forward(self, states: Tensor, vectors: Tensor, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
        return images_alone(self._forward, self, states, vectors, skips[0])

    def _forward(self, states: Tensor, vectors: Tensor, skip: Tensor) -> Tensor:
        states = self.in_norm(self.proj(self.norm(states)))  # I, T, c
        grid = states.mT.unflatten(-1, skip.shape[-2:])  # I, c, rows, columns
        grid = cat([grid, skip.to(grid.dtype)], dim=1)  # I, 2c, rows, columns
        for block in self.blocks:
            grid = block(grid, vectors)
        grid = self.out_norm(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return _shuffle(self.out_conv(grid), self.patch_size)

    def flop_sites(self) -> list[FlopSite]:
        """See `PatchEmbed.flop_sites`."""
        ways_in = FlopSite(self.norm, 1), FlopSite(self.proj, 1)  # a trained norm wants its gradient of the matrix
        return [*ways_in, *_block_sites(self.blocks), FlopSite(self.out_conv, 1)]


def _shuffle(grid: Tensor, side: int) -> Tensor:
    """(I, C * side^2, rows, columns) -> (I, C, h, w): `pixel_shuffle`, whose backward fails where there is no image."""
    cells = grid.unflatten(1, (-1, side, side))  # I, C, side, side, rows, columns
    return cells.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


def _blocks(channels: int, hidden_size: int, depth: int) -> nn.ModuleList:
    blocks = [ConvNextBlock(channels, EPS, True, True, 0.0, hidden_size) for _ in range(depth)]
    for block in blocks:
        block.depthwise = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
    return nn.ModuleList(blocks)


def _block_sites(blocks: nn.ModuleList) -> list[FlopSite]:
    sites = []
    for block in blocks:
        per_token = block.depthwise, block.channelwise_linear_1, block.channelwise_linear_2
        sites += [*(FlopSite(part, 1) for part in per_token), FlopSite(block.cond_embeds_mapper, PER_IMAGE)]
    return sites
