"""Images of several sizes: what is done to all of one size is done at once.

Shapes: I images, C channels, H x W pixels (or latents).
"""

import torch
from torch import Tensor

Images = Tensor | list[Tensor]  # (I, C, H, W), or I of (C, H, W) where sizes differ


def by_size(images: Images) -> list[tuple[list[int], Tensor]]:
    """I images of (C, H, W), or (I, C, H, W) -> for each size, the indices of its images, and these in one tensor."""
    if isinstance(images, Tensor):
        return [(list(range(len(images))), images)]
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    return [(indices, torch.stack([images[i] for i in indices])) for indices in groups.values()]
