"""Representation alignment: a layer's states of a noisy image against the vision tower's features of the clean one.

A loss of the diffusion path alone (REPA, arXiv 2410.06940; in JanusFlow, arXiv 2411.07975, with the states of layer 6
and the understanding path's own SigLIP). The tower is a teacher: its features are targets without gradient, also in a
stage that trains it, and no sampler uses the head.

Shapes: I images, T tokens of all images of the diffusion path, t features of a picture, E the tower's width, H the
backbone's, S the side of the tower's input.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.paths.connectors.mlp import Aligner


class AlignmentHead(Aligner):
    """Hidden states (T, H) of one layer -> features (T, E)."""

    def __init__(self, config: HybridGenConfig):
        width, depth = config.text_config.hidden_size, config.diffusion_config.alignment_depth
        super().__init__(width, config.vision_config.hidden_size, depth, "silu")


def similarities(projected: Tensor, features: Tensor, grids: list[tuple[int, int]]) -> Tensor:
    """(I,) mean cosine, over an image's tokens, between projected states and features.

    Args:
        projected: (T, E) in reading order.
        features: (I, t, E) of the same pictures, on a square grid.
        grids: rows and columns of each image's tokens; features on another grid are resized to it.
    """
    side = round(features.shape[1] ** 0.5)
    maps = features.float().transpose(1, 2).unflatten(-1, (side, side))  # I, E, side, side
    targets = [resize(one[None], grid)[0].flatten(1).T for one, grid in zip(maps, grids, strict=True)]  # h * w, E each
    cosines = F.cosine_similarity(projected.float(), torch.cat(targets), dim=-1)  # T
    return torch.stack([image.mean() for image in cosines.split([len(each) for each in targets])])


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(I, C, h, w) bilinearly at another size; untouched where they have it."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def tower_pixels(pictures: Tensor | list[Tensor], side: int, mean: list[float], std: list[float]) -> Tensor:
    """Pictures of the diffusion path, (3, H, W) in [-1, 1] -> (I, 3, S, S), normalised as the tower takes them."""
    squares = torch.cat([resize(picture[None], (side, side)) for picture in pictures])
    mean, std = (torch.tensor(value, device=squares.device).view(3, 1, 1) for value in (mean, std))
    return ((squares + 1) / 2 - mean) / std
