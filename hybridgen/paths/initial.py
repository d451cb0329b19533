"""Linear layers and convolutions that start otherwise than a language model's (normal, 0.02).

The initialisation hangs on the class, since transformers calls `_init_weights` only for modules that have parameters of
their own: a parent could not set up its children there.
"""

from torch import nn


class XavierLinear(nn.Linear):
    """Brings pixels or features into the backbone: Xavier uniform, so that outputs are as large as inputs. At 0.02,
    pixels would drown in the position table, and a tower's features would be learnt late."""


class ZeroLinear(nn.Linear):
    """A head that predicts zero at first, and so leaves a backbone that gains it undisturbed."""


class XavierConv2d(nn.Conv2d):
    """Cuts an image into patches that do not overlap, and so is a linear layer: starts as a `XavierLinear`."""


class ZeroConv2d(nn.Conv2d):
    """A head that predicts zero at first, as a `ZeroLinear`."""
