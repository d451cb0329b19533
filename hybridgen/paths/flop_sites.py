"""What a part of a path says about its own cost, for `training.monitor.flops` to count."""

from typing import NamedTuple

from torch import nn

PER_IMAGE = 0  # uses per token of a layer that runs once per image, on the timestep's vector


class FlopSite(NamedTuple):
    """A part with matrices, as `training.monitor.flops` counts it.

    Args:
        uses_per_token: how often it runs for one token of an image, or PER_IMAGE.
        sees_image: its input is the image itself, which has no gradient.
    """

    module: nn.Module
    uses_per_token: float
    sees_image: bool = False
