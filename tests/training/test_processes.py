"""Two processes are one, whole or sharded; what they say when one dies; and states that any number of them reads."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from hybridgen.training import checkpointing as states
from hybridgen.training import strict
from hybridgen.training.config import TrainConfig
from hybridgen.training.processes import make_accelerator
from hybridgen.training.stages import ModelStage
from hybridgen.training.trainer import Trainer
from tests.data.in_memory import drawings, numbered, questions, task
from tests.pipelines import tiny_pipeline
from tests.training.toy import ToyLoader, ToyStage, config_of, train
from tests.training.world import ROOT, World, launched_with, train_toy

FORMS = ["ddp", "fsdp2"]
MUON = {"name": "muon", "lr": 1e-3}  # it rounds to bf16 on the way, where the last bit of a sum may tip over
ALONE = {"data": {"sources": [], "rows": 2}, "log_every": 1, "steps": 8, "optimizer": MUON}
SHARED = {**ALONE, "data": {"sources": [], "rows": 1}}  # of each of two: rows without a, and without b, meet


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(ours: Path, theirs: Path, atol: float) -> None:
    """Final weights and every logged loss."""
    mine, other = load_file(ours / "checkpoint/toy.safetensors"), load_file(theirs / "checkpoint/toy.safetensors")
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=0, atol=atol)
    for here, there in zip(metrics_of(ours), metrics_of(theirs), strict=True):
        for key in ("step", "loss", "grad_norm", "fill", "validation/loss"):
            assert here.get(key) == pytest.approx(there.get(key), abs=1e-5), (key, here["step"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """8 steps of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(config_of(folder, **ALONE), dropout=0.0)
    return folder


