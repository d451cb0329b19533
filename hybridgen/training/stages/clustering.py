"""Choosing codes among latents: k-means, and latents far from every code. Deterministic, given a generator.

Shapes: T latents of width D, V codes.
"""

import torch
from torch import Tensor


def kmeans(latents: Tensor, count: int, generator: torch.Generator, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Latents (T, D) -> centres (count, D) and how many latents each has (count,).

    Lloyd's algorithm from random latents; a centre that loses all its latents starts again at one far from its own.
    """
    centres = draw(latents, torch.ones(len(latents)), count, generator)
    for _ in range(iterations):
        distances, nearest = torch.cdist(latents, centres).min(1)  # T, T
        sizes = torch.bincount(nearest, minlength=count).to(latents)
        sums = torch.zeros_like(centres).index_add_(0, nearest, latents)
        centres = sums / sizes.clamp(min=1)[:, None]
        if (empty := (sizes == 0).nonzero()[:, 0]).numel():
            centres[empty] = draw(latents, distances.square(), len(empty), generator)
    return centres, sizes


def choose_far(latents: Tensor, codebook: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw (count, D) of the latents, with weights of the squared distance to the nearest code."""
    distances = torch.cdist(latents, codebook).min(1).values
    return draw(latents, distances.square(), count, generator)


def draw(latents: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw (count, D) of the latents by weight, without replacement unless there are fewer than `count`."""
    if not count:
        return latents[:0]
    weights = weights.cpu().double() + 1e-12
    drawn = torch.multinomial(weights, count, replacement=count > len(latents), generator=generator)
    return latents[drawn.to(latents.device)]
