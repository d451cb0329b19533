"""What a run keeps, and how it goes on: everything that the next step depends on, and the result at the end.

How a folder gets to disk whole is `checkpointing`'s. The fact a newcomer gets wrong: a state belongs to no number of
processes. Weights, their average, moments, the schedule, the position in the data, the guard's memory and the log's
sums are the run's, and kept, whether weights are whole (one process, DDP) or sharded (FSDP2). Dropout's random streams
are each process' own: with another number of processes they begin anew. What must stay is the number of rows of a step,
`data.per_device_batch_size` times processes times `accumulation`'s batches.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as sharded_files

from hybridgen.training.distributed.sharding import SHARDED
from hybridgen.training.state import checkpointing as states

if TYPE_CHECKING:
    from hybridgen.training.trainer import Trainer

FIXED = ("stage", "model", "lora", "vq_model", "vae")  # a run is not resumed with others


def save_state(trainer: "Trainer") -> None:
    """Into `state/step_N`, by all processes together."""
    accelerator, folder = trainer.accelerator, trainer.folder / "state"
    with states.written_aside(states.step_folder(folder, trainer.step), accelerator) as aside:
        accelerator.save_state(str(aside))  # weights, optimizer, random streams
        _save_average(trainer, aside)
        mine = {"loader": trainer.stage.loader.state_dict(), "diagnostics": trainer.diagnostics.state_dict()}
        states.write_json(aside / f"rank_{accelerator.process_index}.json", mine)
        if accelerator.is_main_process:
            run = {"step": trainer.step, "elapsed": trainer.elapsed, "processes": accelerator.num_processes}
            run |= {"tally": trainer.meter.tally.tolist(), "guard": trainer.guard.state_dict()}
            run |= {"averaged": 0 if trainer.ema is None else trainer.ema.updates}
            run |= {"wandb": trainer.tracker.run_id, "config": asdict(trainer.config)}
            states.write_json(aside / "trainer.json", run)
    if accelerator.is_main_process:
        states.prune(folder, trainer.config.keep_last, trainer.step)


def save_result(trainer: "Trainer") -> None:
    """`checkpoint/`: what the stage makes of the averaged weights."""
    with (
        states.written_aside(trainer.folder / "checkpoint", trainer.accelerator, manifest=False) as aside,
        trainer.evaluating(),
    ):
        whole = trainer.weights.gather()
        if whole is not None:
            trainer.stage.save(whole, aside)


def restore(trainer: "Trainer") -> dict | None:
    """Go on where the config says. Returns what else `trainer.json` holds (`guard`, `wandb`), or None at the start.

    Raises:
        ValueError: there is no state that can be trusted, or it is of another model or form.
    """
    config, accelerator, folder = trainer.config, trainer.accelerator, trainer.folder / "state"
    if config.resume == "never" and accelerator.is_main_process:
        states.remove_all(folder)
    accelerator.wait_for_everyone()  # or one process could find states that another one is removing
    state = states.choose(config.resume, folder, trainer.say)
    if state is None:
        return None
    run = states.read_json(state / "trainer.json")
    _check_same_run(trainer, run["config"], state)
    before, now = run.get("processes", accelerator.num_processes), accelerator.num_processes
    mine = accelerator.process_index if before == now else 0
    own = states.read_json(state / f"rank_{mine}.json")
    trainer.stage.loader.load_state_dict(own["loader"])
    trainer.diagnostics.load_state_dict(own.get("diagnostics"))
    if accelerator.is_fsdp2 == (state / SHARDED).exists():
        accelerator.load_state(str(state))
    else:
        trainer.weights.load(state)
    if before != now:
        set_seed(config.seed + run["step"], device_specific=True)
        trainer.say(f"{before} processes saved {state}, {now} go on: dropout is drawn anew")
    trainer.meter.tally = torch.tensor(run.get("tally", trainer.meter.tally.tolist()), dtype=torch.float64)
    if trainer.ema is not None and run["averaged"]:
        _load_average(trainer, state, run["averaged"])
    trainer.step, trainer.elapsed = run["step"], run["elapsed"]
    trainer.say(f"going on from {state}, {trainer.step} of {config.steps} steps done")
    return run


def _save_average(trainer: "Trainer", folder: Path) -> None:
    if trainer.ema is None:
        return
    if trainer.accelerator.is_fsdp2:
        sharded_files.save(trainer.ema.state_dict(), checkpoint_id=folder / "ema")
    elif trainer.accelerator.is_main_process:
        tensors = {name: average.contiguous() for name, average in trainer.ema.state_dict().items()}
        save_file(tensors, folder / "ema.safetensors")


def _load_average(trainer: "Trainer", state: Path, updates: int) -> None:
    averages = trainer.ema.state_dict()
    if (state / "ema").exists():
        sharded_files.load(averages, checkpoint_id=state / "ema")
    else:
        averages = load_file(state / "ema.safetensors")
    trainer.ema.load_state_dict(averages, updates)


def _check_same_run(trainer: "Trainer", saved: dict, state: Path) -> None:
    """Refuse a state of another model; say which other settings are not those it was saved with."""
    now = json.loads(json.dumps(asdict(trainer.config)))  # as it is saved, where keys are strings
    for key in FIXED:
        before = saved.get(key)  # older states know fewer settings
        if now[key] != before:
            raise ValueError(
                f"{state} is of a run whose {key} is not this config's ({_difference(before, now[key], key)}); "
                "choose another output_dir, or set resume=never to start over"
            )
    changed = [_difference(saved.get(key), value, key) for key, value in now.items() if value != saved.get(key)]
    if changed := [each for each in changed if not each.startswith(("resume:", "output_dir:"))]:
        trainer.say(f"this config is not the one that {state} was saved with: {'; '.join(changed)}")


def _difference(saved, now, key: str) -> str:
    """The first place where two settings differ, as `key: before -> now`."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in {**saved, **now}:
            if saved.get(name) != now.get(name):
                return _difference(saved.get(name), now.get(name), f"{key}.{name}")
    return f"{key}: {saved!r} -> {now!r}"
