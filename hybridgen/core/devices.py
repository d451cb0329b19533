"""Which device computes here, and what it can add up in."""

from functools import cache

import torch


def best_device() -> torch.device:
    """The accelerator of this machine, whatever its kind, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@cache
def sum_dtype(device: torch.device) -> torch.dtype:
    """In what sums over many values are kept on a device: float64, or float32 where it has no such type (Apple's)."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64
