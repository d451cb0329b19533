"""The loop, on a toy stage: exact accumulation, exact resumption, and what happens when things go wrong."""

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from hybridgen.core.files import read_json, write_json
from hybridgen.training import trainer as trainer_module
from hybridgen.training.config.renamed import RENAMED
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.monitor import diagnostics, meter
from hybridgen.training.trainer import Trainer
from tests.training.processes import ProcessGroup
from tests.training.toy import ToyLoader, ToyStage, config_of, run_waiting, train


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path, name: str = "checkpoint/toy.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(config_of(folder))
    return folder


# ------------------------------------------------------------------------------------------------ the loss of a step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulated_is_one_big_batch(tmp_path, optimizer):
    """2 x 4 rows and 1 x 8: largest difference of a weight seen after 12 steps: 1.5e-8."""
    settings = {"optimizer": {"name": optimizer, "lr": 1e-3}, "ema": None, "log_every": 1}
    whole = {"accumulation": 1, "data": {"sources": [], "per_device_batch_size": 8}}
    big = train(config_of(tmp_path / "big", **whole, **settings), dropout=0.0)
    small = train(config_of(tmp_path / "small", accumulation=2, **settings), dropout=0.0)
    assert small.stage.loader.number == 2 * big.stage.loader.number
    big, small = (dict(trainer.stage.model.named_parameters()) for trainer in (big, small))
    for name in big:
        torch.testing.assert_close(small[name], big[name], rtol=0, atol=1e-5)
    for ours, theirs in zip(metrics_of(tmp_path / "small"), metrics_of(tmp_path / "big"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], abs=1e-5)


def test_losses_are_divided_by_counts_of_the_whole_step(tmp_path):
    """Two batches of unequal counts: the gradient is that of the joint mean, not of the mean of means."""
    trainer = train(config_of(tmp_path, steps=1, optimizer={"name": "adamw", "lr": 1e-9}, ema=None), dropout=0.0)
    stage, batches = trainer.stage, [ToyLoader(4).batch(number) for number in (0, 1)]
    losses = [stage.losses(stage.model, batch) for batch in batches]
    counts = [stage.counts(batch) for batch in batches]
    assert counts[0] != counts[1]
    sums = {kind: sum(loss[kind][0].item() for loss in losses) for kind in stage.kinds}
    expected = {kind: sums[kind] / sum(count[kind] for count in counts) for kind in stage.kinds}
    record = metrics_of(tmp_path)[0]
    for kind, value in expected.items():
        assert record[f"loss/{kind}"] == pytest.approx(value, rel=1e-6)
    assert record["loss"] == pytest.approx(expected["a"] + 0.5 * expected["b"], rel=1e-6)


def test_a_kind_that_is_missing_is_no_hindrance(tmp_path):
    class OneKind(ToyLoader):
        def batch(self, number):
            batch = super().batch(number)
            batch["b"][:] = False
            return batch

    config, stage = config_of(tmp_path, steps=4), ToyStage(OneKind(4))
    assert Trainer(config, stage, make_accelerator(config)).run()
    assert all("loss/b" not in record and record["loss"] == record["loss/a"] for record in metrics_of(tmp_path))
    assert all(parameter.isfinite().all() for parameter in stage.model.parameters())


