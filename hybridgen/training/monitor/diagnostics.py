"""Diagnostics: what is logged of a run beside its losses, and the plot of all of it.

Always: losses by source of the mixture and by noise level (`breakdown`), model FLOPs utilisation (`flops`) and peak
memory. Every `diagnostics.every` steps, `probes`: gradient norms by part, the angle between the text's and the images'
gradients, residual stream, attention entropy and largest logits. Probes run between the backward pass and the update;
gradients and random streams are set aside and put back, so that weights are the same bits with any `every`, and their
time is not counted in tokens per second.

Cost, in CPU time of one core with configs/demo.yaml (0.61 s per step):
- always on: 2.8 ms per step, 0.5 % (bytes and sources of tokens 1.2 ms, in the loader's thread; FLOPs 0.9 ms; sums
  0.5 ms)
- probes: as long as 2 steps (the two gradients 1.7 steps, the forward 0.3), so 2 % at every 100th step; and the memory
  of two more copies of the gradients
- plot: 2 s, at the end and at a save every two minutes
- measuring the peak of FLOPs: 0.1 s, at the start
"""

import os
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from hybridgen.core.layout import PADDING_DOCUMENT
from hybridgen.core.objectives import total
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.precision import choose_precision
from hybridgen.training.distributed.processes import sum_over_ranks, to_device
from hybridgen.training.distributed.sharding import resharded
from hybridgen.training.distributed.speed import eagerly
from hybridgen.training.monitor import probes, routing
from hybridgen.training.monitor.charts import draw
from hybridgen.training.monitor.flops import FlopCount, measured_peak
from hybridgen.training.monitor.tracking import say
from hybridgen.training.protocols import Stage

PLOT = "diagnostics.png"
PLOT_SECONDS = 120.0  # between two plots while training goes on, at least: a plot takes 2 s


