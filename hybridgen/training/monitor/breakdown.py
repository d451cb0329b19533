"""The losses of a step by source of the mixture and, for diffusion, by noise level.

No forward is added: the losses of single tokens and images, which the stage has anyway, are summed in float64 under the
source that the loader says they came from, and over ranks once per log (`diagnostics`). A source is an entry of
`data.sources`, with its own task and path, so two ways of reading the same pictures are told apart, though they share
the text loss. The sums of all sources are the sums that were trained on (the z-loss has none: it is a penalty, no
likelihood).

Shapes: S sources of the mixture, K kinds of losses, M labels of text or codes, I images of the diffusion path.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hybridgen.core.devices import sum_dtype
from hybridgen.core.objectives import DiffusionTargets, bits

KINDS = ("text", "code", "diffusion")
BINS = 10  # equal bins of the process' timesteps


class Breakdown:
    """
    Args:
        names: of the mixture's sources, in the order of the numbers in `source_ids`.
        weights: of the mean losses in the total.
        timesteps: of the diffusion process (`num_train_timesteps`).
        joint: text and codes have one mean, of the kind `token`.
    """

    def __init__(self, names: list[str], weights: dict[str, float], timesteps: int = 1000, joint: bool = False):
        self.names, self.weights, self.timesteps, self.joint = names, weights, timesteps, joint
        self._shapes = {"losses": (2, len(KINDS), len(names)), "bytes": (len(names),), "bins": (2, BINS)}
        self._sizes = [math.prod(shape) for shape in self._shapes.values()]
        self.sums = torch.zeros(sum(self._sizes), dtype=torch.float64)  # moved to the batches' device
        self._pending = torch.zeros_like(self.sums)
        self._paused = False

    # ------------------------------------------------------------------------------------------------------ adding up

    def add(
        self,
        batch: dict[str, Tensor],
        tokens: dict[str, tuple[Tensor, Tensor]],
        images: Tensor | None = None,
        targets: DiffusionTargets | None = None,
    ) -> None:
        """Add one forward's losses, which wait until `settle` says whether the step was taken. A batch that does not
        say where it came from (`source_ids`) is left out.

        Args:
            tokens: by kind ("text", "code"), where in the batch the predictions stand (B, N) and their losses (M,).
            images: (I,) losses of the images of the diffusion path, and the `targets` that they are of.
        """
        if self._paused or "source_ids" not in batch:
            return
        device = batch["source_ids"].device
        self._pending = self._pending.to(device, sum_dtype(device))
        parts = self._parts(self._pending)
        for kind, (where, losses) in tokens.items():
            self._add(parts["losses"][:, KINDS.index(kind)], batch["source_ids"][where], losses)
        parts["bytes"].add_(batch["text_bytes"].sum(0))
        if images is not None and "diffusion_sources" in batch:
            drawn = targets.weights > 0
            losses = images[drawn]
            self._add(parts["losses"][:, KINDS.index("diffusion")], batch["diffusion_sources"][drawn], losses)
            bins = (targets.timesteps[drawn] * (BINS / self.timesteps)).long().clamp(0, BINS - 1)
            self._add(parts["bins"], bins, losses)

    @staticmethod
    def _add(sums: Tensor, columns: Tensor, losses: Tensor) -> None:
        """Add losses (n,) and their number to sums and counts (2, C), each in its column (n,)."""
        losses = losses.detach().to(sums.dtype)
        sums[0].index_add_(0, columns, losses)
        sums[1].index_add_(0, columns, torch.ones_like(losses))

    def settle(self, taken: bool = True) -> None:
        """The step is over: count what waits, or drop it, where the step was skipped."""
        if taken:
            self.sums = self.sums.to(self._pending.device, self._pending.dtype) + self._pending
        self._pending.zero_()

    def pop(self) -> Tensor:
        """The sums, on the CPU; they begin at 0 again."""
        sums = self.sums.cpu().double()
        self.sums = torch.zeros_like(sums)
        return sums

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is added."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _parts(self, flat_sums: Tensor) -> dict[str, Tensor]:
        """One vector as views of its named parts."""
        pieces = flat_sums.split(self._sizes)
        return {name: piece.view(self._shapes[name]) for name, piece in zip(self._shapes, pieces, strict=True)}

    # -------------------------------------------------------------------------------------------------------- logging

    def describe(self, flat_sums: Tensor) -> dict[str, float]:
        """The numbers to log, from `sums` added over all ranks; what did not occur is absent.

        source/NAME/text, code, diffusion    mean nats per token or code; mean squared error per latent value
        source/NAME/bits_per_byte            of the text it teaches; bits_per_code of its codes
        source/NAME/loss                     its kinds' weighted sum, which the progress bar shows
        bits_per_byte, bits_per_code         over all sources that have one
        diffusion_at/300                     images whose timestep lies in [300, 400), where there are 1,000
        """
        parts = {name: part.tolist() for name, part in self._parts(flat_sums).items()}
        (text, code, _), (_, codes, _) = parts["losses"]
        numbers: dict[str, float] = {}
        for number, name in enumerate(self.names):
            sums, counts = ([of_kind[number] for of_kind in part] for part in parts["losses"])
            means = {kind: loss / n for kind, loss, n in zip(KINDS, sums, counts, strict=True) if n}
            if not means:
                continue
            counted = means
            if self.joint and (tokens := counts[0] + counts[1]):
                counted = means | {"token": (sums[0] + sums[1]) / tokens}
            numbers[f"source/{name}/loss"] = sum(self.weights.get(kind, 1.0) * mean for kind, mean in counted.items())
            of_source = means | in_bits(text[number], parts["bytes"][number], code[number], codes[number])
            numbers |= {f"source/{name}/{key}": value for key, value in of_source.items()}
        # a source without text bytes has labels of text only where a picture begins
        taught = [nats for nats, size in zip(text, parts["bytes"], strict=True) if size]
        numbers |= in_bits(sum(taught), sum(parts["bytes"]), sum(code), sum(codes))
        bins = zip(*parts["bins"], strict=True)
        begins = [place * self.timesteps // BINS for place in range(BINS)]
        return numbers | {f"diffusion_at/{t:03d}": loss / n for t, (loss, n) in zip(begins, bins, strict=True) if n}


def in_bits(text: float, text_bytes: float, code: float, codes: float) -> dict[str, float]:
    """Summed nats of text and of codes as bits for each byte and each code; what there is none of is absent."""
    numbers = {"bits_per_byte": bits(text) / text_bytes} if text_bytes else {}
    return numbers | ({"bits_per_code": bits(code) / codes} if codes else {})
