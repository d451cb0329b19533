"""Dropout where decoders of transformers have none: on what attention and feed-forward add to the residual stream.

Chameleon-7B needs it to stay stable (arXiv 2405.09818, sec. 2.3). It belongs to a run, not to a model: nothing of it is
saved, and it is active in training only. (A decoder's own `attention_dropout` drops attention weights instead.)
"""

from torch import nn
from torch.nn import functional as F

PARTS = ("self_attn", "mlp", "feed_forward")


def add_dropout(backbone: nn.Module, rate: float) -> None:
    """Drop `rate` of the outputs of each layer's attention and feed-forward, in training.

    Raises:
        ValueError: the layers have no parts of those names.
    """

    def drop(module: nn.Module, arguments: tuple, output):
        if not module.training:
            return output
        if isinstance(output, tuple):
            return F.dropout(output[0], rate), *output[1:]
        return F.dropout(output, rate)

    for layer in backbone.layers:
        parts = [getattr(layer, name) for name in PARTS if hasattr(layer, name)]
        if len(parts) != 2:
            raise ValueError(
                f"dropout is {rate}, but a layer of this backbone ({type(layer).__name__}) has no self_attn and mlp to "
                "put it after; set dropout=0"
            )
        for part in parts:
            part.register_forward_hook(drop)
