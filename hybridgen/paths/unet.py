"""U-Net patches: the way into and out of the backbone that Transfusion calls U-Net down and up (arXiv 2408.11039, 3.2).

A patch is wide (8 x 8 pixels, say), so that a picture is few tokens. The coarsest level of `UNetDown` goes through the
backbone as tokens; each level's output also goes around it, as a skip into the same level of `UNetUp`. Blocks are
diffusers' own. In the paper, patches of 8 latents keep their quality this way (FID 16.1; linear ones 43.5; table 6).
Unlike there, linear patches stay beside the U-Net, and both ways in and both ways out are summed. Loss on dolls after
200 steps: U-Net + linear .198, U-Net alone .259, linear alone .220. A picture that is read passes the way in alone,
with its timestep; its skips are unused.

Shapes: I images of one size, C x h x w a latent, T tokens of an image, H the backbone's width, L levels; level 0 is the
finest, and each further one has half the rows and columns.
"""

import math
from functools import partial

from diffusers.models.resnet import ResnetBlock2D, Upsample2D
from torch import Tensor, cat, nn

from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.paths.diffusion import FinalLayer, PatchEmbed, images_alone
from hybridgen.paths.flop_sites import PER_IMAGE, FlopSite
from hybridgen.paths.initial import XavierLinear, ZeroLinear
from hybridgen.paths.patches import patchify, unpatchify


def finest_cell(config: HybridGenDiffusionConfig) -> int:
    """Side, in latents, of one cell of level 0."""
    return config.patch_size // 2 ** (len(config.unet_channels) - 1)


class UNetDown(nn.Module):
    """Images (I, C, h, w) and timestep vectors (I, H) -> tokens (I, T, H) and a skip (I, c, rows, columns) per level.

    What convolutions add to the linear patches starts at zero.
    """

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        channels = config.unet_channels
        self.patch_size, self.finest_cell = config.patch_size, finest_cell(config)
        self.stem = XavierLinear(self.finest_cell**2 * config.in_channels, channels[0])
        self.blocks = nn.ModuleList(_block(width, width, hidden_size) for width in channels)
        pairs = zip(channels, channels[1:], strict=False)
        self.downsamplers = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.proj = ZeroLinear(channels[-1], hidden_size)
        # the linear patches, summed with the U-Net's; called `whole` because saved weights use that name
        self.whole = PatchEmbed(config, hidden_size)

    def forward(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens, *skips = images_alone(self._forward, self, images, vectors)
        return tokens, skips

    def _forward(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
        rows, columns = (side // self.finest_cell for side in images.shape[-2:])
        patches = self.stem(patchify(images.to(self.stem.bias.dtype), self.finest_cell))  # I, rows * columns, c
        states, skips = patches.mT.unflatten(-1, (rows, columns)), []
        for level, block in enumerate(self.blocks):
            states = block(self.downsamplers[level - 1](states) if level else states, vectors)
            skips.append(states)
        tokens = self.proj(states.flatten(2).mT)  # I, T, H
        return self.whole(images, vectors)[0] + tokens, *skips

    def flop_sites(self) -> list[FlopSite]:
        """See `PatchEmbed.flop_sites`."""
        sites = [FlopSite(self.stem, _cells_per_token(self, 0), sees_image=True)]
        for level, block in enumerate(self.blocks):
            sites += [FlopSite(self.downsamplers[level - 1], _cells_per_token(self, level))] if level else []
            sites += _block_sites(block, _cells_per_token(self, level))
        return [*sites, FlopSite(self.proj, 1), *self.whole.flop_sites()]


class UNetUp(nn.Module):
    """Hidden states (I, T, H), timestep vectors (I, H) and skips -> predicted images (I, C, h, w).

    Starts at zero: an untrained head predicts nothing, and a backbone that gains this path is undisturbed by it.
    """

    def __init__(self, config: HybridGenDiffusionConfig, hidden_size: int):
        super().__init__()
        channels = config.unet_channels
        self.finest_cell = finest_cell(config)
        # the linear patches, summed with the U-Net's; called `whole` because saved weights use that name
        self.whole = FinalLayer(config, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.proj = XavierLinear(hidden_size, channels[-1])
        self.blocks = nn.ModuleList(_block(2 * width, width, hidden_size) for width in channels)
        pairs = zip(channels, channels[1:], strict=False)
        self.upsamplers = nn.ModuleList(Upsample2D(coarse, True, out_channels=fine) for fine, coarse in pairs)
        self.out_norm = nn.GroupNorm(_groups(channels[0]), channels[0])
        self.linear = ZeroLinear(channels[0], self.finest_cell**2 * config.in_channels)

    def forward(self, states: Tensor, vectors: Tensor, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
        return images_alone(partial(self._forward, size), self, states, vectors, *skips)

    def _forward(self, size: tuple[int, int], states: Tensor, vectors: Tensor, *skips: Tensor) -> Tensor:
        coarsest, linear_output = len(self.blocks) - 1, self.whole(states, vectors, [], size)
        states = self.proj(self.norm(states)).mT.unflatten(-1, skips[-1].shape[-2:])  # I, c, rows, columns
        for level in range(coarsest, -1, -1):
            states = self.upsamplers[level](states) if level < coarsest else states
            states = self.blocks[level](cat([states, skips[level].to(states.dtype)], dim=1), vectors)
        states = nn.functional.silu(self.out_norm(states)).flatten(2).mT  # I, cells of level 0, c
        return linear_output + unpatchify(self.linear(states), self.finest_cell, *size)

    def flop_sites(self) -> list[FlopSite]:
        """See `PatchEmbed.flop_sites`."""
        coarsest, sites = len(self.blocks) - 1, [*self.whole.flop_sites(), FlopSite(self.proj, 1)]
        for level in range(coarsest, -1, -1):
            sites += [FlopSite(self.upsamplers[level], _cells_per_token(self, level))] if level < coarsest else []
            sites += _block_sites(self.blocks[level], _cells_per_token(self, level))
        return [*sites, FlopSite(self.linear, _cells_per_token(self, 0))]


def _cells_per_token(part: UNetDown | UNetUp, level: int) -> int:
    return 4 ** (len(part.blocks) - 1 - level)


def _block_sites(block: ResnetBlock2D, cells: int) -> list[FlopSite]:
    rest = [FlopSite(part, cells) for part in (block.conv2, block.conv_shortcut) if part is not None]
    return [FlopSite(block.conv1, cells), FlopSite(block.time_emb_proj, PER_IMAGE), *rest]


def _block(channels: int, out_channels: int, hidden_size: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels=channels,
        out_channels=out_channels,
        temb_channels=hidden_size,
        groups=_groups(channels),
        groups_out=_groups(out_channels),
    )


def _groups(channels: int) -> int:
    """At most 32, of at least 8 channels."""
    return math.gcd(32, channels // 8)
