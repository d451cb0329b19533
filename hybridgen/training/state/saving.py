"""States of a run: everything that the next step depends on, written by all processes and read by any number of them.

A state belongs to no number of processes. Weights, their average, moments, the schedule, the position in the data, the
guard's memory and the log's sums are the run's, whether weights are whole (one process, DDP) or sharded (FSDP2).
Dropout's random streams are each process' own: with another number of processes they begin anew. What must stay, in
the model stage, are the rows of a batch over all processes (`data.per_device_batch_size` times processes) and their
length: a position in the data counts such batches. `accumulation` may change, and with it the rows of a step.

Moments and averages are filed under the names of their parameters (`moments`), so that optimizer, groups and frozen
parts may change between two runs: what has a like under its name is carried over, and the rest begins anew, and is
said.

`checkpointing` gets a folder to disk whole, `writing` in the background. What is no tensor the trainer hands over as
JSON:

    state/step_N/trainer.json    the run's part, written by the main process
    state/step_N/rank_R.json     each process' part
    state/step_N/...             weights, average, optimizer and random streams: in shards (FSDP2, and whatever is
                                 written in the background), else whole; any run reads both
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_type_hints

import torch
from accelerate import Accelerator, DistributedType
from accelerate import accelerator as of_accelerate
from accelerate.checkpointing import load_accelerator_state
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as sharded_files
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from hybridgen.core.files import read_json, write_json
from hybridgen.data.loading import merge_positions
from hybridgen.training.config import strict
from hybridgen.training.config.renamed import with_new_names
from hybridgen.training.config.schema import UNSAID, TrainConfig
from hybridgen.training.distributed.processes import seed_dropout
from hybridgen.training.distributed.sharding import DistributedModel
from hybridgen.training.optim.ema import WeightAverage
from hybridgen.training.state import moments
from hybridgen.training.state.checkpointing import choose_state, prune, remove_all, step_folder, whole_folder
from hybridgen.training.state.writing import BackgroundWriter, Shards, write_shards

SAME_ON_RESUME = ("stage", "model", "lora", "vq_model", "vae")  # settings with which alone a run is resumed
SHARDED_FOLDER = "pytorch_model_fsdp_0"  # accelerate's folder of a sharded model
PLACE_IN_DATA = "the run goes on at its place in them, but some records may come twice in this epoch and others not"
AVERAGE, SHARDED_AVERAGE = "ema.safetensors", "ema"


class Saved(NamedTuple):
    """What a state holds beside tensors, as JSON: the run's part, the same in all processes, and this process' own."""

    run: dict
    rank: dict


class FoundState(NamedTuple):
    """A state that this run may go on from, of which no tensor was read yet.

    `parameter_names` are its optimizer's in order; None where its shards are filed by name and the order is not known.
    """

    folder: Path
    saved: Saved
    parameter_names: list[str] | None
    changed_settings: list[str]

    @property
    def sharded(self) -> bool:
        return (self.folder / SHARDED_FOLDER).exists()


def save_state(
    config: TrainConfig,
    accelerator: Accelerator,
    weights: DistributedModel,
    ema: WeightAverage | None,
    step: int,
    content: Saved,
    background: BackgroundWriter | None = None,
) -> None:
    """Write `state/step_N`, all processes together; with a `background`, begin to."""
    states = Path(config.output_dir) / "state"
    folder = step_folder(states, step)

    def write_own(aside: Path) -> None:
        write_json(aside / f"rank_{accelerator.process_index}.json", content.rank)
        if accelerator.is_main_process:
            run = {"step": step, "processes": accelerator.num_processes, "config": asdict(config)}
            run |= {"averaged": 0 if ema is None else ema.updates, "parameters": weights.parameter_names}
            write_json(aside / "trainer.json", run | content.run)

    def write_own_and_random_streams(aside: Path) -> None:
        of_accelerate.save_accelerator_state(str(aside), [], [], [], [], accelerator.process_index, accelerator.step)
        write_own(aside)

    remove_old = partial(prune, states, config.keep_last, step)
    shards = _shards(weights, ema) if background is not None or accelerator.is_fsdp2 else {}
    if background is not None:
        background.write(folder, shards, write_own_and_random_streams, then=remove_old)
        return
    # made before all write together: a process that could not make one would leave the others waiting
    with whole_folder(folder, accelerator, inside=list(shards)) as aside:
        # what all write together comes first: a process whose own file fails leaves, and must leave none waiting
        if accelerator.is_fsdp2:
            write_shards(shards, aside)
            write_own_and_random_streams(aside)
        else:
            _save_average(accelerator, ema, aside)
            accelerator.save_state(str(aside))  # weights, optimizer, what a stage registered, then random streams
            write_own(aside)
    if accelerator.is_main_process:
        remove_old()


def _shards(weights: DistributedModel, ema: WeightAverage | None) -> Shards:
    """Weights, moments and average as they are written in shards."""
    parameters = [parameter for group in weights.optimizer.param_groups for parameter in group["params"]]
    named = zip(weights.parameter_names, (weights.optimizer.state.get(each) for each in parameters), strict=True)
    shards = {
        SHARDED_FOLDER: {"model": get_model_state_dict(weights.model)},
        moments.SHARDS: {"optimizer": {"state": {name: dict(state) for name, state in named if state}}},
    }
    return shards if ema is None else shards | {SHARDED_AVERAGE: ema.state_dict()}


def find_state(
    config: TrainConfig, accelerator: Accelerator, weights: DistributedModel, say: Callable[[str], None]
) -> FoundState | None:
    """The state that the config says to go on from, if there is one, and everything in it that is no tensor.

    Raises:
        ValueError: there is no state that can be trusted, it is of another model or form, or its moments cannot be
            told apart.
    """
    states = Path(config.output_dir) / "state"
    if config.resume == "never" and accelerator.is_main_process:
        remove_all(states)
    accelerator.wait_for_everyone()  # or one process could find states that the main one is removing
    folder = choose_state(config.resume, states, say)
    if folder is None:
        return None
    run = read_json(folder / "trainer.json")
    before = with_new_names(run["config"])
    changed_settings = changes_since(config, before, folder)
    same_processes = run.get("processes", accelerator.num_processes) == accelerator.num_processes
    rank = read_json(folder / f"rank_{accelerator.process_index if same_processes else 0}.json")
    names = run.get("parameters")
    if names is None and (folder / moments.WHOLE).exists():
        model = accelerator.unwrap_model(weights.model)
        names = moments.names_of_older_state(model, before, config.groups, folder)
    return FoundState(folder, Saved(run, rank), names, changed_settings)


def position_in_data(found: FoundState, accelerator: Accelerator) -> dict:
    """The place in the data of this process' rows: from its own file and the main process', which alone lists what is
    broken, or, where another number of processes goes on, from the files of all."""
    own, before = accelerator.process_index, found.saved.run.get("processes", accelerator.num_processes)
    ranks = [0, own] if before == accelerator.num_processes else range(before)
    parts = [read_json(found.folder / f"rank_{rank}.json")["loader"] for rank in ranks]
    return merge_positions(parts, own=1 if before == accelerator.num_processes else 0)


def load_state(
    found: FoundState,
    config: TrainConfig,
    accelerator: Accelerator,
    weights: DistributedModel,
    ema: WeightAverage | None,
    changed_data: list[str],
) -> list[str]:
    """Load weights, moments, random streams and average. Returns sentences on what is not as it was.

    Args:
        changed_data: what the loader says of the data (`Loader.changes`).
    """
    run, folder = found.saved.run, found.folder
    notes = _what_changed(folder, found.changed_settings, changed_data)
    anew = {"the moments": _load_weights_and_moments(found, accelerator, weights)}
    accelerator.step = 0  # of the micro-batches: a state ends with a whole step, and `accumulation` may have changed
    before, now = run.get("processes", accelerator.num_processes), accelerator.num_processes
    if before != now:
        seed_dropout(config.seed + run["step"])
        notes.append(f"{before} processes saved {folder}, {now} go on: dropout is drawn anew")
    if ema is not None:
        new, dropped = _load_average(ema, folder, run["averaged"])
        anew["the averages"] = new if run["averaged"] else []
        if dropped:
            names = moments.first_few(dropped)
            notes.append(f"the averages of {names} are dropped: frozen now, they stay as they were trained last")
    if any(anew.values()):
        shown = " and ".join(f"{what} of {moments.first_few(names)}" for what, names in anew.items() if names)
        notes.append(f"{shown} begin anew: {folder} has none that fit this config")
    return notes


def _what_changed(folder: Path, settings: list[str], data: list[str]) -> list[str]:
    """One sentence, if anything did."""
    sentences = []
    if settings:
        sentences.append(f"this config is not the one that {folder} was saved with: {'; '.join(settings)}")
    if data:
        data_are = "the data are not the same either" if settings else f"the data are not those of {folder}"
        sentences.append(f"{data_are}: {'; '.join(data)}; {PLACE_IN_DATA}")
    return ["; ".join(sentences)] if sentences else []


def _load_weights_and_moments(found: FoundState, accelerator: Accelerator, weights: DistributedModel) -> list[str]:
    """Also the random streams, where each process has one. Returns whose moments begin anew."""
    folder, optimizer, names = found.folder, weights.optimizer, weights.parameter_names
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # which numbers flat pieces of its own
        accelerator.load_state(str(folder))
        return []
    anew: list[str] = []
    if not (found.sharded or accelerator.is_fsdp2):

        def take(inner: torch.optim.Optimizer, whole: dict) -> dict:
            read = moments.by_name(whole, found.parameter_names, folder)
            fitting, anew[:] = moments.fit(inner, names, read, found.parameter_names)
            return fitting

        hook = optimizer.optimizer.register_load_state_dict_pre_hook(take)
        accelerator.load_state(str(folder))
        hook.remove()
        return anew
    _load_weights(found, weights.model)
    if found.sharded:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        read = moments.read_shards(folder, dict(zip(names, parameters, strict=True)))
    else:
        read = moments.read_whole(folder, found.parameter_names)
    fitting, anew = moments.fit(optimizer.optimizer, names, read, found.parameter_names or list(read))
    optimizer.optimizer.load_state_dict(fitting)
    load_accelerator_state(str(folder), [], [], [], [], accelerator.process_index)  # the random streams
    return anew


def _load_weights(found: FoundState, model) -> None:
    """Into a model that is sharded while the state is not, or the reverse, or both are."""
    if found.sharded:
        content = get_model_state_dict(model)
        sharded_files.load({"model": content}, checkpoint_id=found.folder / SHARDED_FOLDER)
        set_model_state_dict(model, content)
        return
    options = StateDictOptions(full_state_dict=True, strict=False)  # the file has only one of two tied weights
    set_model_state_dict(model, load_file(found.folder / "model.safetensors"), options=options)


def _save_average(accelerator: Accelerator, ema: WeightAverage | None, folder: Path) -> None:
    """Whole, in one file."""
    if ema is not None and accelerator.is_main_process:
        tensors = {name: average.contiguous() for name, average in ema.state_dict().items()}
        save_file(tensors, folder / AVERAGE)


def _load_average(ema: WeightAverage, state: Path, updates: int) -> tuple[list[str], list[str]]:
    """Returns whose averages begin anew, and whose are dropped."""
    now, saved, averages = ema.state_dict(), [], {}
    if (state / AVERAGE).exists():
        averages = load_file(state / AVERAGE)
        saved = list(averages)
    elif updates:
        saved = list(FileSystemReader(state / SHARDED_AVERAGE).read_metadata().state_dict_metadata)
        averages = {name: average for name, average in now.items() if name in saved}
        sharded_files.load(averages, checkpoint_id=state / SHARDED_AVERAGE)
    return ema.load_state_dict(averages, updates), [name for name in saved if name not in now]


def changes_since(config: TrainConfig, saved: dict, state: Path) -> list[str]:
    """The settings that are not those a state was saved with, each as `key: before -> now`.

    Args:
        saved: the config that the state was saved with, under today's names.

    Raises:
        ValueError: the state is of another model.
    """
    now, before = with_defaults(_as_json(config)), with_defaults(saved)
    for key in SAME_ON_RESUME:
        if different := _differences(before.get(key), now[key], key):
            raise ValueError(
                f"{state} is of a run whose {key} is not this config's ({'; '.join(different)}); choose another "
                "output_dir, or set resume=never to start over"
            )
    changed = [each for key in now for each in _differences(before.get(key), now[key], key)]
    return [each for each in changed if not each.startswith(("resume:", "output_dir:"))]


def _as_json(value) -> dict:
    """A config as it is saved: dataclasses are objects, keys strings."""
    return json.loads(json.dumps(value, default=asdict))


def with_defaults(saved: dict) -> dict:
    """A saved config with today's defaults where it is older than a setting, which meant the same then; and with the
    numbers that settings of drawing have where they are not given, which older configs wrote down."""
    hints, complete = get_type_hints(TrainConfig), dict(saved)
    for field in fields(TrainConfig):
        if field.name in saved:
            with contextlib.suppress(ValueError, TypeError):  # settings that are gone: compared as they are
                content = _with_steps(saved[field.name])
                complete[field.name] = _as_json(strict.convert(content, hints[field.name], field.name))
        elif field.default is not MISSING:
            complete[field.name] = field.default
        elif field.default_factory is not MISSING:
            complete[field.name] = _as_json(field.default_factory())
    sampling = complete["sampling"]
    complete["sampling"] = {**sampling, **{key: value for key, value in UNSAID.items() if sampling.get(key) is None}}
    return complete


def _with_steps(saved):
    """What was saved as JSON, whose keys are texts, with those that are steps as numbers."""
    if isinstance(saved, list):
        return [_with_steps(each) for each in saved]
    if isinstance(saved, dict):
        return {int(key) if key.isdecimal() else key: _with_steps(value) for key, value in saved.items()}
    return saved


def _are_settings(value) -> bool:
    """Whether it is a list of settings, as sources are."""
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _differences(saved, now, key: str) -> list[str]:
    """Where two settings differ, each as `key: before -> now`."""
    if _are_settings(saved) and _are_settings(now) and len(saved) == len(now):
        saved, now = dict(enumerate(saved)), dict(enumerate(now))
    if isinstance(saved, dict) and isinstance(now, dict):
        names = {**saved, **now}
        return [each for name in names for each in _differences(saved.get(name), now.get(name), f"{key}.{name}")]
    return [] if saved == now else [f"{key}: {saved!r} -> {now!r}"]
