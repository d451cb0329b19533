"""States written in the background: the same states, of the step they are of, whole or not there, one after another."""

import errno
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from hybridgen.training.config import checks
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.state import checkpointing as states
from hybridgen.training.state import writing
from hybridgen.training.trainer import Trainer
from tests.training.processes import ProcessGroup, train_toy
from tests.training.state.test_resuming import moments_of, restored
from tests.training.test_trainer import assert_same, metrics_of, weights_of
from tests.training.toy import ToyLoader, ToyStage, config_of, run_waiting, train

ASYNC = {"async_save": True, "save_every": 4}


def test_it_is_the_same_run(tmp_path):
    """Stopped by a kill after step 8 and going on from there: weights, losses and moments are those of a run that wrote
    its states at once."""
    calm = train(config_of(tmp_path / "calm", save_every=4))

    class Killed(BaseException):
        pass

    class Dying(ToyStage):
        def begin_step(self, step, progress):
            if step == 10:
                raise Killed

    torch.manual_seed(7)
    config = config_of(tmp_path / "run", **ASYNC)
    with pytest.raises(Killed):
        Trainer(config, Dying(ToyLoader(4)), make_accelerator(config)).run()
    trainer = train(config)
    assert_same(weights_of(tmp_path / "run"), weights_of(tmp_path / "calm"))
    assert [line["loss"] for line in metrics_of(tmp_path / "run")] == [x["loss"] for x in metrics_of(tmp_path / "calm")]
    left = sorted(path.name for path in (tmp_path / "run/state").iterdir())
    assert left == ["step_000008", "step_000012"]
    expected = moments_of(calm)
    for name, moments in moments_of(trainer).items():
        assert_same(moments, expected[name])


def test_steps_are_taken_meanwhile_and_the_state_is_of_its_step(tmp_path, monkeypatch):
    """The state of step 4 is held back until step 7; the next, of step 8, waits for it."""
    go, written, seen = threading.Event(), [], {}
    write = writing.write_shards

    def held(shards, state, group=None):
        go.wait(60)
        written.append(state.name)
        return write(shards, state, group)

    def begun(folder, *arguments):
        assert folder.name == "step_000004" or (tmp_path / "state/step_000004").is_dir()
        return begin(folder, *arguments)

    monkeypatch.setattr(writing, "write_shards", held)
    begin = writing.begin_folder
    monkeypatch.setattr(writing, "begin_folder", begun)

    class Watching(ToyStage):
        def begin_step(self, step, progress):
            names = [path.name for path in (tmp_path / "state").glob("*")]
            if step == 4:
                seen["weights"] = {name: value.clone() for name, value in self.model.state_dict().items()}
                seen["moments"] = {n: {k: v.clone() for k, v in m.items()} for n, m in moments_of(trainer).items()}
            if step == 6:
                assert names == ["step_000004.tmp"]
                assert written == []
                threading.Timer(0.5, go.set).start()  # by then step 8 is over

    torch.manual_seed(7)
    config = config_of(tmp_path, **ASYNC, steps=8, keep_last=5)
    trainer = Trainer(config, Watching(ToyLoader(4)), make_accelerator(config))
    assert trainer.run()
    assert written == ["step_000004.tmp", "step_000008.tmp"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step_000004", "step_000008"]
    other = config_of(tmp_path, **ASYNC, resume=str(tmp_path / "state/step_000004"))
    back = restored(other)
    assert_same(dict(back.model.state_dict()), seen["weights"])
    for name, moments in moments_of(back).items():
        assert_same(moments, seen["moments"][name])


def test_a_state_is_on_the_disk_when_the_run_has_ended(tmp_path):
    """After the last step, and after SIGTERM."""
    train(config_of(tmp_path / "end", **ASYNC, steps=4))
    assert [path.name for path in (tmp_path / "end/state").iterdir()] == ["step_000004"]
    group = ProcessGroup(tmp_path / "logs", stop, folder=tmp_path / "run")
    group.wait_for(tmp_path / "run/ready")
    group.kill(how=signal.SIGTERM)
    assert group.wait() == [0], group.output()
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step_000003"]
    assert states.find_damage(tmp_path / "run/state/step_000003") is None


def stop(folder: Path) -> None:
    run_waiting(config_of(folder, async_save=True, save_every=1000), at=2)


@pytest.mark.parametrize("form", ["ddp", "fsdp2"])
def test_two_processes(tmp_path, form):
    """Their state is whole, and read by one process."""
    rows = {"data": {"sources": [], "per_device_batch_size": 2}}
    arguments = {"folder": tmp_path / "run", "changes": {**ASYNC, **rows, "steps": 4}, "dropout": 0.0}
    ProcessGroup(tmp_path / "logs", train_toy, 2, form, **arguments).finish()
    train(config_of(tmp_path / "one", save_every=4, steps=4), dropout=0.0)
    state = tmp_path / "run/state/step_000004"
    assert states.find_damage(state) is None
    assert len(list((state / "optimizer_0").glob("*.distcp"))) == 2  # each wrote its share, also with DDP
    ours, theirs = (restored(config_of(tmp_path / run, steps=8)) for run in ("run", "one"))
    for name, weight in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], weight, rtol=0, atol=1e-4)
    assert set(moments_of(ours)) == set(moments_of(theirs))
    averages = theirs.ema.state_dict()
    for name, average in ours.ema.state_dict().items():
        torch.testing.assert_close(average, averages[name], rtol=0, atol=1e-4)


