"""Diagnostics: what the trainer tells of a run beside its losses, and the plot of all of it.

Always: losses by entry of the mixture and by noise level (`breakdown`), model FLOPs utilisation (`flops`) and peak
memory. Every `diagnostics.every` steps a look inside (`probes`): gradient norms by part, the angle between the text's
and the images' gradients, residual stream, attention entropy and largest logits. The fact a newcomer gets wrong: none
of it changes a run. A look stands between the backward pass and the update; gradients and random streams are put aside
and put back, so weights are the same bits with any `every`, and its time is not counted in tokens per second.

What it costs, in CPU time of one core with configs/demo.yaml (0.61 s a step): what is always on 0.5 % of a step (of its
2.8 ms, bytes and sources of tokens take 1.2, in the loader's thread; FLOPs 0.9; sums 0.5), and a look two steps more
(the two gradients 1.7, the forward 0.3), so 2 % at every 100th step. A look holds two more copies of the gradients. The
plot takes 2 s, at the end and at a save every two minutes; a peak that is measured, 0.1 s at the start.
"""

import os
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from torch import Tensor, nn

from hybridgen.core.layout import PADDING_DOCUMENT
from hybridgen.core.objectives import total
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.speed import eagerly
from hybridgen.training.monitor import probes
from hybridgen.training.monitor.charts import draw
from hybridgen.training.monitor.flops import FlopCount, measured_peak
from hybridgen.training.monitor.tracking import say
from hybridgen.training.protocols import Stage

PLOT = "diagnostics.png"
PLOT_EVERY = 120.0  # seconds at least between two plots while training goes on: one takes about a second


