"""The moving average of the trainable weights: what is validated, sampled from and saved at the end.

The arithmetic is that of diffusers' `EMAModel` (decay min(decay, (1 + t) / (10 + t))), on the rows that a process
holds: where weights are sharded, so is their average. To apply the average, it is swapped with the weights, tensor by
tensor, so there is never a third copy of the model; meanwhile nothing may be saved or updated.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybridgen.training.distributed.sharding import as_shard, local, local_part


class WeightAverage:
    """
    Args:
        model: as accelerate prepared it; its parameters are averaged where they are.
        decay: of the average, once it has warmed up.
        on_cpu: keep the average in main memory, which costs a copy of the weights over the bus each step.
    """

    def __init__(self, model: nn.Module, decay: float, on_cpu: bool = False):
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._names, self._weights = list(trainable), list(trainable.values())
        self.decay, self.updates = decay, 0
        device = torch.device("cpu") if on_cpu else None
        self._averages = [local(weight.detach()).to(device, copy=True) for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights after an optimizer step."""
        self.updates += 1
        step = self.updates - 1
        decay = min(self.decay, (1 + step) / (10 + step)) if step else 0.0
        weights = [local(weight).to(average.device) for weight, average in self._pairs()]
        torch._foreach_lerp_(self._averages, weights, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average; afterwards its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in self._pairs():
            rows = local(weight)
            before = rows.to(average.device, copy=True)
            rows.copy_(average)
            average.copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by name: DTensors, where the weights are sharded."""
        return {name: as_shard(average, w) for name, (w, average) in zip(self._names, self._pairs(), strict=True)}

    @torch.no_grad()
    def load_state_dict(self, averages: dict[str, Tensor], updates: int) -> list[str]:
        """Continue an average after `updates` steps; sharded as the weights are, or whole.

        Returns:
            the names that `averages` lacks: their averages begin anew, at the weights as they are.
        """
        for name, (weight, average) in zip(self._names, self._pairs(), strict=True):
            saved = averages.get(name, weight)
            average.copy_(local(saved) if isinstance(saved, DTensor) else local_part(saved, weight))
        self.updates = updates
        return [name for name in self._names if name not in averages]

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._weights, self._averages, strict=True)