# ------------------------------------------------------------------------------------------------- as many as you like


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_are_one(tmp_path, alone, form):
    """With Muon, clipping, accumulation, an average, validation and samples. Largest difference of a weight seen:
    5e-10, of a loss 2e-7."""
    World(tmp_path / "logs", train_toy, 2, form, folder=tmp_path / "two", changes=SHARED, dropout=0.0).finish()
    assert_alike(tmp_path / "two", alone, atol=1e-5)
    assert (tmp_path / "two" / "samples" / "step_000006.png").exists()
    state = tmp_path / "two" / "state" / "step_000008"
    assert states.damage(state) is None
    if form == "fsdp2":
        assert len(list((state / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2
        assert len(list((state / "ema").glob("*.distcp"))) == 2
        assert not (state / "model.safetensors").exists()


def test_bf16_is_autocast_where_weights_are_sharded(tmp_path):
    """And so the same as in one process: accelerate alone would keep sharded weights, and the outputs, in bf16. Largest
    difference of a loss seen: 2e-7; from fp32: 5e-3."""
    quick = {"optimizer": {"name": "adamw"}, "ema": None, "steps": 3}
    for precision in ("bf16", "fp32"):
        train(config_of(tmp_path / precision, **{**ALONE, **quick, "precision": precision}), dropout=0.0)
    changes = {**SHARED, **quick, "precision": "bf16"}
    World(tmp_path / "logs", train_toy, 2, "fsdp2", folder=tmp_path / "two", changes=changes, dropout=0.0).finish()
    losses = {run: [line["loss"] for line in metrics_of(tmp_path / run)] for run in ("two", "bf16", "fp32")}
    assert losses["two"] == pytest.approx(losses["bf16"], abs=1e-5)
    assert losses["two"] != pytest.approx(losses["fp32"], abs=1e-3)


def test_accelerate_starts_two(tmp_path, alone):
    """The command of configs/accelerate/ddp.yaml, on a machine without a GPU."""
    config, toy = ROOT / "configs/accelerate/ddp.yaml", ROOT / "tests/training/toy.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", "2", "--main_process_port", "0", str(toy), str(tmp_path / "two"), "dropout=0"]
    command += [f"{key}={json.dumps(value)}" for key, value in SHARED.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    assert_alike(tmp_path / "two", alone, atol=1e-5)
    assert (tmp_path / "two/state/step_000008/random_states_1.pkl").exists()


def test_states_are_read_by_any_number_in_any_form(tmp_path, alone):
    """1 -> 2 -> 1 -> 2 -> 1 processes, and whole -> sharded -> whole -> DDP -> sharded. Largest difference of a weight
    seen: 5e-10."""
    folder, said = tmp_path / "run", ""
    lives = [(1, 1, "single"), (3, 2, "fsdp2"), (5, 1, "single"), (7, 2, "ddp"), (8, 1, "fsdp2")]
    for number, (steps, processes, form) in enumerate(lives):
        changes = {**(SHARED if processes == 2 else ALONE), "steps": 8, "save_every": 1}
        said += World(
            tmp_path / f"logs{number}", train_until, processes, form, folder=folder, changes=changes, until=steps
        ).finish()
    assert_alike(folder, alone, atol=1e-5)
    assert len(re.findall("1 processes saved .*, 2 go on: dropout is drawn anew", said)) == 2
    assert len(re.findall("2 processes saved .*, 1 go on: dropout is drawn anew", said)) == 2


def train_until(folder: Path, changes: dict, until: int) -> None:
    """To a step, after which the process is told to stop, as by SIGTERM."""

    class Stopping(ToyStage):
        def begin_step(self, step, progress):
            if step + accelerator.num_processes == until < 8:  # of two, the other one is told in the next step
                trainer._stop._asked.set()

    config = config_of(folder, **changes)
    accelerator = make_accelerator(config)
    loader = ToyLoader(config.data.rows, accelerator.process_index, accelerator.num_processes)
    trainer = Trainer(config, Stopping(loader, dropout=0.0), accelerator)
    assert trainer.run() == (until == 8)


def test_gradients_travel_once_a_step(tmp_path):
    """With two batches a step, DDP reduces its one bucket once, and FSDP2 scatters each group's gradients once."""
    for form in FORMS:
        World(tmp_path / form, count_reductions, 2, form, folder=tmp_path / form / "run").finish()
        counted = json.loads((tmp_path / form / "run" / "counted.json").read_text())
        groups = 1 if form == "ddp" else 4  # two blocks, the norm, and the rest
        assert counted == [groups, groups, groups], form


def count_reductions(folder: Path) -> None:
    """How often gradients are reduced in each of three steps of two batches."""
    never = {"validation": {"every": 0}, "sampling": {"every": 0}, "ema": None}
    config = config_of(folder, **{**SHARED, **never, "steps": 3})
    accelerator = make_accelerator(config)
    trainer = Trainer(config, ToyStage(ToyLoader(1, accelerator.process_index, 2)), accelerator)
    counted, step = [], trainer._forward_backward
    reduction = "FSDP::post_backward_reduce" if accelerator.is_fsdp2 else "gloo:all_reduce"

    def counting(window, counts):
        with torch.profiler.profile() as profile:
            result = step(window, counts)
        counted.append(sum(event.name.startswith(reduction) for event in profile.events()))
        return result

    trainer._forward_backward = counting
    assert trainer.run()
    if accelerator.is_main_process:
        (folder / "counted.json").write_text(json.dumps(counted))


# ---------------------------------------------------------------------------------------------------- the real model


class TwoBatches:
    """Rank 0 gets text alone, rank 1 pictures alone; a single process gets both, one after the other."""

    def __init__(self, rank: int | None, tied: bool):
        pictures = [task(drawings(9), write="diffusion"), task(questions(9), name="ask")]
        self.stages = [model_stage([task(numbered(9), name="text")], tied), model_stage(pictures, tied)]
        self.loaders, self.rank, self.turn = [stage.loader for stage in self.stages], rank, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.turn += 1
        return next(self.loaders[(self.turn - 1) % 2 if self.rank is None else self.rank])

    def state_dict(self):
        return {}

    def shares(self):
        return {}

    def where(self, record):
        return str(record)

    def close(self):
        pass


def model_stage(tasks, tied: bool) -> ModelStage:
    from hybridgen.data.loading import RowLoader
    from hybridgen.data.mixture import Mixture

    config = strict.build(TrainConfig, {"output_dir": "none", "steps": 1, "data": {"sources": []}})
    pipeline = tiny_pipeline(tie_word_embeddings=tied)
    return ModelStage(config, pipeline, RowLoader(Mixture(tasks), pipeline.processor, 2, 80, prefetch=0))


def train_hybrid(folder: Path, of: int, tied: bool, gradient_checkpointing: bool = False) -> None:
    content = {"output_dir": str(folder), "steps": 3, "data": {"sources": []}, "ema": {"decay": 0.5}, "log_every": 1}
    content |= {"accumulation": 2 // of, "precision": "fp32", "validation": {"every": 2}, "save_every": 99}
    content |= {"optimizer": {"name": "muon", "lr": 1e-3}}
    config = strict.build(TrainConfig, content)
    accelerator = make_accelerator(config)
    batches = TwoBatches(accelerator.process_index if of == 2 else None, tied)
    stage = batches.stages[0]
    if gradient_checkpointing:
        stage.model.gradient_checkpointing_enable({"use_reentrant": False})
    stage.loader, held_out = batches, TwoBatches(batches.rank, tied)
    stage.validation_batches = lambda: [next(held_out) for _ in range(config.accumulation)]
    assert Trainer(config, stage, accelerator).run()


@pytest.mark.parametrize(("form", "tied"), [("ddp", False), ("fsdp2", False), ("fsdp2", True)])
def test_one_with_text_and_one_with_pictures(tmp_path, form, tied):
    """No process waits for the other, in training or validation, and the weights are those of one process that saw
    both. Worst difference of a weight seen after 3 steps of Muon: DDP 0, FSDP2 3e-6; of a loss: 2e-7. Activations are
    recomputed in the two."""
    World(tmp_path / "1", train_hybrid, folder=tmp_path / "one", of=1, tied=tied).finish()
    arguments = {"folder": tmp_path / "two", "of": 2, "tied": tied, "gradient_checkpointing": True}
    World(tmp_path / "2", train_hybrid, 2, form, **arguments).finish()
    ours, theirs = (load_file(tmp_path / run / "checkpoint/model/model.safetensors") for run in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023
    for mine, other in zip(metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert {"loss/text", "loss/diffusion"} <= mine.keys()


# ---------------------------------------------------------------------------------------------------- one is gone


@pytest.mark.parametrize(("dies", "form"), [(1, "ddp"), (0, "fsdp2")])
def test_one_that_dies_ends_the_others(tmp_path, dies, form):
    """Within seconds, and what is left says which process is gone and that nothing is lost."""
    changes = {**SHARED, "steps": 1000, "save_every": 4}
    world = World(tmp_path / "logs", train_toy, 2, form, folder=tmp_path / "run", changes=changes, pause=0.05)
    world.wait_for(tmp_path / "run/state/step_000004")
    world.kill(dies)
    started = time.monotonic()
    codes = world.wait()
    assert time.monotonic() - started < 150
    assert codes[dies] == -signal.SIGKILL
    assert codes[1 - dies] == 2, world.said()
    said = world.said(1 - dies)
    assert f"hybridgen: process {dies} of 2 is gone" in said
    assert "nothing is lost but the unsaved steps: the same command goes on from the last saved state" in said
    assert "Traceback" not in said


def test_sigterm_to_one_stops_both(tmp_path, alone):
    arguments = {"folder": tmp_path / "run", "dropout": 0.0}
    changes = {**SHARED, "save_every": 1000}
    world = World(tmp_path / "logs", train_toy, 2, "fsdp2", changes=changes, pause=0.1, **arguments)
    world.wait_for(tmp_path / "run/metrics.jsonl")
    started = time.monotonic()
    world.kill(1, signal.SIGTERM)
    assert world.wait() == [0, 0], world.said()
    assert time.monotonic() - started < 150
    assert "stopped by SIGTERM after step" in world.said(0)
    World(tmp_path / "logs", train_toy, 2, "fsdp2", changes=SHARED, **arguments).finish()
    assert_alike(tmp_path / "run", alone, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_is_full_for_one(tmp_path, form):
    """All end with one sentence, the last good state is kept, nothing is half written."""
    changes = {**SHARED, "save_every": 2, "ema": None}
    said = World(tmp_path / "logs", fill_disk, 2, form, folder=tmp_path / "run", changes=changes)
    assert said.wait() == [2, 2], said.said()
    for rank in (0, 1):
        assert "could not save" in said.said(rank)
        assert "everything saved before it is intact: free some space and start the same" in said.said(rank)
        assert "Traceback" not in said.said(rank)
    left = sorted(path.name for path in (tmp_path / "run/state").iterdir())
    assert left == ["step_000002", "step_000004"]
    assert all(states.damage(tmp_path / "run/state" / name) is None for name in left)


def fill_disk(folder: Path, changes: dict) -> None:
    """From step 5 on no file of rank 1 may grow beyond a few bytes (with DDP, where it writes little, of rank 0)."""
    import resource

    class Filling(ToyStage):
        def begin_step(self, step, progress):
            if step == 4 and accelerator.process_index == (1 if accelerator.is_fsdp2 else 0):
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    config = config_of(folder, **{**changes, "log_every": 100, "sampling": {"every": 0}, "validation": {"every": 0}})
    accelerator = make_accelerator(config)
    Trainer(config, Filling(ToyLoader(1, accelerator.process_index, 2)), accelerator).run()


# ---------------------------------------------------------------------------------------------------- what is refused


def test_configs_of_accelerate():
    """accelerate reads each, and does what its name says."""
    for name, engine in (("ddp", None), ("fsdp2", "FSDP")):
        environment = launched_with(name, 2)
        assert environment.get("ACCELERATE_USE_FSDP") == ("true" if engine == "FSDP" else None)
    for path in sorted((ROOT / "configs/accelerate").glob("*.yaml")):
        text = path.read_text()
        content = yaml.safe_load(text)
        assert text.startswith("# Command:   accelerate launch --config_file configs/accelerate/" + path.name)
        assert content["mixed_precision"] == "no"
        if path.name.startswith("deepspeed"):
            assert content["deepspeed_config"]["zero_stage"] == int(path.stem[-1])
            assert "NOT RUN" in text


def test_deepspeed_that_is_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="told to use DeepSpeed, which is not installed or finds no GPU here; install"):
        make_accelerator(config_of(tmp_path))


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("FSDP_VERSION", "1", "told to use FSDP 1; set fsdp_version: 2"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "set it to false, and gradient_checkpointing=true"),
    ],
)
def test_what_sharding_cannot_do_is_refused(tmp_path, setting, value, match):
    world = World(tmp_path / "logs", make_with, 1, "fsdp2", folder=tmp_path, setting=setting, value=value)
    assert world.wait() == [2], world.said()
    assert match in world.said()


def make_with(folder: Path, setting: str, value: str) -> Accelerator:
    os.environ[setting] = value
    return make_accelerator(config_of(folder))