# ------------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("at", [3, 4, 7])
def test_resumed_anywhere_is_uninterrupted(tmp_path, uninterrupted, at):
    """Also between two log steps, and from a run that was meant to be shorter."""
    other = config_of(tmp_path, save_every=at)
    other.steps = 12
    trainer = None

    class Stopped(Exception):
        pass

    def stop(self, step, progress):
        if step == at:
            raise Stopped

    original, ToyStage.begin_step = ToyStage.begin_step, stop
    try:
        with pytest.raises(Stopped):
            train(other)
    finally:
        ToyStage.begin_step = original
    trainer = train(config_of(tmp_path))
    assert trainer.step == 12
    assert_same(weights_of(tmp_path), weights_of(uninterrupted))
    assert [record["step"] for record in metrics_of(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert [r["loss"] for r in metrics_of(tmp_path)] == [r["loss"] for r in metrics_of(uninterrupted)]


def test_a_truncated_state_is_passed_over(tmp_path, uninterrupted, capfd):
    train(config_of(tmp_path))
    os.truncate(tmp_path / "state" / "step_000012" / "optimizer.bin", 50)
    train(config_of(tmp_path))
    said = capfd.readouterr().err
    assert "step_000012: optimizer.bin has 50 bytes instead of" in said
    assert f"going on from {tmp_path / 'state' / 'step_000008'}, 8 of 12 steps done" in said
    assert_same(weights_of(tmp_path), weights_of(uninterrupted))


def test_a_finished_run_is_saved_again_and_no_more(tmp_path, uninterrupted):
    train(config_of(tmp_path))
    (tmp_path / "checkpoint" / "toy.safetensors").unlink()
    trainer = train(config_of(tmp_path))
    assert trainer.stage.loader.number == 24
    assert_same(weights_of(tmp_path), weights_of(uninterrupted))


def test_never_starts_over(tmp_path, uninterrupted):
    train(config_of(tmp_path, steps=8))
    train(config_of(tmp_path, resume="never"))
    assert_same(weights_of(tmp_path), weights_of(uninterrupted))
    assert [record["step"] for record in metrics_of(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_another_model_is_refused_and_other_settings_are_told(tmp_path, capfd):
    train(config_of(tmp_path, steps=4, model={"text_config": {"hidden_size": 8}}))
    with pytest.raises(ValueError, match=r"model.text_config.hidden_size: 8 -> 16\); choose another output_dir"):
        train(config_of(tmp_path, steps=8, model={"text_config": {"hidden_size": 16}}))
    capfd.readouterr()
    changed = {"steps": 8, "model": {"text_config": {"hidden_size": 8}}, "optimizer": {"name": "muon", "lr": 1e-3}}
    trainer = train(config_of(tmp_path, **changed))
    assert "was saved with: steps: 4 -> 8; optimizer.lr: 0.01 -> 0.001" in capfd.readouterr().err
    assert metrics_of(tmp_path)[-1]["lr"] < 1e-3
    assert trainer.optimizer.param_groups[0]["base_lr"] == 1e-3


def test_a_state_of_an_older_run_goes_on_under_new_names(tmp_path, uninterrupted, capfd):
    """Its config has the keys of its day; that they are called otherwise now is no change of settings."""
    model = {"diffusion_config": {"modality_experts": True}}
    train(config_of(tmp_path, model=model))
    shutil.rmtree(tmp_path / "state" / "step_000012")
    state = tmp_path / "state" / "step_000008"
    run, sizes = read_json(state / "trainer.json"), read_json(state / "manifest.json")
    saved = run["config"]
    for old, new in RENAMED.items():
        if old.startswith("data."):
            saved["data"][old.removeprefix("data.")] = saved["data"].pop(new)
    saved["model"]["diffusion_config"] = {"own_layers": True}
    write_json(state / "trainer.json", run)
    write_json(state / "manifest.json", sizes | {"trainer.json": (state / "trainer.json").stat().st_size})
    capfd.readouterr()
    train(config_of(tmp_path, model=model))
    said = capfd.readouterr().err
    assert f"going on from {state}, 8 of 12 steps done" in said
    assert "was saved with" not in said
    assert_same(weights_of(tmp_path), weights_of(uninterrupted))


def test_sigterm_saves_and_ends_well(tmp_path, uninterrupted):
    """The step in which the signal comes is finished, and no other begins."""
    folder = tmp_path / "run"
    group = ProcessGroup(tmp_path / "logs", stopped_in_step_6, folder=folder)
    group.wait_for(folder / "ready")
    group.kill(how=signal.SIGTERM)
    assert "stopped by SIGTERM after step 6;" in group.finish()
    assert [path.name for path in (folder / "state").iterdir()] == ["step_000006"]
    assert not (folder / "checkpoint").exists()
    train(config_of(folder))
    assert_same(weights_of(folder), weights_of(uninterrupted))


def test_a_first_ctrl_c_saves_and_a_second_ends_at_once(tmp_path, uninterrupted):
    """The sentence on the way says so; what the second leaves is the state of before, and nothing half written."""
    folder = tmp_path / "run"
    group = ProcessGroup(tmp_path / "logs", stopped_in_step_6, folder=folder)
    group.wait_for(folder / "ready")
    group.kill(how=signal.SIGINT)
    said = group.finish()
    assert said.index("Ctrl-C once more ends at once") < said.index("stopped by Ctrl-C after step 6; the same command")
    train(config_of(folder))
    assert_same(weights_of(folder), weights_of(uninterrupted))

    folder = tmp_path / "impatient"
    group = ProcessGroup(tmp_path / "logs", waiting_in_step_6, folder=folder)
    group.wait_for(folder / "ready")
    group.kill(how=signal.SIGINT)
    group.wait_for(folder / "interrupted")
    group.kill(how=signal.SIGINT)
    assert group.wait() == [-signal.SIGINT]
    assert "Traceback" not in group.output()
    assert [path.name for path in (folder / "state").iterdir()] == ["step_000004"]


def waiting_in_step_6(folder: Path) -> None:
    """It never sees the end of step 6."""

    class Endless(ToyStage):
        def begin_step(self, step, progress):
            if step == 5:
                (folder / "ready").touch()
                while True:
                    time.sleep(0.01)
                    if trainer._stop.requested:
                        (folder / "interrupted").touch()

    config = config_of(folder)
    trainer = Trainer(config, Endless(ToyLoader(4)), make_accelerator(config))
    trainer.run()


def stopped_in_step_6(folder: Path) -> None:
    torch.manual_seed(7)
    run_waiting(config_of(folder, save_every=1000), at=5)


# ------------------------------------------------------------------------------------------------------ going wrong


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, capfd):
    class Poisoned(ToyStage):
        poisoned = range(2, 4)

        def begin_step(self, step, progress):
            self.factor = math.nan if step in self.poisoned else 1.0

        def losses(self, model, batch):
            losses = super().losses(model, batch)
            return {kind: (loss * self.factor if model.training else loss, n) for kind, (loss, n) in losses.items()}

    config = config_of(tmp_path, steps=6)
    stage = Poisoned(ToyLoader(4))
    assert Trainer(config, stage, make_accelerator(config)).run()
    assert all(parameter.isfinite().all() for parameter in stage.model.parameters())
    assert all(math.isfinite(record["loss"]) for record in metrics_of(tmp_path) if record["step"] != 4)
    assert "the loss is not finite in step 3: the step is skipped (toy.jsonl:16, toy.jsonl:17" in capfd.readouterr().err
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in skipped] == [3, 4]
    assert skipped[0]["records"] == [f"toy.jsonl:{number}" for number in range(16, 24)]
    assert metrics_of(tmp_path)[-1]["skipped"] == 2

    config = config_of(tmp_path / "hopeless", steps=30)
    stage = Poisoned(ToyLoader(4))
    stage.poisoned = range(2, 99)
    with pytest.raises(ValueError, match="10 of the last 100 steps were skipped, up to step 12, where the loss"):
        Trainer(config, stage, make_accelerator(config)).run()


def test_frozen_parts_stay_bit_for_bit(tmp_path):
    before = ToyStage(ToyLoader(4)).model.state_dict()
    train(config_of(tmp_path, groups=[{"match": "embedding", "frozen": True}, {"match": "heads.b", "lr_scale": 0.0}]))
    after = weights_of(tmp_path)
    assert torch.equal(after["embedding.weight"], before["embedding.weight"])
    assert torch.equal(after["heads.b.bias"], before["heads.b.bias"])
    assert not torch.equal(after["heads.a.weight"], before["heads.a.weight"])
    assert "embedding.weight" not in weights_of(tmp_path, "state/step_000012/ema.safetensors")


def test_max_seconds_ends_a_run_with_its_schedule(tmp_path, monkeypatch):
    """By a clock of a quarter of a second a step, the fifth step begins after one second, and is the last."""
    clock = SimpleNamespace(now=100.0)
    for module in (trainer_module, diagnostics, meter):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(ToyStage):
        def begin_step(self, step, progress):
            clock.now += 0.25

    config = config_of(tmp_path, steps=100_000, max_seconds=1.0, log_every=1)
    trainer = Trainer(config, Slow(ToyLoader(4)), make_accelerator(config))
    assert trainer.run()
    assert trainer.step == 5
    records = metrics_of(tmp_path)
    assert [record["seconds"] for record in records] == [0.0, 0.25, 0.5, 0.75, 1.0]
    cosine = [
        (1 + math.cos(math.pi * done)) / 2 for done in (0.0, (1.0 - 0.75) / (1 - 0.75))
    ]  # after the warmup's three
    assert [record["lr"] for record in records[3:]] == pytest.approx([0.01 * factor for factor in cosine], abs=1e-12)
    assert (tmp_path / "checkpoint" / "toy.safetensors").exists()


def test_validation_and_samples(tmp_path, uninterrupted):
    records = {record["step"]: record for record in metrics_of(uninterrupted)}
    assert all(("validation/loss" in record) == (step % 4 == 0) for step, record in records.items())
    assert records[4]["validation/twice_a"] == 2 * records[4]["validation/loss/a"]
    assert records[12]["share/toy"] == 1.0
    assert sorted(path.name for path in (uninterrupted / "samples").iterdir()) == ["step_000006.png", "step_000012.png"]
    assert sorted(path.name for path in (uninterrupted / "state").iterdir()) == ["step_000008", "step_000012"]
