"""Linear layers that start other than a language model's do (normal, 0.02).

The fact a newcomer gets wrong: a start is part of a class here. transformers initialises modules by their class, and
skips `_init_weights` for modules that have no parameters of their own, so a parent cannot set up its children.
"""

from torch import nn


class XavierLinear(nn.Linear):
    """What brings pixels or features into the backbone: outputs as large as inputs, so that they stand out from what
    its layers add. At 0.02, pixels drown in the position table, and what a tower sees is learnt later."""


class ZeroLinear(nn.Linear):
    """A head that says nothing at first, and so leaves a backbone that gains it undisturbed."""
