"""One run of a study, from its config to its numbers, and many of them one after the other or side by side.

    FOLDER/run.json      what the run is: its config, and how it is scored; written first
    FOLDER/...           as training leaves it (metrics.jsonl, samples/, checkpoint/; state/ until it is finished)
    FOLDER/result.json   its numbers; written last, so that a run that has one is finished

A run that is finished is skipped, one that was interrupted goes on from its last saved state. A folder that holds a run
of other settings is refused: two of a study's runs must not differ in what nobody asked for.
"""

import gc
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from hybridgen.core.devices import best_device
from hybridgen.core.figures import read_curves
from hybridgen.core.files import read_json, write_json
from hybridgen.core.values import one_line, shown
from hybridgen.evaluation import environment
from hybridgen.evaluation.folder import LEFT_OVER, differences
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.studies.scoring import Scoring, score
from hybridgen.training.config.checks import load_config
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.monitor.tracking import say
from hybridgen.training.run import train

NOT_COMPARED = ("output_dir", "resume", "threads", "wandb", "trackers", "codec", "save_every", "keep_last", "log_every")
LOOKS = 10  # at held-out losses over a run


@dataclass(frozen=True)
class Run:
    """
    Args:
        name: of what is varied; the folder is made of it and the seed.
        file, overrides: its config, as `hybridgen train` takes both.
        scoring: how the checkpoint is scored; None = held-out losses are enough.
        about: what is known of it beforehand, as it will stand in its result.
    """

    name: str
    seed: int
    folder: Path
    file: Path
    overrides: tuple[str, ...]
    scoring: Scoring | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def is_finished(self) -> bool:
        return self.result_file.is_file()

    def config(self) -> TrainConfig:
        return load_config(self.file, list(self.overrides))

    def result(self) -> dict:
        return read_json(self.result_file)


def overrides_of(folder: Path, steps: int, seed: int) -> tuple[str, ...]:
    """What a study sets in every config: where a run writes, how long it is, and when it looks at held-out losses."""
    every = max(1, math.ceil(steps / LOOKS))
    settings = {"output_dir": str(folder), "steps": steps, "seed": seed, "validation.every": every}
    settings |= {"save_every": max(1, math.ceil(steps / 4)), "keep_last": 1, "log_every": min(20, every)}
    return tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())


def run_all(runs: Sequence[Run], jobs: int = 1) -> None:
    """Every run that is not finished yet, `jobs` of them at a time, each in a process of its own (1: all in this one).

    A run that fails does not keep the others from being made.

    Raises:
        ValueError: a folder holds another run (before any is begun), or runs failed (after all others are done).
    """
    for run in runs:
        check_folder(run)
    waiting = [run for run in runs if not run.is_finished]
    if done := len(runs) - len(waiting):
        say(f"{done} of {len(runs)} runs are finished already")
    failed = list(_one_by_one(waiting) if jobs == 1 else _side_by_side(waiting, jobs))
    if failed:
        names = "; ".join(f"{run.name}, seed {run.seed}: {reason}" for run, reason in failed)
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed ({names}); mend it, and the same command goes on")


def _one_by_one(runs: Sequence[Run]) -> Iterator[tuple[Run, str]]:
    for number, run in enumerate(runs, start=1):
        say(f"{run.name}, seed {run.seed} ({number} of {len(runs)} to be made)")
        try:
            make(run)
        except (ValueError, OSError) as error:
            say(f"{run.name}, seed {run.seed}: {one_line(error)}")
            yield run, one_line(error)


def _side_by_side(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, str]]:
    """Each run in a process of its own; not in a pool, which would begin more of them when it is told to stop. What
    stops this process stops them all, each with its state saved."""
    waiting, running, done = list(runs), {}, 0
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                child = _Child(waiting.pop(0))
                running[child.process.sentinel] = child
            for sentinel in wait(list(running)):
                child, done = running.pop(sentinel), done + 1
                reason = child.failure()
                say(f"{child.run.name}, seed {child.run.seed}: {reason or f'done ({done} of {len(runs)})'}")
                if reason is not None:
                    yield child.run, reason
    finally:
        _end(list(running.values()))
        signal.signal(signal.SIGTERM, before)


