"""How often a tensor was changed in place, where torch counts it."""

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """Grows with each change in place; 0 for tensors made in `torch.inference_mode`, which torch does not count."""
    return 0 if tensor.is_inference() else tensor._version
