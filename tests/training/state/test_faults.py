"""What may happen to a run: kills at any moment, files that vanish; nothing is lost but unsaved steps."""

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridgen.training import load_config
from hybridgen.training import train as train_config
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.state import checkpointing as states
from hybridgen.training.trainer import Trainer
from tests.training.processes import ProcessGroup
from tests.training.test_trainer import metrics_of
from tests.training.toy import ToyLoader, ToyStage, WaitingStage, config_of, train

KILLS = 20
MOST = 5  # steps of one life
BUSY = {"steps": 105, "save_every": 1, "log_every": 5, "validation": {"every": 7}, "sampling": {"every": 50}}


def newest(folder: Path) -> int:
    """The step of the last state that is whole."""
    return next((int(state.name[5:]) for state in states.saved_steps(folder) if states.find_damage(state) is None), 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_is_uninterrupted(tmp_path):
    """SIGKILL at random moments: starting, restoring, stepping, saving, renaming, removing. Every life saves each step.
    The last weights, their average and the metrics are those of a run left alone, bit for bit."""
    train(config_of(tmp_path / "calm", **BUSY))
    folder, moments, reached = tmp_path / "killed", random.Random(0), [0]
    for number in range(KILLS):
        group = ProcessGroup(tmp_path / "logs", train_a_little, folder=folder)
        while number % 4 != 3 and newest(folder / "state") == reached[-1]:  # each fourth may die before its first step
            assert group.processes[0].exitcode is None, group.output()
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.12))
        assert group.processes[0].exitcode is None, group.output()
        group.kill()
        group.processes[0].join()
        reached.append(newest(folder / "state"))
    assert reached == sorted(reached)  # nothing that was saved is ever lost
    assert KILLS // 2 < reached[-1] < BUSY["steps"]
    train(config_of(folder, **BUSY))
    last = "state/step_000105"
    for name in ("checkpoint/toy.safetensors", f"{last}/model.safetensors", f"{last}/ema.safetensors"):
        ours, theirs = load_file(folder / name), load_file(tmp_path / "calm" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    clocks = ("seconds", "tokens_per_second", "data_wait", "peak_memory_gb", "tflops", "mfu")
    ours, theirs = (
        [{key: value for key, value in line.items() if key not in clocks} for line in metrics_of(run)]
        for run in (folder, tmp_path / "calm")
    )
    assert ours == theirs
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["step_000104", "step_000105"]


def train_a_little(folder: Path) -> None:
    """A few steps, and then wait to be killed: however slow the test is, no life comes to the end of the run."""

    class Waiting(ToyStage):
        left = MOST

        def begin_step(self, step, progress):
            self.left -= 1
            time.sleep(3600 if self.left < 0 else 0.01)

    torch.manual_seed(7)
    config = config_of(folder, **BUSY)
    accelerator = make_accelerator(config)
    Trainer(config, Waiting(ToyLoader(config.data.per_device_batch_size)), accelerator).run()


def test_sigterm_while_validating_is_not_waited_for(tmp_path):
    """No other batch of it is run."""
    group = ProcessGroup(tmp_path / "logs", validate_for_ever, folder=tmp_path / "run")
    group.wait_for(tmp_path / "run/ready")
    group.kill(how=signal.SIGTERM)
    assert group.wait() == [0], group.output()
    assert (tmp_path / "run/validated").read_text() == "012"
    assert (tmp_path / "run/state/step_000002/manifest.json").exists()


def validate_for_ever(folder: Path) -> None:
    """The signal comes while batch number 3 of a validation without an end is made."""

    class Endless(WaitingStage):
        def validation_batches(self):
            for number in itertools.count():
                if number == 3:
                    self.wait()
                yield self.loader.batch(number)

        def losses(self, model, batch):
            if not model.training:
                with (folder / "validated").open("a") as file:
                    file.write(str(batch["records"][0] // self.loader.rows))
            return super().losses(model, batch)

    config = config_of(folder, validation={"every": 2})
    stage = Endless(ToyLoader(4), at=-1, ready=folder / "ready")
    trainer = Trainer(config, stage, make_accelerator(config))
    stage.stop = trainer._stop
    assert not trainer.run()


def test_an_older_state_that_was_chosen_is_not_overtaken(tmp_path):
    """Going back to a state gives up those after it, damaged or not: else keep_last=1 would keep them alone."""
    train(config_of(tmp_path, save_every=4, keep_last=3))
    os.truncate(tmp_path / "state/step_000012/optimizer.bin", 10)
    train(config_of(tmp_path, save_every=5, keep_last=1, steps=10, resume=str(tmp_path / "state/step_000008")))
    left = [path.name for path in (tmp_path / "state").iterdir()]
    assert left == ["step_000010"]
    assert states.find_damage(tmp_path / "state/step_000010") is None


# ------------------------------------------------------------------------------------------------------------ data


def test_a_shard_that_vanishes_is_named(tmp_path):
    class Vanishing(ToyLoader):
        def __next__(self):
            if self.number == 6:
                (tmp_path / "shards" / "00003.tar").read_bytes()
            return super().__next__()

    config = config_of(tmp_path / "run", save_every=2)
    with pytest.raises(OSError, match=r"^the data of step 4 cannot be read \(.*00003.tar: No such file.*\); bring the"):
        Trainer(config, ToyStage(Vanishing(4)), make_accelerator(config)).run()
    assert states.find_damage(tmp_path / "run/state/step_000002") is None
    train(config_of(tmp_path / "run"))
    assert metrics_of(tmp_path / "run")[-1]["step"] == 12


def test_a_jsonl_file_that_vanishes_is_named(tmp_path, monkeypatch):
    """The real stage and loader, with batches made ahead in a thread."""
    data = tmp_path / "captions.jsonl"
    message = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a b c"}]
    data.write_text((json.dumps({"messages": message}) + "\n") * 40)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
        output_dir: {tmp_path / "run"}
        steps: 1000
        data: {{sources: [{{source: {data}}}], per_device_batch_size: 1, sequence_length: 64}}
        model: {{text_config: {{model_type: qwen3, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1,
                num_attention_heads: 2, num_key_value_heads: 1, head_dim: 8}}, tokenizer: {{vocab_size: 300}}}}
        log_every: 1
        save_every: 2
        """
    )
    group = ProcessGroup(tmp_path / "logs", train_file, config=config)
    group.wait_for(tmp_path / "run/state/step_000002")
    data.rename(tmp_path / "elsewhere.jsonl")
    assert group.wait() == [2], group.output()
    said = group.output()
    assert f"cannot be read ({data}: No such file or directory); bring the file back and start the same command" in said
    assert "Traceback" not in said


def train_file(config: Path) -> None:
    train_config(load_config(config))
