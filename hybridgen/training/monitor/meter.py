"""The numbers of training steps, added up from one log to the next.

`tracking` writes them to metrics.jsonl, a bar and wandb. Sums and counts are divided once, at the log: a mean of
means would weigh a step of ten tokens like one of a million.
"""

import time

import torch
from torch import Tensor

from hybridgen.training.protocols import Stage


class Meter:
    """What happened since the last log, over all processes.

    `tally` (2, kinds + 1): the sum of each loss and the size of the batches; below them the counts and how much would
    have fitted into the batches.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        self.tally = torch.zeros(2, len(stage.kinds) + 1, dtype=torch.float64)
        self.waited = 0.0  # seconds spent waiting for data
        self.since = time.monotonic()

    def add_size(self, size: Tensor) -> None:
        """(size, capacity) of a step's batches."""
        self.tally[:, -1] += size

    def add_losses(self, sums: Tensor, counts: Tensor) -> None:
        """The sums and counts of a step that was taken, in the order of the stage's kinds."""
        self.tally[0, :-1] += sums
        self.tally[1, :-1] += counts

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self.since += seconds

    def read(self) -> dict[str, float]:
        """The numbers since the last call; no loss where every step since then was skipped."""
        now = time.monotonic()
        seconds = now - self.since
        sums, counts = self.tally
        numbers = self.means(sums[:-1], counts[:-1]) if counts[:-1].any() else {}
        numbers[self.stage.unit] = float(sums[-1])
        numbers[f"{self.stage.unit}_per_second"] = float(sums[-1]) / seconds
        numbers |= {"fill": float(sums[-1] / counts[-1]), "data_wait": self.waited / seconds}
        self.tally = torch.zeros_like(self.tally)
        self.waited, self.since = 0.0, now
        return numbers

    def loss(self, sums: Tensor, counts: Tensor) -> float:
        """What is minimised: the weighted sum of the mean losses of the kinds that occurred."""
        return self._weighted(self._means(sums, counts))

    def means(self, sums: Tensor, counts: Tensor, prefix: str = "") -> dict[str, float]:
        """The total loss, the mean loss of each kind, and what the stage derives from them (`Stage.describe`)."""
        means = self._means(sums, counts)
        named = {"loss": self._weighted(means), **{f"loss/{kind}": mean for kind, mean in means.items()}}
        return {prefix + name: value for name, value in (named | self.stage.describe(means)).items()}

    def _means(self, sums: Tensor, counts: Tensor) -> dict[str, float]:
        pairs = zip(self.stage.kinds, sums.tolist(), counts.tolist(), strict=True)
        return {kind: value / count for kind, value, count in pairs if count}

    def _weighted(self, means: dict[str, float]) -> float:
        return sum(self.stage.weights.get(kind, 1.0) * mean for kind, mean in means.items())
