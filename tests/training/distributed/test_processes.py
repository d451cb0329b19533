"""Two processes are one, whole or sharded; what they say when one dies; and states that any number of them reads."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.utils import DeepSpeedPlugin, set_seed
from safetensors.torch import load_file

from hybridgen.training.distributed.processes import check_engine, make_accelerator, seed_dropout
from hybridgen.training.state import checkpointing as states
from hybridgen.training.trainer import Trainer
from tests.training.processes import ROOT, ProcessGroup, launched_with, train_toy
from tests.training.toy import ToyLoader, ToyStage, config_of, run_waiting, train

FORMS = ["ddp", "fsdp2"]
MUON = {"name": "muon", "lr": 1e-3}  # it rounds to bf16 on the way, where the last bit of a sum may tip over
ALONE = {"data": {"sources": [], "per_device_batch_size": 2}, "log_every": 1, "steps": 8, "optimizer": MUON}
SHARED = {
    **ALONE,
    "data": {"sources": [], "per_device_batch_size": 1},
}  # of each of two: rows without a, and without b, meet


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32, 2**64 - 1])
def test_any_seed_seeds_dropout(seed):
    """numpy takes 32 bits; a seed of so many is accelerate's own."""
    Accelerator()
    seed_dropout(seed)
    drawn = torch.rand(3), np.random.rand()
    if seed < 2**32 - 2**16:
        set_seed(seed, device_specific=True)
        assert torch.equal(torch.rand(3), drawn[0])
        assert np.random.rand() == drawn[1]


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
    ProcessGroup(tmp_path / "logs", train_toy, 2, form, folder=tmp_path / "two", changes=SHARED, dropout=0.0).finish()
    assert_alike(tmp_path / "two", alone, atol=1e-5)
    assert (tmp_path / "two" / "samples" / "step_000006.png").exists()
    state = tmp_path / "two" / "state" / "step_000008"
    assert states.find_damage(state) is None
    if form == "fsdp2":
        assert len(list((state / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2
        assert len(list((state / "ema").glob("*.distcp"))) == 2
        assert not (state / "model.safetensors").exists()


def test_two_nodes_of_two(tmp_path):
    """Hybrid sharding: shards within a node, replicas over nodes, two micro-batches a step. Largest difference of a
    weight seen: 5e-10."""
    never = {"validation": {"every": 2}, "sampling": {"every": 0}, "steps": 4}
    one = {**ALONE, **never, "data": {"sources": [], "per_device_batch_size": 4}}
    train(config_of(tmp_path / "one", **one), dropout=0)
    arguments = {"folder": tmp_path / "four", "changes": {**SHARED, **never}, "dropout": 0.0}
    ProcessGroup(tmp_path / "logs", train_toy, 4, "hsdp_8", **arguments).finish()
    assert_alike(tmp_path / "four", tmp_path / "one", atol=1e-5)
    state = tmp_path / "four/state/step_000004"
    assert states.find_damage(state) is None
    assert train(config_of(tmp_path / "four", **{**one, "steps": 5}), dropout=0).step == 5


def test_wrong_sizes_of_hybrid_sharding_are_refused(tmp_path):
    group = ProcessGroup(tmp_path / "logs", make_with, 1, "hsdp_8", folder=tmp_path, setting="X", value="1")
    assert group.wait() == [2], group.output()
    assert "has room for 2 x 0" in group.output()


def test_bf16_is_autocast_where_weights_are_sharded(tmp_path):
    """And so the same as in one process: accelerate alone would keep sharded weights, and the outputs, in bf16. Largest
    difference of a loss seen: 2e-7; from fp32: 5e-3."""
    quick = {"optimizer": {"name": "adamw"}, "ema": None, "steps": 3}
    for precision in ("bf16", "fp32"):
        train(config_of(tmp_path / precision, **{**ALONE, **quick, "precision": precision}), dropout=0.0)
    changes = {**SHARED, **quick, "precision": "bf16"}
    ProcessGroup(
        tmp_path / "logs", train_toy, 2, "fsdp2", folder=tmp_path / "two", changes=changes, dropout=0.0
    ).finish()
    losses = {run: [line["loss"] for line in metrics_of(tmp_path / run)] for run in ("two", "bf16", "fp32")}
    assert losses["two"] == pytest.approx(losses["bf16"], abs=1e-5)
    assert losses["two"] != pytest.approx(losses["fp32"], abs=1e-3)


def test_torchrun_starts_two(tmp_path, alone):
    """As test_launched.py has `accelerate launch` do."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "tests/training/toy.py"), str(tmp_path / "two"), "dropout=0"]
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
        said += ProcessGroup(
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
                trainer._stop.request()

    config = config_of(folder, **changes)
    accelerator = make_accelerator(config)
    loader = ToyLoader(config.data.per_device_batch_size, accelerator.process_index, accelerator.num_processes)
    trainer = Trainer(config, Stopping(loader, dropout=0.0), accelerator)
    assert trainer.run() == (until == 8)


@pytest.mark.parametrize(
    ("form", "gradients", "times"), [("ddp", "sharded", 1), ("fsdp2", "sharded", 2), ("fsdp2", "whole", 1)]
)
def test_how_often_gradients_travel(tmp_path, alone, form, gradients, times):
    """With two batches a step, DDP reduces its one bucket once; FSDP2 scatters each group's gradients with every batch,
    so that none is held whole between two, or once a step, as the config says. The run is the same."""
    ProcessGroup(tmp_path / form, count_reductions, 2, form, folder=tmp_path / "run", gradients=gradients).finish()
    counted = json.loads((tmp_path / "run" / "counted.json").read_text())
    groups = 1 if form == "ddp" else 3  # two blocks, and the rest
    assert counted == [times * groups] * 3
    losses = [line["loss"] for line in metrics_of(tmp_path / "run")]
    assert losses == pytest.approx([line["loss"] for line in metrics_of(alone)][:3], abs=1e-5)


def count_reductions(folder: Path, gradients: str) -> None:
    """How often gradients are reduced in each of three steps of two batches."""
    never = {"validation": {"every": 0}, "sampling": {"every": 0}, "ema": None, "sharding": {"gradients": gradients}}
    config = config_of(folder, **{**SHARED, **never, "steps": 3})
    accelerator = make_accelerator(config)
    trainer = Trainer(config, ToyStage(ToyLoader(1, accelerator.process_index, 2), dropout=0.0), accelerator)
    counted, step = [], trainer._forward_backward
    reduction = "FSDP::post_backward_reduce" if accelerator.is_fsdp2 else "gloo:all_reduce"

    def counting(batches, counts):
        with torch.profiler.profile() as profile:
            result = step(batches, counts)
        counted.append(sum(event.name.startswith(reduction) for event in profile.events()))
        return result

    trainer._forward_backward = counting
    assert trainer.run()
    if accelerator.is_main_process:
        (folder / "counted.json").write_text(json.dumps(counted))


# ---------------------------------------------------------------------------------------------------- one is gone


def die_in_step_6(folder: Path, changes: dict, dies: int) -> None:
    class Dying(ToyStage):
        def begin_step(self, step, progress):
            with (folder / f"begun_{accelerator.process_index}").open("a") as file:
                file.write(str(step))
            if step == 5 and accelerator.process_index == dies:
                os.kill(os.getpid(), signal.SIGKILL)

    config = config_of(folder, **changes)
    accelerator = make_accelerator(config)
    Trainer(config, Dying(ToyLoader(1, accelerator.process_index, 2)), accelerator).run()


@pytest.mark.parametrize(("dies", "form"), [(1, "ddp"), (0, "fsdp2")])
def test_one_that_dies_ends_the_others(tmp_path, dies, form):
    """In the step in which it died; what is left says which process is gone and that nothing is lost."""
    changes = {**SHARED, "steps": 1000, "save_every": 4}
    group = ProcessGroup(tmp_path / "logs", die_in_step_6, 2, form, folder=tmp_path / "run", changes=changes, dies=dies)
    codes = group.wait()
    assert {rank: (tmp_path / f"run/begun_{rank}").read_text() for rank in (0, 1)} == {0: "012345", 1: "012345"}
    assert codes[dies] == -signal.SIGKILL
    assert codes[1 - dies] == 2, group.output()
    said = group.output(1 - dies)
    assert f"hybridgen: process {dies} of 2 is gone" in said
    assert "nothing is lost but the unsaved steps: the same command goes on from the last saved state" in said
    assert "Traceback" not in said


def test_sigterm_to_one_stops_both(tmp_path, alone):
    """The signal comes in step 2; with the counts of step 3 the other process is told, and step 3 is the last."""
    group = ProcessGroup(tmp_path / "logs", stop_one, 2, "fsdp2", folder=tmp_path / "run")
    group.wait_for(tmp_path / "run/ready")
    group.kill(1, signal.SIGTERM)
    assert group.wait() == [0, 0], group.output()
    assert "stopped by SIGTERM after step 3;" in group.output(0)
    ProcessGroup(
        tmp_path / "logs", train_toy, 2, "fsdp2", folder=tmp_path / "run", changes=SHARED, dropout=0.0
    ).finish()
    assert_alike(tmp_path / "run", alone, atol=1e-5)


def stop_one(folder: Path) -> None:
    torch.manual_seed(7)
    run_waiting(config_of(folder, **{**SHARED, "save_every": 1000}), at=1, ranks=(1,), dropout=0.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_is_full_for_one(tmp_path, form):
    """All end with one sentence, the last good state is kept, nothing is half written."""
    changes = {**SHARED, "save_every": 2, "ema": None}
    said = ProcessGroup(tmp_path / "logs", fill_disk, 2, form, folder=tmp_path / "run", changes=changes)
    assert said.wait() == [2, 2], said.output()
    for rank in (0, 1):
        assert "could not save" in said.output(rank)
        assert "everything saved before it is intact: free some space and start the same" in said.output(rank)
        assert "Traceback" not in said.output(rank)
    left = sorted(path.name for path in (tmp_path / "run/state").iterdir())
    assert left == ["step_000002", "step_000004"]
    assert all(states.find_damage(tmp_path / "run/state" / name) is None for name in left)


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
        sizes = content.get("parallelism_config", {"both": content["num_processes"]})
        assert math.prod(sizes.values()) == content["num_processes"]
        assert content["num_processes"] % content["num_machines"] == 0
        if path.name.startswith("deepspeed"):
            assert content["deepspeed_config"]["zero_stage"] == int(path.stem[-1])
            assert "NOT RUN" in text


def test_deepspeed_that_is_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="told to use DeepSpeed, which is not installed or finds no GPU here; install"):
        make_accelerator(config_of(tmp_path))


def deepspeed(zero_stage: int = 2) -> SimpleNamespace:
    """What `check_engine` asks of an accelerator; the plugin is accelerate's own, which needs no DeepSpeed."""
    state = SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin(zero_stage=zero_stage))
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state, device=torch.device("cpu"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_deepspeed_is_told(tmp_path, precision):
    """In bf16 its autocast: weights in bf16, as it would make them by itself, meet pixels and latents in fp32."""
    engine = deepspeed()
    quiet = {"optimizer": {"name": "adamw"}, "ema": None, "precision": precision, "accumulation": 3, "clip": 0.5}
    check_engine(config_of(tmp_path, **quiet), engine)
    told = engine.state.deepspeed_plugin.deepspeed_config
    assert (told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (4, 3)
    assert told["gradient_clipping"] == 0.5
    assert told.get("torch_autocast", {}).get("enabled", False) == (precision == "bf16")
    assert not told.get("bf16", {}).get("enabled", False)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optimizer": {"name": "muon"}}, "needs whole matrices"),
        ({"spike": {"factor": 2.0}}, "spike.factor needs to see a step before"),
        ({"ema": {"decay": 0.9}}, "ema averages parameters, which ZeRO 3 keeps elsewhere"),
        ({"async_save": True}, "async_save is true, and DeepSpeed writes its states by itself"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(tmp_path, changes, match):
    quiet = {"optimizer": {"name": "adamw"}, "ema": None}
    with pytest.raises(ValueError, match=f"{match}.*use configs/accelerate/fsdp2.yaml"):
        check_engine(config_of(tmp_path, **{**quiet, **changes}), deepspeed(zero_stage=3))


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("FSDP_VERSION", "1", "told to use FSDP 1; set fsdp_version: 2"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "set it to false, and gradient_checkpointing=true"),
    ],
)
def test_what_sharding_cannot_do_is_refused(tmp_path, setting, value, match):
    group = ProcessGroup(tmp_path / "logs", make_with, 1, "fsdp2", folder=tmp_path, setting=setting, value=value)
    assert group.wait() == [2], group.output()
    assert match in group.output()


def make_with(folder: Path, setting: str, value: str) -> Accelerator:
    os.environ[setting] = value
    return make_accelerator(config_of(folder))
