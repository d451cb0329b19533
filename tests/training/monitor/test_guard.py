"""Which steps are not taken, what is said of them, and that it ends when there are too many."""

import json
import math

import pytest

from hybridgen.training.config.schema import SpikeConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.monitor.guard import Guard
from hybridgen.training.trainer import Trainer
from tests.training.toy import ToyLoader, ToyStage, config_of, train


def guard(**settings) -> Guard:
    return Guard(SpikeConfig(**settings), None, 0)


def test_what_is_not_finite_is_not_taken():
    judge = guard()
    assert judge.skip_reason(1.0, 1.0) is None
    assert judge.skip_reason(1.0, math.inf) == "the gradient is not finite"
    assert judge.skip_reason(math.nan, math.nan) == "the loss is not finite"
    assert judge.skip_reason(1e9, 1.0) is None  # no factor, no spike


def test_a_spike_is_measured_by_the_median_of_the_window():
    judge = guard(factor=3.0, window=5, limit=5)
    for loss in (9.0, 1.0, 2.0, 1.0):
        assert judge.skip_reason(loss, 1.0) is None
    assert judge.skip_reason(100.0, 1.0) is None  # four are known, not five
    assert judge.losses == [9.0, 1.0, 2.0, 1.0, 100.0]
    assert judge.skip_reason(6.0, 1.0) is None  # not above 3 times the median, 2
    assert judge.skip_reason(6.1, 1.0) == "the loss 6.1 is more than 3 times the usual 2"
    assert judge.losses == [1.0, 2.0, 1.0, 100.0, 6.0]


def test_a_spike_leaves_the_usual_alone():
    judge = guard(factor=3.0, window=3, limit=3)
    for loss in (1.0, 1.1, 0.9):
        judge.skip_reason(loss, 1.0)
    assert judge.skip_reason(3.5, 1.0) == "the loss 3.5 is more than 3 times the usual 1"
    assert judge.losses == [1.0, 1.1, 0.9]
    again = guard(factor=3.0, window=3, limit=3)
    again.load_state_dict(json.loads(json.dumps(judge.state_dict())))
    assert again.skip_reason(3.5, 1.0) is not None


def test_the_limit_counts_within_the_window_and_names_suspects(tmp_path):
    judge = Guard(SpikeConfig(window=10, limit=3), tmp_path / "skipped.jsonl", 0)
    assert "in step 1: the step is skipped (a:1, b:2)" in judge.skip(1, "the loss is not finite", ["a:1", "b:2"])
    judge.skip(12, "the loss is not finite", ["a:3", "b:2"])
    judge.skip(14, "the loss is not finite", [f"a:{number}" for number in range(20, 40)])
    with pytest.raises(
        ValueError, match=r"^3 of the last 10 steps were skipped, up to step 15, where .* look at b:2, "
    ):
        judge.skip(15, "the loss is not finite", ["b:2", "c:9"])
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 12, 14, 15]
    assert len(lines[2]["records"]) == 20
    Guard(SpikeConfig(), tmp_path / "skipped.jsonl", 12)  # a run that goes on from step 12
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2


class OneBadRecord(ToyStage):
    """Whatever holds record 37 has a loss a thousand times as high."""

    bad = (37,)

    def losses(self, model, batch):
        factor = 1000.0 if model.training and set(batch["records"]) & set(self.bad) else 1.0
        return {kind: (loss * factor, count) for kind, (loss, count) in super().losses(model, batch).items()}


def test_a_spike_changes_nothing_and_its_records_are_named(tmp_path, capfd):
    spike = {"factor": 20.0, "window": 3, "limit": 2}
    settings = {
        "spike": spike,
        "steps": 12,
        "save_every": 2,
        "log_every": 1,
        "accumulation": 1,
        "optimizer": {"name": "adamw"},
    }
    config = config_of(tmp_path / "spiked", **settings)
    stage = OneBadRecord(ToyLoader(4), dropout=0.0)
    assert Trainer(config, stage, make_accelerator(config)).run()
    said = capfd.readouterr().err
    assert "times the usual" in said
    assert "in step 10: the step is skipped (toy.jsonl:36, toy.jsonl:37, toy.jsonl:38, toy.jsonl:39)" in said
    (line,) = [json.loads(line) for line in (tmp_path / "spiked/skipped.jsonl").read_text().splitlines()]
    assert "toy.jsonl:37" in line["records"]
    assert len(line["records"]) == 4

    logged = [json.loads(line) for line in (tmp_path / "spiked/metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in logged if "lr" in line}
    assert "loss" not in steps[10]
    assert steps[10]["skipped"] == 1
    assert steps[9]["loss"] > 0
    assert "no loss, the step was skipped  lr" in said

    stage = OneBadRecord(ToyLoader(4), dropout=0.0)
    stage.bad = tuple(range(12, 200))
    config = config_of(tmp_path / "hopeless", **settings)
    with pytest.raises(ValueError, match=r"2 of the last 3 steps were skipped, up to step 5, .*toy.jsonl:16"):
        Trainer(config, stage, make_accelerator(config)).run()
    stage.loader = ToyLoader(4)
    with pytest.raises(ValueError, match="2 of the last 3 steps were skipped, up to step 5"):  # and so again
        Trainer(config, stage, make_accelerator(config)).run()


def test_a_guard_that_sees_nothing_changes_nothing(tmp_path):
    settings = {"steps": 6, "sampling": {"every": 0}, "validation": {"every": 0}}
    watched = train(config_of(tmp_path / "watched", **settings, spike={"factor": 50.0, "window": 2, "limit": 1}))
    free = train(config_of(tmp_path / "free", **settings))
    for name, value in watched.stage.model.state_dict().items():
        assert value.equal(free.stage.model.state_dict()[name]), name
    assert not (tmp_path / "watched/skipped.jsonl").exists()
