"""What the trainer is given: a stage, and inside it a loader. Anything of this shape can be trained by the one loop.

The real stages are `stages.model.ModelStage`, `stages.vq.VQStage` and `stages.vae.VAEStage`; the tests train a toy. A
stage that needs a second optimizer owns it and has accelerate save it (`stages.adversarial`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import nn

from hybridgen.core.objectives import Loss


class Loader(Protocol):
    """An endless iterator of batches (dicts of tensors) whose position is JSON.

    A batch may say under `records` which records it is made of, in values that `where` understands.

    One whose processes read different records also has `totals`, counts to be summed over processes, of which
    `given/NAME` make the shares, and what `distributed.agreement` needs to share broken records (`data.loading`).
    """

    def __iter__(self) -> Iterator[dict]: ...

    def __next__(self) -> dict: ...

    def state_dict(self) -> dict:
        """The position after the last batch that was returned."""

    def load_state_dict(self, state: dict) -> list[str] | None:
        """Returns sentences on what is not as it was."""

    def changes(self, state: dict) -> list[str]:
        """What of the data is not as it was when this state was saved, in a few words each."""

    def where(self, record) -> str:
        """The source, file and line of a record, for messages."""

    def shares(self) -> dict[str, float]:
        """The share of this process' data that has come from each source so far."""

    def close(self) -> None:
        """Stop whatever prepares batches ahead."""


class Stage(Protocol):
    """What is trained, and how.

    A stage may have a `validation_loader`, of the last validation, whose broken records are shared among processes. One
    that knows where its losses come from also has a `breakdown` (and, once it has validated, a
    `validation_breakdown`), which its `losses` fill, and `gradient_groups`: name -> the kinds of losses whose gradients
    `monitor.diagnostics` compares. Where kinds are summed into another one that alone is minimised (text and codes into
    `token`), `part_of` says so: part -> whole.

    Attributes:
        model: whose trainable parameters are optimised.
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
        """(sum, count) of each kind: never divided, and of every kind on every rank, whatever its batch holds.

        `model` is the stage's own as accelerate wrapped it. Noise is a function of the batch, and fixed when
        `model.training` is false (validation)."""

    def validation_batches(self) -> Iterable[dict]:
        """The same batches each time."""

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        """Further numbers to log, from mean losses."""

    def sample(self, model: nn.Module) -> Image.Image | None:
        """A picture of what the model can do. `model` is the stage's own with its averaged weights or, where that is
        sharded, a whole copy of it."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the result of the run; `model` as for `sample`."""
