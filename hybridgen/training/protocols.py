"""What the trainer is handed: a stage, and inside it a loader. Anything of this shape can be trained by the one loop.

The real stages are `stages.ModelStage`, `codec_stage.CodecStage` and `vae_stage.VAEStage`; the tests train a toy. A
stage that needs a second optimizer owns it and has accelerate save it (`adversarial`). The fact a newcomer gets wrong:
`losses` returns sums and counts and never divides, and every rank returns every kind, whatever its batch holds.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import nn

from hybridgen.core.objectives import Loss


class Loader(Protocol):
    """An endless iterator of batches (dicts of tensors) whose position is JSON, and the same on every rank.

    A batch may say under `records` which records it is made of, in values that `where` understands.
    """

    def __iter__(self) -> Iterator[dict]: ...

    def __next__(self) -> dict: ...

    def state_dict(self) -> dict:
        """The position after the last batch handed out."""

    def load_state_dict(self, state: dict) -> None: ...

    def where(self, record) -> str:
        """What a record is called: its source, file and line."""

    def shares(self) -> dict[str, float]:
        """Realised shares of the sources."""

    def close(self) -> None:
        """Stop whatever prepares batches ahead."""


class Stage(Protocol):
    """What is trained, and how.

    One that knows where its losses come from also has a `breakdown` (and, once it has validated, a
    `validation_breakdown`), which its `losses` fill, and `sides`: the kinds of losses whose gradients are compared.
    `diagnostics` tells of them.

    Args:
        model: its trainable parameters are.
        kinds: names of the losses.
        weights: of their means in the total (1 where none is given).
        unit: what `size` counts: "tokens", "pictures".
    """

    model: nn.Module
    loader: Loader
    kinds: tuple[str, ...]
    weights: dict[str, float]
    unit: str

    def begin_step(self, step: int, progress: float) -> None:
        """Called on every rank before the batches of a step are run."""

    def counts(self, batch: dict) -> dict[str, float]:
        """The count of each kind of loss in a batch, without a forward."""

    def size(self, batch: dict) -> tuple[int, int]:
        """How much a batch holds, in units, and how much would fit."""

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Loss]:
        """(sum, count) of each kind. `model` is the stage's own as accelerate wrapped it; what is random is a function
        of the batch, and fixed when `model.training` is false (validation)."""

    def validation_batches(self) -> Iterable[dict]:
        """The same batches each time."""

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        """Further numbers to log, from mean losses."""

    def sample(self, model: nn.Module) -> Image.Image | None:
        """A picture of what the model can do. `model` is the stage's own with its averaged weights or, where that is
        sharded, a whole copy of it."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the result of the run; `model` as for `sample`."""