class Diagnostics:
    """
    The trainer calls `look` after the backward passes of a step, `end` after its update, `numbers` on log steps.

    A stage without a `breakdown` (the codec's) has no entries, no FLOPs and no backbone; its gradients have norms.

    Args:
        stage: its model is frozen where it will be, and not yet sharded: FLOPs are counted from whole weights.
    """

    def __init__(self, config: TrainConfig, stage: Stage, accelerator: Accelerator):
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.every = config.diagnostics.every
        self.breakdown = getattr(stage, "breakdown", None)
        self._flops, self._peak, self._cost = 0.0, 0.0, None
        if self.breakdown is not None:
            self._cost = FlopCount(stage.model, cached=config.data.cache is not None)
            self._peak = self._peak_flops()
        self._found: dict[str, float] = {}
        self._plotted = time.monotonic()
        self._sharded_elsewhere = accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.every and self._sharded_elsewhere and accelerator.is_main_process:
            say("diagnostics: DeepSpeed keeps gradients to itself, so their norms and angles are not shown")

    def _peak_flops(self) -> float:
        if self.config.diagnostics.peak_tflops is not None:
            return self.config.diagnostics.peak_tflops * 1e12
        bf16 = self.accelerator.mixed_precision == "bf16"
        return measured_peak(self.accelerator.device, torch.bfloat16 if bf16 else torch.float32)

    # ------------------------------------------------------------------------------------------------------ in a step

    def look(self, step: int, wrapped: nn.Module, window: list[dict], counts: dict[str, Tensor]) -> float:
        """The look inside, where step number `step` (from 1) has one. Returns the seconds that it took.

        Args:
            wrapped: the model as the accelerator prepared it.
            window: the step's batches.
            counts: of each kind of loss, over the window and all ranks.
        """
        if not self.every or step % self.every:
            return 0.0
        start = time.monotonic()
        model, device = self.accelerator.unwrap_model(wrapped), self.accelerator.device
        if not self._sharded_elsewhere:
            self._found |= probes.norms(model)
        if self.breakdown is not None:
            with probes.untouched(model, device), self.breakdown.paused(), eagerly():
                if not self._sharded_elsewhere:
                    self._found |= self._sides(wrapped, window, counts)
                self._found |= self._inside(wrapped, send_to_device(window[0], device))
        return time.monotonic() - start

    def _sides(self, wrapped: nn.Module, window: list[dict], counts: dict[str, Tensor]) -> dict[str, float]:
        """The gradients of the step's text losses alone and of its image losses alone, compared.

        The other losses stay in the graph with weight 0, so that no rank waits for a parameter that is not reached.
        """
        sides = {name: [kind for kind in kinds if counts.get(kind, 0) > 0] for name, kinds in self.stage.sides.items()}
        if not all(sides.values()):
            return {}
        undo = self.config.accumulation * self.accelerator.num_processes  # as in the trainer's own backward
        found = []
        for kinds in sides.values():
            weights = {kind: self.stage.weights.get(kind, 1.0) * (kind in kinds) for kind in self.stage.kinds}
            for batch in window:
                losses = self.stage.losses(wrapped, send_to_device(batch, self.accelerator.device))
                self.accelerator.backward(total(losses, counts, weights) * undo)
            found.append(probes.gradients(wrapped))
            probes.forget(wrapped)
        return probes.compare(*found, names=tuple(sides))

    @torch.no_grad()
    def _inside(self, wrapped: nn.Module, batch: dict) -> dict[str, float]:
        """One forward of the main process' first batch, with dropout and noise as they are trained with."""
        model = self.accelerator.unwrap_model(wrapped)
        heads = {"text": model.lm_head}
        if hasattr(model.model, "generation_head"):
            heads["code"] = model.model.generation_head
        real = batch["document_ids"] != PADDING_DOCUMENT
        with probes.Inside(model.model.language_model, heads, real) as inside:
            self.stage.losses(wrapped, batch)
        return inside.numbers()

    def end(self, window: list[dict], counts: bool) -> dict[str, float]:
        """The step is over. Returns what was seen inside, to be logged.

        Args:
            counts: it was an update, and not skipped.
        """
        if self.breakdown is not None:
            self.breakdown.settle(counts)
            self._flops += sum(self._cost.of(batch) for batch in window)
        found, self._found = self._found, {}
        return found

    # -------------------------------------------------------------------------------------------------------- telling

    def numbers(self, seconds: float) -> dict[str, float]:
        """The numbers since they were last asked for, over all ranks: one all-reduce.

        Args:
            seconds: of training since then.
        """
        ranks = self.accelerator.num_processes
        memory = torch.zeros(ranks, dtype=torch.float64)
        memory[self.accelerator.process_index] = peak_memory(self.accelerator.device)
        parts = [memory, torch.tensor([self._flops, self._peak], dtype=torch.float64)]
        if self.breakdown is not None:
            parts.append(self.breakdown.take())
        self._flops = 0.0
        agreed = self._sum(torch.cat(parts))
        found = {"peak_memory_gb": float(agreed[:ranks].max()) / 1e9}
        flops, peak = agreed[ranks : ranks + 2].tolist()
        if flops:
            found |= {"tflops": flops / seconds / 1e12, "mfu": flops / seconds / peak}
        if self.breakdown is not None:
            found |= self.breakdown.describe(agreed[ranks + 2 :])
        return found

    def validation_numbers(self) -> dict[str, float]:
        """The same breakdown of the validation that has just been run."""
        breakdown = getattr(self.stage, "validation_breakdown", None)
        if breakdown is None:
            return {}
        breakdown.settle()
        numbers = breakdown.describe(self._sum(breakdown.take()))
        return {f"validation/{name}": value for name, value in numbers.items()}

    def plot(self, at_end: bool) -> None:
        """`diagnostics.png` of the whole run, from `metrics.jsonl`; between two of them go some minutes."""
        wanted = self.every or self.breakdown is not None
        due = at_end or time.monotonic() - self._plotted > PLOT_EVERY
        if not (wanted and due and self.accelerator.is_main_process):
            return
        folder = Path(self.config.output_dir)
        try:
            draw(folder / "metrics.jsonl", folder / PLOT)
        except OSError as error:
            say(f"could not draw {folder / PLOT} ({error.strerror}); the numbers are in metrics.jsonl")
        self._plotted = time.monotonic()

    # ------------------------------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict:
        """What has been added up since the last log, over all ranks, which call this together; JSON-able."""
        return {} if self.breakdown is None else {"kept": self._sum(self._mine()).tolist()}

    def load_state_dict(self, state: dict | None) -> None:
        """Go on adding, on any number of ranks: the main process' goes on from all. States of older versions, and of
        other entries, have nothing to add to."""
        kept = torch.tensor((state or {}).get("kept", ()), dtype=torch.float64)
        if self.breakdown is not None and self.accelerator.is_main_process and len(kept) == len(self._mine()):
            self._flops, self.breakdown.kept = float(kept[0]), kept[1:]

    def _mine(self) -> Tensor:
        """FLOPs and the breakdown of this rank, not taken away."""
        return torch.cat([torch.tensor([self._flops], dtype=torch.float64), self.breakdown.kept.cpu()])

    def _sum(self, values: Tensor) -> Tensor:
        """Over all ranks, on the CPU."""
        return self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum").cpu()


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that tensors took on a GPU, or that the process took, so far."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if os.name != "posix":
        return 0.0
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(used if sys.platform == "darwin" else used * 1024)
