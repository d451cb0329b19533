"""Llama 4's attention temperature, by a token's position in its document.

Layers without rotary positions scale their queries, the more the later a token stands (arXiv 2501.19399). transformers
counts along the row, as if it held one text from its first token on; in a packed row, or behind padding, that is
another model. Here the scale follows `position_ids`, as rotary positions do in the other layers.

Shapes: B rows, N new tokens, A * d width of all heads' queries.
"""

import functools
import threading

import torch
from torch import Tensor, nn


class _Positions(threading.local):
    """The positions (B, N) of the layer that runs, one value per thread."""

    value: Tensor | None = None

    def __reduce__(self):  # copied and pickled without what belongs to a call
        return _Positions, ()


def scale_by_position(backbone: nn.Module) -> None:
    """Let the queries of a Llama 4's layers be scaled by `position_ids`; other decoders stay as they are."""
    for layer in getattr(backbone, "layers", ()):
        attention = getattr(layer, "self_attn", None)
        if getattr(attention, "attn_temperature_tuning", None) and not attention.use_rope:
            attention.attn_temperature_tuning = False  # no longer by the library
            positions = _Positions()
            layer.register_forward_pre_hook(functools.partial(_remember, positions), with_kwargs=True)
            scale = attention.attn_scale, attention.floor_scale
            attention.q_proj.register_forward_hook(functools.partial(_scale, positions, *scale))


def _remember(positions: _Positions, layer: nn.Module, arguments: tuple, named: dict) -> None:
    positions.value = named["position_ids"]


def _scale(
    positions: _Positions, attn_scale: float, floor_scale: float, linear: nn.Module, inputs: tuple, queries: Tensor
) -> Tensor:
    """(B, N, A * d) -> the same, scaled."""
    chunks = torch.floor((positions.value.float() + 1) / floor_scale)
    return (queries * (torch.log1p(chunks) * attn_scale + 1)[..., None]).to(queries.dtype)
