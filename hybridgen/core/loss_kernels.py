"""Other packages' GPU kernels for the losses of a linear head: Liger's, then Apple's cut-cross-entropy, where they are
installed. Neither is required: `cross_entropy` does the same with torch's own operations.

Shapes: n tokens that predict, H width, V words.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn


def fused_kernel(states: Tensor, head: nn.Linear) -> Callable[..., Tensor] | None:
    """The kernel (states, weight, bias, targets, cap) -> losses (n,) of another package that is installed here and can
    do this head's losses; None = ours. Only in half precision on CUDA: in fp32 ours is exact."""
    if states.device.type != "cuda" or not (name := installed_kernel()):
        return None
    is_half = (autocast_dtype("cuda") or head.weight.dtype) in (torch.bfloat16, torch.float16)
    can = head.bias is None or name == "liger_kernel"
    return KERNELS[name] if is_half and can else None


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast multiplies in on this kind of device; None where it is off, or there is none."""
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else None


@functools.cache
def installed_kernel() -> str | None:
    """The first package of `KERNELS` that is installed, in a version that can give a loss a token; None = none."""
    for name in KERNELS:
        if importlib.util.find_spec(name) is None:
            continue
        if name != "liger_kernel" or _liger_has_token_gradients():
            return name
    return None


def _liger_has_token_gradients() -> bool:
    """Older versions of Liger scale the gradients of all tokens by the first one's."""
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward as forward
    except ImportError:  # without Triton
        return False
    return "token_grad_output" in inspect.signature(forward).parameters


def _liger(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None) -> Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none", softcap=cap, accum_dtype=torch.float32)
    return loss(weight, states, targets, bias)


def _cut_cross_entropy(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None
) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    half = autocast_dtype("cuda") or weight.dtype
    # filter_eps: no gradient is left out, however small
    return linear_cross_entropy(
        states.to(half), weight.to(half), targets, softcap=cap, reduction="none", filter_eps=None
    )


KERNELS = {"liger_kernel": _liger, "cut_cross_entropy": _cut_cross_entropy}
