"""The moving average of the trainable weights: what is validated, sampled from and saved at the end.

The arithmetic is diffusers' `EMAModel` (decay min(decay, (1 + t) / (10 + t))); this file adds names, so that states are
safetensors and a frozen part is neither copied nor averaged.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn


class WeightAverage:
    """
    Args:
        model: as accelerate prepared it; its parameters are averaged where they are.
        decay: of the average, once it has warmed up.
    """

    def __init__(self, model: nn.Module, decay: float):
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._names, self._weights = list(trainable), list(trainable.values())
        self._ema = EMAModel(self._weights, decay=decay, foreach=True)

    def update(self) -> None:
        """Take in the weights of an optimizer step."""
        self._ema.step(self._weights)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average; afterwards its own weights again, bit for bit."""
        self._ema.store(self._weights)
        self._ema.copy_to(self._weights)
        try:
            yield
        finally:
            self._ema.restore(self._weights)

    def save(self, path: Path) -> int:
        """The average as one safetensors file. Returns how many updates are in it, for the caller to keep."""
        tensors = {name: average.contiguous() for name, average in zip(self._names, self._averages, strict=True)}
        save_file(tensors, path)
        return self._ema.optimization_step

    def load(self, path: Path, updates: int) -> None:
        """Continue an average that has taken in `updates` steps."""
        tensors = load_file(path)
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(tensors[name])
        self._ema.optimization_step = updates

    @property
    def _averages(self) -> list:
        return self._ema.shadow_params
