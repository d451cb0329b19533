"""The loop: one for every stage. It steps, counts, logs, validates, samples, saves and resumes; it knows no model.

What a batch is and what a loss is are the stage's (`protocols`). The fact a newcomer gets wrong: a loss is divided
once, by counts summed over *all* micro-batches of a step and *all* ranks. So the batches of a step are fetched before
the first of them is run, and the loss of a step depends on neither packing, accumulation nor the number of processes.
"""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from hybridgen.objectives import total
from hybridgen.training import checkpointing as states
from hybridgen.training.config import TrainConfig
from hybridgen.training.diagnostics import Diagnostics
from hybridgen.training.ema import WeightAverage
from hybridgen.training.optimization import build_optimizer, freeze, lr_factor
from hybridgen.training.protocols import Stage
from hybridgen.training.speed import eagerly
from hybridgen.training.tracking import Tracker, say

FIXED = ("stage", "model", "lora", "vq_model")  # a run is not resumed with others
MAX_SKIPPED = 10  # steps in a row whose gradient is not finite


class Trainer:
    """
    Args:
        stage: its model is frozen by groups, and prepared by the accelerator, here.
        accelerator: made with `gradient_accumulation_steps=config.accumulation`.
    """

    def __init__(self, config: TrainConfig, stage: Stage, accelerator: Accelerator):
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.folder, self.device = Path(config.output_dir), accelerator.device
        freeze(stage.model, config.groups)
        self.diagnostics = Diagnostics(config, stage, accelerator)
        optimizer = build_optimizer(stage.model, config.optimizer, config.groups)
        self._settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self.model, self.optimizer = accelerator.prepare(stage.model, optimizer)
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.ema = WeightAverage(accelerator.unwrap_model(self.model), config.ema.decay) if config.ema else None
        self.step, self.elapsed = 0, 0.0
        # since the last log: sums of each loss and, last, the batches' size; their counts and, last, their capacity
        self.tally = torch.zeros(2, len(stage.kinds) + 1, dtype=torch.float64, device=self.device)
        self._skipped, self._waited = 0, 0.0
        self._asked_to_stop, self._stopping = threading.Event(), False

    # ------------------------------------------------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Train to the end, or until SIGTERM. Returns whether it came to the end."""
        run_id = self._restore()
        is_main = self.accelerator.is_main_process
        logged = asdict(self.config)
        self.tracker = Tracker(self.folder, self.config.wandb, logged, self.config.steps, self.step, is_main, run_id)
        self._elapsed_before, self._started = self.elapsed, time.monotonic()
        self._logged_at, saved = self._started, self.step
        self.model.train()
        try:
            with self._listening_to_sigterm():
                while self.progress < 1 and not self._should_stop():
                    record = self._train_step() | self._validate()
                    self._sample()
                    if record:
                        self.tracker.log({"step": self.step, **record}, self.progress)
                    self.tracker.advance(self.step)
                    if self.step % self.config.save_every == 0:
                        self._save_state()
                        saved = self.step
                if saved != self.step:
                    self._save_state()
            if self.progress < 1:
                self._say(f"stopped by SIGTERM after step {self.step} and saved it; start again to go on")
                return False
            self._save_result()
            return True
        finally:
            self.stage.loader.close()
            self.tracker.close()

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1; the same on every rank."""
        of_time = 0.0 if self.config.max_seconds is None else self.elapsed / self.config.max_seconds
        return min(1.0, max(self.step / self.config.steps, of_time))

    def _should_stop(self) -> bool:
        """Whether all ranks know of a SIGTERM: one process knows at once, several when they next agree."""
        alone = self.accelerator.num_processes == 1
        return self._stopping or (alone and self._asked_to_stop.is_set())

    def _train_step(self) -> dict:
        """
        1. Fetch the step's batches, so that what they hold can be counted.
        2. Agree on the counts over all ranks.
        3. Forward and backward of each, every loss divided by its global count.
        4. One optimizer step, and the average.
        5. On log steps, the numbers.
        """
        start = time.monotonic()
        window = [next(self.stage.loader) for _ in range(self.config.accumulation)]
        self._waited += time.monotonic() - start
        counts, size = self._agree(window)
        factor = lr_factor(self.config.schedule, self.step, self.progress)
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group["lr"] = settings["base_lr"] * factor
        self.stage.begin_step(self.step, self.progress)
        sums = torch.zeros(len(self.stage.kinds), dtype=torch.float64, device=self.device)
        # accelerate divides by the accumulation and data parallelism by the ranks, but these losses are divided already
        undo = self.config.accumulation * self.accelerator.num_processes
        for batch in window:
            with self.accelerator.accumulate(self.model):
                losses = self.stage.losses(self.model, send_to_device(batch, self.device))
                self.accelerator.backward(total(losses, counts, self.stage.weights) * undo)
            sums += torch.stack([losses[kind][0].detach().double() for kind in self.stage.kinds])
        self._logged_at += self.diagnostics.look(self.step + 1, self.model, window, counts)
        norm = self._update()
        self.step += 1
        self.tally[:, -1] += size
        if math.isfinite(norm):
            self.tally[0, :-1] += sums
            self.tally[1, :-1] += torch.stack([counts[kind].double() for kind in self.stage.kinds])
        seen = self.diagnostics.end(window, counts=math.isfinite(norm))
        logs = self.step % self.config.log_every == 0 or self.progress >= 1
        return (self._numbers(self.config.optimizer.lr * factor, norm) if logs else {}) | seen

    def _agree(self, window: list[dict]) -> tuple[dict[str, Tensor], Tensor]:
        """Each loss' count and (size, capacity) over all batches of the step and all ranks. The same all-reduce tells
        all whether any rank was asked to stop, and the main process' clock."""
        rows = []
        for batch in window:
            counts = self.stage.counts(batch)
            rows.append([*(counts[kind] for kind in self.stage.kinds), *self.stage.size(batch)])
        clock = self._elapsed_before + time.monotonic() - self._started if self.accelerator.is_main_process else 0.0
        signals = torch.tensor([self._asked_to_stop.is_set(), clock], dtype=torch.float64)
        mine = torch.cat([torch.tensor(rows, dtype=torch.float64).sum(0), signals]).to(self.device)
        agreed = self.accelerator.reduce(mine, reduction="sum")
        self._stopping, self.elapsed = bool(agreed[-2] > 0), float(agreed[-1])
        counts = {kind: agreed[number].float() for number, kind in enumerate(self.stage.kinds)}
        return counts, agreed[-4:-2]

    def _update(self) -> float:
        """Clip and step; returns the gradient's norm. A gradient that is not finite changes nothing.

        Raises:
            ValueError: it was not for too many steps in a row.
        """
        norm = float(self.accelerator.clip_grad_norm_(self.trainable, self.config.clip or math.inf))
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if not self._skipped:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
        self.optimizer.zero_grad()
        if self._skipped:
            self._say(f"the gradient of step {self.step + 1} is not finite: the step is skipped")
        if self._skipped >= MAX_SKIPPED:
            raise ValueError(
                f"the gradient was not finite for {MAX_SKIPPED} steps in a row, up to {self.step + 1}; lower "
                f"optimizer.lr {self.config.optimizer.lr} or set precision=fp32, and resume from the last saved state"
            )
        return norm

    # ------------------------------------------------------------------------------------------------ what it tells

    def _say(self, sentence: str) -> None:
        if self.accelerator.is_main_process:
            say(sentence)

    def _numbers(self, lr: float, norm: float) -> dict:
        """The numbers since the last log, over all ranks."""
        sums, counts = self.tally.clone()
        sums[:-1] = self.accelerator.reduce(sums[:-1].clone(), reduction="sum")
        now = time.monotonic()
        seconds = now - self._logged_at
        record = self._means(sums[:-1], counts[:-1])
        record |= {"lr": lr, "grad_norm": norm, f"{self.stage.unit}_per_second": float(sums[-1]) / seconds}
        record |= {"fill": float(sums[-1] / counts[-1]), "data_wait": self._waited / seconds, "seconds": self.elapsed}
        record |= {f"share/{name}": share for name, share in self.stage.loader.shares().items()}
        record |= self.diagnostics.numbers(seconds)
        self.tally.zero_()
        self._waited, self._logged_at = 0.0, now
        return record

    def _means(self, sums: Tensor, counts: Tensor, prefix: str = "") -> dict[str, float]:
        """Their weighted sum, the mean loss of each kind that occurred, and what the stage makes of them."""
        pairs = zip(self.stage.kinds, sums.tolist(), counts.tolist(), strict=True)
        means = {kind: value / count for kind, value, count in pairs if count}
        loss = sum(self.stage.weights.get(kind, 1.0) * mean for kind, mean in means.items())
        named = {"loss": loss, **{f"loss/{kind}": mean for kind, mean in means.items()}, **self.stage.describe(means)}
        return {prefix + name: value for name, value in named.items()}

    def _is_due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.progress >= 1)

    def _validate(self) -> dict:
        """Losses of the averaged weights on the fixed batches, over all ranks."""
        if not self._is_due(self.config.validation.every):
            return {}
        tally = torch.zeros(2, len(self.stage.kinds), dtype=torch.float64, device=self.device)
        with self._evaluating(), torch.no_grad():
            for batch in self.stage.validation_batches():
                losses = self.stage.losses(self.model, send_to_device(batch, self.device))
                for part in (0, 1):
                    tally[part] += torch.stack([losses[kind][part].double() for kind in self.stage.kinds])
        means = self._means(*self.accelerator.reduce(tally, reduction="sum"), prefix="validation/")
        return means | self.diagnostics.validation_numbers()

    def _sample(self) -> None:
        """A picture of what the averaged weights draw: `samples/step_N.png`."""
        if not self._is_due(self.config.sampling.every) or not self.accelerator.is_main_process:
            return
        with self._evaluating():
            image = self.stage.sample(self.accelerator.unwrap_model(self.model))
        if image is not None:
            self.tracker.picture(self.step, self.folder / "samples" / f"step_{self.step:06d}.png", image)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Averaged weights and eval mode inside; the time is not counted in tokens per second."""
        start = time.monotonic()
        self.model.eval()
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext(), eagerly():
            yield
        self.model.train()
        self._logged_at += time.monotonic() - start

    # ------------------------------------------------------------------------------------------------- what it keeps

    def _save_state(self) -> None:
        """Everything that the next step depends on."""
        start = time.monotonic()
        with states.written_aside(states.step_folder(self.folder / "state", self.step), self.accelerator) as aside:
            self.accelerator.save_state(str(aside))  # weights, optimizer, random streams
            mine = {"loader": self.stage.loader.state_dict(), "tally": self.tally.tolist()}
            mine["diagnostics"] = self.diagnostics.state_dict()
            states.write_json(aside / f"rank_{self.accelerator.process_index}.json", mine)
            if self.accelerator.is_main_process:
                averaged = 0 if self.ema is None else self.ema.save(aside / "ema.safetensors")
                run = {"step": self.step, "elapsed": self.elapsed, "averaged": averaged}
                run |= {"wandb": self.tracker.run_id, "config": asdict(self.config)}
                states.write_json(aside / "trainer.json", run)
        if self.accelerator.is_main_process:
            states.prune(self.folder / "state", self.config.keep_last)
        self.diagnostics.plot(at_end=self.progress >= 1)
        self._logged_at += time.monotonic() - start

    def _save_result(self) -> None:
        """`checkpoint/`: what the stage makes of the averaged weights."""
        folder = self.folder / "checkpoint"
        with states.written_aside(folder, self.accelerator, manifest=False) as aside, self._evaluating():
            if self.accelerator.is_main_process:
                self.stage.save(self.accelerator.unwrap_model(self.model), aside)

    def _restore(self) -> str | None:
        """Go on where the config says. Returns the wandb run to go on with, if any.

        Raises:
            ValueError: there is no state that can be trusted, or it is of another model.
        """
        if self.config.resume == "never" and self.accelerator.is_main_process:
            states.remove_all(self.folder / "state")
        state = states.choose(self.config.resume, self.folder / "state", self._say)
        if state is None:
            return None
        run = states.read_json(state / "trainer.json")
        self._check_same_run(run["config"], state)
        self.accelerator.load_state(str(state))
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        mine = state / f"rank_{self.accelerator.process_index}.json"
        mine = states.read_json(mine if mine.exists() else state / "rank_0.json")
        self.stage.loader.load_state_dict(mine["loader"])
        self.tally.copy_(torch.tensor(mine["tally"], dtype=torch.float64))
        self.diagnostics.load_state_dict(mine.get("diagnostics"))
        if self.ema is not None and (state / "ema.safetensors").exists():
            self.ema.load(state / "ema.safetensors", run["averaged"])
        self.step, self.elapsed = run["step"], run["elapsed"]
        self._say(f"going on from {state}, {self.step} of {self.config.steps} steps done")
        return run["wandb"]

    def _check_same_run(self, saved: dict, state: Path) -> None:
        """Refuse a state of another model; say which other settings are not those it was saved with."""
        now = json.loads(json.dumps(asdict(self.config)))  # as it is saved, where keys are strings
        for key in FIXED:
            before = saved.get(key)  # older states know fewer settings
            if now[key] != before:
                raise ValueError(
                    f"{state} is of a run whose {key} is not this config's ({_difference(before, now[key], key)}); "
                    "choose another output_dir, or set resume=never to start over"
                )
        changed = [_difference(saved.get(key), value, key) for key, value in now.items() if value != saved.get(key)]
        if changed := [each for each in changed if not each.startswith(("resume:", "output_dir:"))]:
            self._say(f"this config is not the one that {state} was saved with: {'; '.join(changed)}")

    @contextlib.contextmanager
    def _listening_to_sigterm(self) -> Iterator[None]:
        """Inside, SIGTERM ends the loop after the step that is running. Signals reach the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: self._asked_to_stop.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _difference(saved, now, key: str) -> str:
    """The first place where two settings differ, as `key: before -> now`."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in {**saved, **now}:
            if saved.get(name) != now.get(name):
                return _difference(saved.get(name), now.get(name), f"{key}.{name}")
    return f"{key}: {saved!r} -> {now!r}"
