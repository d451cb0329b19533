"""The loop: one for every stage. It steps, counts, logs, validates, samples, saves and resumes; it knows no model.

The stage (`protocols`) says what a batch and a loss are, `state.saving` what a state holds, `monitor.guard` which steps
are skipped, and `distributed.sharding` how weights are shared among processes.

A loss is divided once, by counts summed over all micro-batches of a step and all ranks. So the micro-batches of a step
are fetched before the first of them is run, and the loss of a step depends on neither packing, accumulation nor the
number of processes.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from torch import Tensor

from hybridgen.core.devices import sum_dtype
from hybridgen.core.files import write_whole
from hybridgen.core.objectives import total
from hybridgen.core.values import one_line
from hybridgen.data.loading import shares_of
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.agreement import caught, raise_together, read_together, share_bad_records
from hybridgen.training.distributed.processes import peers_lost, sum_over_ranks, to_device
from hybridgen.training.distributed.sharding import DistributedModel, full
from hybridgen.training.distributed.speed import eagerly
from hybridgen.training.monitor.diagnostics import Diagnostics
from hybridgen.training.monitor.guard import Guard
from hybridgen.training.monitor.meter import Meter
from hybridgen.training.monitor.tracking import Tracker, say
from hybridgen.training.optim.ema import WeightAverage
from hybridgen.training.optim.optimization import build_optimizer, freeze, lr_factor
from hybridgen.training.optim.rows import HeldRows
from hybridgen.training.protocols import Stage
from hybridgen.training.state.checkpointing import whole_folder
from hybridgen.training.state.saving import Saved, find_state, load_state, position_in_data, save_state
from hybridgen.training.state.stopping import CAUSES, StopSignal
from hybridgen.training.state.writing import BackgroundWriter, saves_in_background


class Trainer:
    """
    Args:
        stage: its model is frozen as the config's groups say, and prepared by the accelerator, here.
        accelerator: what `processes.make_accelerator` returns.
    """

    def __init__(self, config: TrainConfig, stage: Stage, accelerator: Accelerator):
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.folder, self.device = Path(config.output_dir), accelerator.device
        freeze(stage.model, config.groups)
        self.diagnostics = Diagnostics(config, stage, accelerator)
        self.weights = DistributedModel(accelerator, stage.model, self._make_optimizer, config.sharding)
        self.model, self.optimizer = self.weights.model, self.weights.optimizer
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.held_rows = HeldRows(accelerator.unwrap_model(self.model), config.groups)
        self.ema = None
        if config.ema is not None:
            self.ema = WeightAverage(accelerator.unwrap_model(self.model), config.ema.decay, config.ema.on_cpu)
        self.step, self.elapsed = 0, 0.0
        self.meter = Meter(stage)
        self.background = BackgroundWriter(accelerator) if saves_in_background(config, accelerator) else None
        self._stop, self._stopping = StopSignal(), False
        self._data: dict[str, float] = {}  # `Loader.totals` of all ranks
        self._missed: set[str] = set()  # what was due after this step, when the signal came

    def _make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = build_optimizer(model, self.config.optimizer, self.config.groups)
        self._group_settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return optimizer

    # ------------------------------------------------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Train to the end, or until SIGTERM or Ctrl-C. Returns whether it reached the end.

        Raises:
            ValueError: too many steps were skipped.
            OSError: a disk is full, a file of the data is gone, or another process is.
        """
        is_main = self.accelerator.is_main_process
        with peers_lost(self.accelerator, self.folder), self._stop.listening(aloud=is_main):
            self._restore()
            self.model.train()
            try:
                self._loop()
                if self.progress < 1 or self._missed:
                    self.say(
                        f"stopped by {self.stopped_by} after step {self.step}; the same command goes on from there"
                    )
                    return False
                self._save_result()
                return True
            finally:
                with contextlib.suppress(OSError, ValueError):  # closing rewinds, which needs files that may be gone
                    self.stage.loader.close()
                self.tracker.close()

    def _restore(self) -> None:
        """Go on from a state, if there is one; then open what needs to know the step: the guard, and the logs.

        All that may refuse the state comes before anything is loaded or said of it, and before `config.yaml` is that of
        the run that goes on.
        """
        found, run = find_state(self.config, self.accelerator, self.weights, self.say), {}
        if found is not None:
            position = position_in_data(found, self.accelerator)
            changes = self.stage.loader.changes(position)
            of_data = self.stage.loader.load_state_dict(position) or []
            notes = load_state(found, self.config, self.accelerator, self.weights, self.ema, changes) + of_data
            run = self._load_run(found.saved)
            for note in (*notes, f"going on from {found.folder}, {self.step} of {self.config.steps} steps done"):
                self.say(note)
        for group, settings in zip(self.optimizer.param_groups, self._group_settings, strict=True):
            group.update(settings)  # the config's, not those of the state
        is_main, logged = self.accelerator.is_main_process, asdict(self.config)
        if is_main:
            write_whole(self.folder / "config.yaml", yaml.safe_dump(logged, sort_keys=False))
        spike = self.config.spike
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            # DeepSpeed steps in the backward pass: a bad step cannot be skipped, so it ends the run
            spike = replace(spike, limit=1)
        self.guard = Guard(spike, self.folder / "skipped.jsonl" if is_main else None, self.step)
        if "guard" in run:
            self.guard.load_state_dict(run["guard"])
        arguments = (self.config.wandb, logged, self.config.steps, self.step, is_main, run.get("wandb"))
        self.tracker = Tracker(self.folder, *arguments, self.config.trackers)
        self._elapsed_before, self._started = self.elapsed, time.monotonic()
        self.meter.since = self._started

    def _loop(self) -> None:
        saved_step = self._make_up_for_missed()
        while self.progress < 1 and not self._should_stop():
            record = self._train_step()
            record |= self._validate() if self._is_due(self.config.validation.every) else {}
            if self._is_due(self.config.sampling.every):
                self._sample()
            self._log(record)
            self.tracker.advance(self.step, self.progress)
            if self.step % self.config.save_every == 0:
                self._save()
                saved_step = self.step
        if saved_step != self.step:
            self._save()
        if self.background is not None:
            self.background.wait()

    def _make_up_for_missed(self) -> int | None:
        """Validate and sample what a signal prevented. Returns the step whose state says so."""
        if not self._missed:
            return self.step
        self._log(self._validate() if "validation" in self._missed else {})
        if "sample" in self._missed:
            self._sample()
        return None

    def _log(self, record: dict) -> None:
        if record:
            self.tracker.log({"step": self.step, **record}, self.progress)

    @property
    def stopped_by(self) -> str | None:
        """What stopped the run: "SIGTERM" or "Ctrl-C", in this process or another."""
        return self._stop.cause

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1; the same on every rank."""
        by_time = 0.0 if self.config.max_seconds is None else self.elapsed / self.config.max_seconds
        return min(1.0, max(self.step / self.config.steps, by_time))

    def _should_stop(self) -> bool:
        """Whether all ranks know of a signal to stop: one process knows at once, several from the next step's
        all-reduce."""
        alone = self.accelerator.num_processes == 1
        return self._stopping or (alone and self._stop.requested)

    # ------------------------------------------------------------------------------------------------------ one step

    def _train_step(self) -> dict:
        """
        1. Fetch the step's micro-batches, so that their labels can be counted.
        2. Sum the counts over all ranks, and set the learning rate.
        3. Forward and backward of each, every loss divided by its global count.
        4. One optimizer step and the average, unless the step is to be skipped.
        5. On log steps, the numbers.
        """
        batches, error = caught(self._fetch)
        counts, size = self._global_counts(batches or [], error)
        factor = lr_factor(self.config.schedule, self.step, self.progress)
        for group, settings in zip(self.optimizer.param_groups, self._group_settings, strict=True):
            group["lr"] = settings["base_lr"] * factor
        self.stage.begin_step(self.step, self.progress)
        sums = self._forward_backward(batches, counts)
        divisors = dict(zip(self.stage.kinds, counts.float().to(self.device), strict=True))
        self.meter.pause(self.diagnostics.probe(self.step + 1, self.model, batches, divisors))
        norm, taken = self._update(sums, counts, batches)
        self.step += 1
        self.meter.add_size(size)
        probed = self.diagnostics.end_step(batches, taken)
        logs = self.step % self.config.log_every == 0 or self.progress >= 1
        return (self._numbers(self.config.optimizer.lr * factor, norm) if logs else {}) | probed

    def _fetch(self) -> list[dict]:
        """The micro-batches of a step.

        Raises:
            OSError: a file of the data cannot be read any more.
        """
        start = time.monotonic()
        try:
            batches = [next(self.stage.loader) for _ in range(self.config.accumulation)]
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
            raise OSError(
                f"the data of step {self.step + 1} cannot be read ({reason}); bring the file back and start the same "
                "command again, which goes on from the last saved state"
            ) from error
        self.meter.waited += time.monotonic() - start
        return batches

    def _global_counts(self, batches: list[dict], error: Exception | None = None) -> tuple[Tensor, Tensor]:
        """Each loss' count (kinds,) and (size, capacity) over all micro-batches of the step and all ranks. The same
        all-reduce tells every rank of a signal to stop in any of them, of the main process' clock, of how much data has
        come from where, whether one cannot read on or has met broken records, and whether the state that is written in
        the background failed.

        Args:
            error: why this rank has no micro-batches.

        Raises:
            ValueError, OSError: on all ranks, that of the first one that has an error.
        """
        loader, kinds = self.stage.loader, self.stage.kinds
        told = dict.fromkeys((*kinds, "size", "capacity"), 0.0)
        for batch in batches:
            counts = self.stage.counts(batch)
            size, capacity = self.stage.size(batch)
            for name, count in {**{kind: counts[kind] for kind in kinds}, "size": size, "capacity": capacity}.items():
                told[name] += count
        clock = self._elapsed_before + time.monotonic() - self._started if self.accelerator.is_main_process else 0.0
        signals = {cause: float(self._stop.cause == cause) for cause in CAUSES}
        data = {f"data/{name}": count for name, count in getattr(loader, "totals", dict)().items()}
        reading = {"unread": float(error is not None), "broken": float(getattr(loader, "unshared", 0))}
        unwritten = float(self.background is not None and self.background.failed)
        told |= {**signals, "clock": clock, **data, **reading, "unwritten": unwritten}
        summed = self._sum(torch.tensor(list(told.values()), dtype=torch.float64))
        of_all = dict(zip(told, summed.tolist(), strict=True))
        raise_together(self.accelerator, error, of_all["unread"])
        if of_all["broken"]:
            share_bad_records(self.accelerator, loader)
        if of_all["unwritten"]:
            self.background.wait()  # raises
        self.elapsed, self._data = of_all["clock"], {name.removeprefix("data/"): of_all[name] for name in data}
        for cause in CAUSES:
            if of_all[cause]:
                self._stop.request(cause)
                self._stopping = True
        return summed[: len(kinds)], summed[len(kinds) : len(kinds) + 2]

    def _forward_backward(self, batches: list[dict], counts: Tensor) -> Tensor:
        """Gradients of all micro-batches, over all ranks. Returns the sum of each loss (kinds,) on this rank."""
        sums = torch.zeros(len(self.stage.kinds), dtype=sum_dtype(self.device), device=self.device)
        divisors = dict(zip(self.stage.kinds, counts.float().to(self.device), strict=True))
        # accelerate divides by the accumulation and data parallelism by the ranks, but the losses are divided already
        divided_by_libraries = self.config.accumulation * self.accelerator.num_processes
        for number, batch in enumerate(batches, start=1):
            with self.weights.accumulating(last=number == len(batches)):
                losses = self.stage.losses(self.model, to_device(batch, self.device))
                self.accelerator.backward(total(losses, divisors, self.stage.weights) * divided_by_libraries)
            sums += torch.stack([losses[kind][0].detach().to(sums.dtype) for kind in self.stage.kinds])
        return sums

    def _update(self, sums: Tensor, counts: Tensor, batches: list[dict]) -> tuple[float, bool]:
        """Clip and step; returns the gradient's norm and whether the step was taken. A skipped one changes nothing.

        Raises:
            ValueError: too many steps were skipped.
        """
        self.held_rows.drop_gradients()
        norm = self.accelerator.clip_grad_norm_(self.trainable, self.config.clip or math.inf)
        sums, norm = self._sum(sums), float(full(norm))
        skip_reason = self.guard.skip_reason(self.meter.loss(sums, counts), norm)
        if skip_reason is None:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
            self.meter.add_losses(sums, counts)
        self.optimizer.zero_grad()
        if skip_reason is not None:
            self.say(self.guard.skip(self.step + 1, skip_reason, self._records(batches)))
        return norm, skip_reason is None

    def _records(self, batches: list[dict]) -> list[str]:
        """Where the records in these micro-batches are from, on all ranks."""
        local = [self.stage.loader.where(record) for batch in batches for record in batch.get("records", ())]
        return list(dict.fromkeys(gather_object(local)))

    def _sum(self, values: Tensor) -> Tensor:
        return sum_over_ranks(self.accelerator, values)

    # ------------------------------------------------------------------------------------ logs, validation, samples

    def say(self, sentence: str) -> None:
        """Print a sentence, on the main process only."""
        if self.accelerator.is_main_process:
            say(sentence)

    def _numbers(self, lr: float, norm: float) -> dict:
        """The numbers since the last log, over all ranks."""
        diagnosed = self.diagnostics.numbers(time.monotonic() - self.meter.since)
        record = self.meter.read() | {"lr": lr, "grad_norm": norm, "seconds": self.elapsed} | diagnosed
        record |= {"skipped": self.guard.total} if self.guard.total else {}
        shares = shares_of(self._data) or self.stage.loader.shares()
        record |= {f"share/{name}": share for name, share in shares.items()}
        long = {"documents_cut": self._data.get("cut"), "tokens_dropped": self._data.get("dropped")}
        return record | {name: count for name, count in long.items() if count}

    def _is_due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.progress >= 1)

    def _validate(self) -> dict:
        """Losses of the averaged weights on the validation batches, over all ranks. Where a signal says to stop, it is
        left to the run that goes on from here."""
        summed = torch.zeros(2, len(self.stage.kinds), dtype=sum_dtype(self.device), device=self.device)
        with self.evaluating(), torch.no_grad():
            for batch in read_together(self.accelerator, self.stage.validation_batches):
                if self._should_stop():
                    self._missed.add("validation")
                    return {}
                losses = self.stage.losses(self.model, to_device(batch, self.device))
                for part in (0, 1):  # sum, count
                    summed[part] += torch.stack([losses[kind][part].to(summed.dtype) for kind in self.stage.kinds])
        self._missed.discard("validation")
        if (loader := getattr(self.stage, "validation_loader", None)) is not None:
            share_bad_records(self.accelerator, loader)
        return self.meter.means(*self._sum(summed), prefix="validation/") | self.diagnostics.validation_numbers()

    def _sample(self) -> None:
        """Save what the averaged weights draw as `samples/step_N.png`; left to the run that goes on from here, where a
        signal says to stop."""
        if self._should_stop():
            self._missed.add("sample")
            return
        self._missed.discard("sample")
        with self.evaluating():
            model = self.weights.gather()
            image = None if model is None else self.stage.sample(model)
        if image is not None:
            self.tracker.picture(self.step, self.folder / "samples" / f"step_{self.step:06d}.png", image)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Averaged weights and eval mode inside; the time does not count in tokens per second."""
        start = time.monotonic()
        with (
            self.ema.applied() if self.ema is not None else contextlib.nullcontext(),
            self.weights.evaluating(),
            eagerly(self.model),
        ):
            yield
        self.meter.pause(time.monotonic() - start)

    # ---------------------------------------------------------------------------------------------------------- states

    def _save(self) -> None:
        start = time.monotonic()
        arguments = (self.config, self.accelerator, self.weights, self.ema, self.step, self._state())
        save_state(*arguments, self.background)
        self.diagnostics.plot(at_end=self.progress >= 1)
        self.meter.pause(time.monotonic() - start)

    def _state(self) -> Saved:
        """What a state holds beside tensors; called by all processes together."""
        run = {"step": self.step, "elapsed": self.elapsed, "tally": self.meter.tally.tolist()}
        run |= {"guard": self.guard.state_dict(), "wandb": self.tracker.run_id, "missed": sorted(self._missed)}
        position = self.stage.loader.state_dict()
        if not self.accelerator.is_main_process:
            position.pop("broken", None)  # the same in all
        return Saved(run, {"loader": position, "diagnostics": self.diagnostics.state_dict()})

    def _load_run(self, saved: Saved) -> dict:
        """Returns the run's part: the guard and the tracker, which are made later, take theirs from it."""
        self.step, self.elapsed = saved.run["step"], saved.run["elapsed"]
        self._missed = set(saved.run.get("missed", ()))
        self.diagnostics.load_state_dict(saved.rank.get("diagnostics"))
        tally = torch.tensor(saved.run.get("tally", []), dtype=torch.float64)
        if tally.shape == self.meter.tally.shape:  # else the objective has other kinds of losses now
            self.meter.tally = tally
        return saved.run

    def _save_result(self) -> None:
        """Save the stage's result, made of the averaged weights, as `checkpoint/`."""
        with whole_folder(self.folder / "checkpoint", self.accelerator, manifest=False) as aside, self.evaluating():
            model = self.weights.gather()
            if model is not None:
                self.stage.save(model, aside)