class Diagnostics:
    """
    The trainer calls `probe` after the backward passes of a step, `end_step` after its update, `numbers` on log steps.

    Of a stage without a `breakdown` (the codec's) only gradient norms are logged: no losses by source, no FLOPs.

    Args:
        stage: its requires_grad flags are already set as for training, and its model is not yet sharded: FLOPs are
            counted from whole weights.
    """

    def __init__(self, config: TrainConfig, stage: Stage, accelerator: Accelerator):
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.every = config.diagnostics.every
        self.breakdown = getattr(stage, "breakdown", None)
        self._flops, self._peak, self._flop_count = 0.0, 0.0, None
        if self.breakdown is not None:
            self._flop_count = FlopCount(stage.model, cached=config.data.cache is not None)
            self._peak = self._peak_flops()
        self._probed: dict[str, float] = {}  # in this step
        self._routing: routing.Shares = {}  # when it was last looked at
        self._plotted = time.monotonic()
        self._hides_gradients = accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.every and self._hides_gradients and accelerator.is_main_process:
            say("diagnostics: DeepSpeed keeps gradients to itself, so their norms and angles are not shown")

    def _peak_flops(self) -> float:
        if self.config.diagnostics.peak_tflops is not None:
            return self.config.diagnostics.peak_tflops * 1e12
        device = self.accelerator.device
        bf16 = choose_precision(self.config.precision, device) == "bf16"
        return measured_peak(device, torch.bfloat16 if bf16 else torch.float32)

    # ------------------------------------------------------------------------------------------------------ in a step

    def probe(self, step: int, wrapped: nn.Module, batches: list[dict], counts: dict[str, Tensor]) -> float:
        """Run the probes, if step number `step` (from 1) is one with probes. Returns the seconds that they took.

        Args:
            wrapped: the model as the accelerator prepared it.
            batches: the step's micro-batches.
            counts: of each kind of loss, over the step and all ranks.
        """
        if not self.every or step % self.every:
            return 0.0
        start = time.monotonic()
        model, device = self.accelerator.unwrap_model(wrapped), self.accelerator.device
        if not self._hides_gradients:
            self._probed |= probes.norms(model)
        if self.breakdown is not None:
            with (
                probes.preserve_grads_and_rng(model, device),
                resharded(model),
                self.breakdown.paused(),
                eagerly(model),
            ):
                if not self._hides_gradients:
                    self._probed |= self._compare_gradients(wrapped, batches, counts)
                self._probed |= self._measure_activations(wrapped, to_device(batches[0], device))
        return time.monotonic() - start

    def _compare_gradients(
        self, wrapped: nn.Module, batches: list[dict], counts: dict[str, Tensor]
    ) -> dict[str, float]:
        """The gradients of the step's text losses alone and of its image losses alone, compared.

        The other losses stay in the graph with weight 0, so that no rank waits for a parameter that is not reached. A
        kind that is part of another one (`Stage.part_of`) is weighed and divided as that one is.
        """
        whole = {kind: getattr(self.stage, "part_of", {}).get(kind, kind) for kind in self.stage.kinds}
        groups = {
            name: [kind for kind in kinds if counts.get(kind, 0) > 0]
            for name, kinds in self.stage.gradient_groups.items()
        }
        if not all(groups.values()):
            return {}
        # accelerate divides by accumulation, DDP by ranks; our losses are already divided by global counts, so
        # undo both
        divided_by_libraries = self.config.accumulation * self.accelerator.num_processes
        gradients, divisors = [], {kind: counts[whole[kind]] for kind in self.stage.kinds}
        for kinds in groups.values():
            weights = {kind: self.stage.weights.get(whole[kind], 1.0) * (kind in kinds) for kind in self.stage.kinds}
            for batch in batches:
                losses = self.stage.losses(wrapped, to_device(batch, self.accelerator.device))
                self.accelerator.backward(total(losses, divisors, weights) * divided_by_libraries)
            gradients.append(probes.gradients(wrapped))
            probes.drop_grads(wrapped)
        return probes.compare(*gradients, names=tuple(groups))

    @torch.no_grad()
    def _measure_activations(self, wrapped: nn.Module, batch: dict) -> dict[str, float]:
        """One forward of this process' first micro-batch, with dropout and noise as in training."""
        model = self.accelerator.unwrap_model(wrapped)
        heads = {"text": model.lm_head}
        if hasattr(model.model, "generation_head"):
            heads["code"] = model.model.generation_head.vision_head
        real = batch["document_ids"] != PADDING_DOCUMENT
        with (
            probes.ActivationProbe(model.model.language_model, heads, real) as probe,
            routing.RoutingProbe(model.model, batch) as routers,
        ):
            self.stage.losses(wrapped, batch)
        self._routing = routers.shares()
        return probe.numbers() | routing.describe(self._routing)

    def end_step(self, batches: list[dict], taken: bool) -> dict[str, float]:
        """Count the step, unless it was skipped. Returns what the probes measured, to be logged."""
        if self.breakdown is not None:
            self.breakdown.settle(taken)
            self._flops += sum(self._flop_count.of(batch) for batch in batches)
        probed, self._probed = self._probed, {}
        return probed

    # -------------------------------------------------------------------------------------------------------- logging

    def numbers(self, seconds: float) -> dict[str, float]:
        """The numbers since the last call, over all ranks: one all-reduce.

        Args:
            seconds: of training since then.
        """
        ranks = self.accelerator.num_processes
        memory = torch.zeros(ranks, dtype=torch.float64)
        memory[self.accelerator.process_index] = peak_memory(self.accelerator.device)
        parts = [memory, torch.tensor([self._flops, self._peak], dtype=torch.float64)]
        if self.breakdown is not None:
            parts.append(self.breakdown.pop())
        self._flops = 0.0
        agreed = self._sum(torch.cat(parts))
        numbers = {"peak_memory_gb": float(agreed[:ranks].max()) / 1e9}
        flops, peak = agreed[ranks : ranks + 2].tolist()
        if flops:
            numbers |= {"flops": flops, "tflops": flops / seconds / 1e12, "mfu": flops / seconds / peak}
        if self.breakdown is not None:
            numbers |= self.breakdown.describe(agreed[ranks + 2 :])
        return numbers

    def validation_numbers(self) -> dict[str, float]:
        """The breakdown of the validation that has just run."""
        breakdown = getattr(self.stage, "validation_breakdown", None)
        if breakdown is None:
            return {}
        breakdown.settle()
        numbers = breakdown.describe(self._sum(breakdown.pop()))
        return {f"validation/{name}": value for name, value in numbers.items()}

    def plot(self, at_end: bool) -> None:
        """Draw `diagnostics.png` of the whole run, from `metrics.jsonl`, at most every PLOT_SECONDS."""
        has_curves = self.every or self.breakdown is not None
        due = at_end or time.monotonic() - self._plotted > PLOT_SECONDS
        if not (has_curves and due and self.accelerator.is_main_process):
            return
        folder = Path(self.config.output_dir)
        try:
            draw(folder / "metrics.jsonl", folder / PLOT)
            if self._routing:
                routing.draw(self._routing, folder)
        except OSError as error:
            say(f"could not draw {folder / PLOT} ({error.strerror}); the numbers are in metrics.jsonl")
        self._plotted = time.monotonic()

    # ------------------------------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict:
        """The sums since the last log, over all ranks, which call this together; as JSON."""
        # "kept" is a saved name, kept so that older states load
        return {} if self.breakdown is None else {"kept": self._sum(self._local_sums()).tolist()}

    def load_state_dict(self, state: dict | None) -> None:
        """Go on adding to these sums, on any number of ranks: the main process takes in those of all. Sums of other
        sources, or of older versions, are dropped."""
        sums = torch.tensor((state or {}).get("kept", ()), dtype=torch.float64)
        if self.breakdown is not None and self.accelerator.is_main_process and len(sums) == len(self._local_sums()):
            self._flops, self.breakdown.sums = float(sums[0]), sums[1:]

    def _local_sums(self) -> Tensor:
        """FLOPs and the breakdown of this rank since the last log."""
        return torch.cat([torch.tensor([self._flops], dtype=torch.float64), self.breakdown.sums.cpu()])

    def _sum(self, values: Tensor) -> Tensor:
        return sum_over_ranks(self.accelerator, values)


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that tensors took on a GPU, or that the process took, so far."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if os.name != "posix":
        return 0.0
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(used if sys.platform == "darwin" else used * 1024)