class Later(ToyStage):
    """Each step from 4 on waits until the state of step 4 is written, or is not."""

    def __init__(self, loader: ToyLoader, log: Path):
        super().__init__(loader)
        self.log, self.begun, self.trainer = log, [], None

    def begin_step(self, step, progress):
        self.begun.append(step)
        self.log.write_text(str(self.begun))
        pending = self.trainer.background._pending
        if step >= 4 and pending is not None:
            pending.exception(60)


def fill_disk(folder: Path, full_for: int | None) -> None:
    """From step 4's state on, the disk is full for one process' shards (None: for the manifest)."""
    rows = {"data": {"sources": [], "per_device_batch_size": 1}, "save_every": 2, "async_save": True}
    config = config_of(folder, **rows)
    accelerator = make_accelerator(config)
    rank = accelerator.process_index
    stage = Later(ToyLoader(1, rank, accelerator.num_processes), log=folder / f"begun_{rank}")
    stage.trainer = Trainer(config, stage, accelerator)
    written, finish = FileSystemWriter.write_data, writing.finish_folder

    def full(state: str, do, *arguments):
        if "step_000002" in state:
            return do(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    if full_for is None:
        writing.finish_folder = lambda aside, folder: full(str(folder), finish, aside, folder)
    elif accelerator.process_index == full_for:
        FileSystemWriter.write_data = lambda self, *plan: full(str(self.path), written, self, *plan)
    assert not stage.trainer.run(), "it came to its end"


@pytest.mark.parametrize(
    ("form", "processes", "full_for"), [("single", 1, 0), ("single", 1, None), ("fsdp2", 2, 1), ("ddp", 2, None)]
)
def test_a_full_disk_is_one_sentence_at_the_next_step(tmp_path, form, processes, full_for):
    """In all processes; what was saved before is intact, and nothing is half written."""
    arguments = {"folder": tmp_path / "run", "full_for": full_for}
    group = ProcessGroup(tmp_path / "logs", fill_disk, processes, form, **arguments)
    assert group.wait(100) == [2] * processes, group.output()
    for rank in range(processes):
        said = group.output(rank)
        assert "step_000004 (" in said
        assert "everything saved before it is intact: free some space and start the same command again" in said
        assert "Traceback" not in said
        assert (tmp_path / f"run/begun_{rank}").read_text() in (
            "[0, 1, 2, 3]",
            "[0, 1, 2, 3, 4]",
        )  # not until the next save
    assert "No space left on device" in group.output()
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step_000002"]
    assert states.find_damage(tmp_path / "run/state/step_000002") is None


def test_where_it_is_the_default(tmp_path):
    accelerator = make_accelerator(config_of(tmp_path))
    assert not writing.saves_in_background(config_of(tmp_path), accelerator)  # on a CPU
    assert writing.saves_in_background(config_of(tmp_path, async_save=True), accelerator)
    assert not writing.saves_in_background(config_of(tmp_path, async_save=True, stage="codec"), accelerator)
    with pytest.raises(ValueError, match="async_save is true, but a codec's state is written at once"):
        checks.check(config_of(tmp_path, async_save=True, stage="codec"))