class _Child:
    """A run in a new process, not a forked one: torch's threads do not survive a fork."""

    def __init__(self, run: Run):
        context = multiprocessing.get_context("spawn")
        self.run, (self._heard, told) = run, context.Pipe(duplex=False)
        self.process = context.Process(target=_make_and_tell, args=(run, told))
        self.process.start()
        told.close()

    def failure(self) -> str | None:
        """Why the run, whose process has ended, is not finished; None if it is."""
        self.process.join()
        try:
            return self._heard.recv()
        except EOFError:  # nothing was told
            code = self.process.exitcode
        if self.run.is_finished:
            return None
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return "it was stopped before its end" if code == 0 else "its process failed; what it printed says why"


def _make_and_tell(run: Run, told: Connection) -> None:
    """What a process of its own does. Ctrl-C of a terminal reaches the one above alone, which then tells this one to
    stop; it stops as well when that is gone."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        make(run)
    except (ValueError, OSError) as error:
        told.send(one_line(error))


def _stop_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # upon which a run saves its state


def _stopped(*_) -> None:
    raise SystemExit(0)  # as a single run that SIGTERM stops


def _end(children: Sequence[_Child]) -> None:
    """Stop runs, which save their states; if this is interrupted as well, at once."""
    if not children:
        return
    try:
        for child in children:
            child.process.terminate()
        say("waiting until the runs have saved their states")
        for child in children:
            child.process.join()
    except BaseException:
        for child in children:
            child.process.kill()
        raise


def make(run: Run) -> dict:
    """Train, score, and write the result; what is done already is not done again. Returns the result."""
    if run.is_finished:
        return run.result()
    config = run.config()
    write_json(run.folder / "run.json", identity(run))
    if not (run.folder / "checkpoint").is_dir():
        torch._dynamo.reset()  # else layers of the last run's shapes count against how often one may be compiled anew
        train(config)
        gc.collect()
    scores = {}
    if run.scoring is not None:
        pipeline = load_pipeline(run.folder / "checkpoint").to(best_device())
        scores = score(pipeline, run.scoring, run.folder)
    curves = read_curves(run.folder / "metrics.jsonl")
    held_out = {name: values[-1] for name, (_, values) in curves.items() if name.startswith("validation/")}
    result = {
        "name": run.name, "seed": run.seed, **run.about, "steps": config.steps,
        "flops": sum(curves.get("flops", ((), ()))[1]), "tokens": sum(curves.get("tokens", ((), ()))[1]),
        "seconds": curves["seconds"][1][-1] if "seconds" in curves else None,
        "numbers": held_out | scores,
        "threads": torch.get_num_threads(), "versions": environment.versions(), "hardware": environment.hardware(),
    }  # fmt: skip
    write_json(run.result_file, result)
    shutil.rmtree(run.folder / "state", ignore_errors=True)  # what a finished run would go on from
    return result


def identity(run: Run) -> dict:
    """What two runs of the same name must have in common."""
    settings = {key: value for key, value in asdict(run.config()).items() if key not in NOT_COMPARED}
    scoring = None if run.scoring is None else asdict(run.scoring)
    return json.loads(json.dumps({"config": settings, "scoring": scoring}))  # as saved, where a tuple is a list


def check_folder(run: Run) -> None:
    """Raises ValueError where a run's folder holds a run of other settings, or something else."""
    file = run.folder / "run.json"
    if not file.is_file():
        if run.folder.exists() and not (
            run.folder.is_dir() and all(each.match(LEFT_OVER) for each in run.folder.iterdir())
        ):
            raise ValueError(f"{run.folder} holds something that no study wrote; choose another --out, or delete it")
        return
    for key, then, now in differences(read_json(file), identity(run)):
        raise ValueError(
            f"{run.folder} holds a run with {key} {shown(then)}, not {shown(now)}; choose another --out, or delete it"
        )
