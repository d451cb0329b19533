"""States of a run: everything that the next step depends on, written by all processes and read by any number of them.

A state belongs to no number of processes. Weights, their average, moments, the schedule, the position in the data, the
guard's memory and the log's sums are the run's, whether weights are whole (one process, DDP) or sharded (FSDP2).
Dropout's random streams are each process' own: with another number of processes they begin anew. What must stay, in
the model stage, are the rows of a batch over all processes (`data.per_device_batch_size` times processes) and their
length: a position in the data counts such batches. `accumulation` may change, and with it the rows of a step.

`checkpointing` gets a folder to disk whole. What is no tensor the trainer hands over as JSON:

    state/step_N/trainer.json    the run's part, written by the main process
    state/step_N/rank_R.json     each process' part
    state/step_N/...             weights, average, optimizer and random streams
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as sharded_files

from hybridgen.core.files import read_json, write_json
from hybridgen.training.config.renamed import with_new_names
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.sharding import SHARDED_FOLDER, DistributedModel
from hybridgen.training.optim.ema import WeightAverage
from hybridgen.training.state.checkpointing import choose_state, prune, remove_all, step_folder, whole_folder

SAME_ON_RESUME = ("stage", "model", "lora", "vq_model", "vae")  # settings with which alone a run is resumed


class Saved(NamedTuple):
    """What a state holds beside tensors, as JSON: the run's part, the same in all processes, and this process' own."""

    run: dict
    rank: dict


def save_state(
    config: TrainConfig, accelerator: Accelerator, ema: WeightAverage | None, step: int, content: Saved
) -> None:
    """Write `state/step_N`, all processes together."""
    folder = Path(config.output_dir) / "state"
    with whole_folder(step_folder(folder, step), accelerator) as aside:
        # what all write together comes first: a process whose own file fails leaves, and must leave none waiting
        _save_average(accelerator, ema, aside)
        accelerator.save_state(str(aside))  # weights, optimizer, then random streams
        write_json(aside / f"rank_{accelerator.process_index}.json", content.rank)
        if accelerator.is_main_process:
            run = {"step": step, "processes": accelerator.num_processes, "config": asdict(config)}
            run |= {"averaged": 0 if ema is None else ema.updates}
            write_json(aside / "trainer.json", run | content.run)
    if accelerator.is_main_process:
        prune(folder, config.keep_last, step)


def restore(
    config: TrainConfig,
    accelerator: Accelerator,
    weights: DistributedModel,
    ema: WeightAverage | None,
    say: Callable[[str], None],
) -> Saved | None:
    """Load weights, optimizer, random streams and average from where the config says.

    Returns:
        what the state holds beside tensors, or None where there is none to go on from.

    Raises:
        ValueError: there is no state that can be trusted, or it is of another model or form.
    """
    folder = Path(config.output_dir) / "state"
    if config.resume == "never" and accelerator.is_main_process:
        remove_all(folder)
    accelerator.wait_for_everyone()  # or one process could find states that the main one is removing
    state = choose_state(config.resume, folder, say)
    if state is None:
        return None
    run = read_json(state / "trainer.json")
    check_same_run(config, with_new_names(run["config"]), state, say)
    before, now = run.get("processes", accelerator.num_processes), accelerator.num_processes
    rank = read_json(state / f"rank_{accelerator.process_index if before == now else 0}.json")
    if accelerator.is_fsdp2 == (state / SHARDED_FOLDER).exists():
        accelerator.load_state(str(state))
    else:
        weights.load(state)
    if before != now:
        set_seed(config.seed + run["step"], device_specific=True)
        say(f"{before} processes saved {state}, {now} go on: dropout is drawn anew")
    if ema is not None and run["averaged"]:
        _load_average(ema, state, run["averaged"])
    say(f"going on from {state}, {run['step']} of {config.steps} steps done")
    return Saved(run, rank)


def _save_average(accelerator: Accelerator, ema: WeightAverage | None, folder: Path) -> None:
    if ema is None:
        return
    if accelerator.is_fsdp2:
        sharded_files.save(ema.state_dict(), checkpoint_id=folder / "ema")
    elif accelerator.is_main_process:
        tensors = {name: average.contiguous() for name, average in ema.state_dict().items()}
        save_file(tensors, folder / "ema.safetensors")


def _load_average(ema: WeightAverage, state: Path, updates: int) -> None:
    averages = ema.state_dict()
    if (state / "ema").exists():
        sharded_files.load(averages, checkpoint_id=state / "ema")
    else:
        averages = load_file(state / "ema.safetensors")
    ema.load_state_dict(averages, updates)


def check_same_run(config: TrainConfig, saved: dict, state: Path, say: Callable[[str], None]) -> None:
    """Refuse a state of another model; say which other settings are not those it was saved with.

    Args:
        saved: the config that the state was saved with, under today's names.

    Raises:
        ValueError: the state is of another model.
    """
    now = json.loads(json.dumps(asdict(config)))  # as it is saved, where keys are strings
    for key in SAME_ON_RESUME:
        before = saved.get(key)  # older states know fewer settings
        if now[key] != before:
            raise ValueError(
                f"{state} is of a run whose {key} is not this config's ({_difference(before, now[key], key)}); "
                "choose another output_dir, or set resume=never to start over"
            )
    changed = [_difference(saved.get(key), value, key) for key, value in now.items() if value != saved.get(key)]
    if changed := [each for each in changed if not each.startswith(("resume:", "output_dir:"))]:
        say(f"this config is not the one that {state} was saved with: {'; '.join(changed)}")


def _difference(saved, now, key: str) -> str:
    """The first place where two settings differ, as `key: before -> now`."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in {**saved, **now}:
            if saved.get(name) != now.get(name):
                return _difference(saved.get(name), now.get(name), f"{key}.{name}")
    return f"{key}: {saved!r} -> {now!r}"
