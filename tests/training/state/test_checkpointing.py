"""States on disk: whole or not there, checked before they are trusted, and a full disk costs nothing that was saved."""

import os
import resource
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hybridgen.core.files import read_json, write_json
from hybridgen.training.state import checkpointing as states
from tests.core.disk_calls import assert_flushed_first, recorded
from tests.training.processes import ProcessGroup

ROOT = Path(__file__).parents[3]


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def saved(folder: Path, step: int, accelerator: Accelerator, value: float = 0.0) -> Path:
    with states.whole_folder(states.step_folder(folder, step), accelerator) as aside:
        save_file({"w": torch.full((100,), value)}, aside / "model.safetensors")
        write_json(aside / "trainer.json", {"step": step})
    return states.step_folder(folder, step)


def test_a_state_appears_whole(tmp_path, accelerator):
    with states.whole_folder(tmp_path / "step_000007", accelerator) as aside:
        (aside / "weights").write_bytes(b"x" * 10)
        assert not (tmp_path / "step_000007").exists()
    state = tmp_path / "step_000007"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000007"]
    assert read_json(state / "manifest.json") == {"weights": 10}
    assert states.find_damage(state) is None


@pytest.mark.parametrize("again", [False, True])
def test_a_state_is_on_the_disk_before_its_name_is(tmp_path, accelerator, again):
    for _ in range(1 + again):
        with recorded() as calls:
            saved(tmp_path, 7, accelerator)
    contents = {"model.safetensors", "trainer.json", "manifest.json", "step_000007.tmp"}
    assert_flushed_first(calls, contents, "step_000007", tmp_path.name)


def test_an_older_folder_makes_way(tmp_path, accelerator):
    for content in ("old", "new"):
        with states.whole_folder(tmp_path / "checkpoint", accelerator, manifest=False) as aside:
            (aside / content).write_text(content)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_interrupted_write_leaves_only_rubbish(tmp_path, accelerator):
    """A kill between two bytes is an exception that nobody catches."""
    saved(tmp_path, 1, accelerator)

    class Killed(BaseException):
        pass

    def killed():
        with states.whole_folder(tmp_path / "step_000002", accelerator) as aside:
            (aside / "half").write_text("half")
            raise Killed

    with pytest.raises(Killed):
        killed()
    assert (tmp_path / "step_000002.tmp" / "half").exists()
    assert states.newest_intact(tmp_path, print) == tmp_path / "step_000001"
    saved(tmp_path, 3, accelerator)
    states.prune(tmp_path, keep_last=1, step=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path, accelerator):
    with pytest.raises(RuntimeError, match="shapes"), states.whole_folder(tmp_path / "step_000001", accelerator):
        raise RuntimeError("shapes do not match")


def test_damage_is_found_and_passed_over(tmp_path, accelerator):
    for step in range(1, 5):
        saved(tmp_path, step, accelerator)
    (tmp_path / "step_000004" / "manifest.json").write_text('{"model')
    (tmp_path / "step_000003" / "trainer.json").unlink()
    weights = tmp_path / "step_000002" / "model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, 100)
    said = []
    assert states.newest_intact(tmp_path, said.append) == tmp_path / "step_000001"
    assert len(said) == 3
    assert "step_000004: manifest.json is missing or cut short; going on from the state before it" in said[0]
    assert "step_000003: trainer.json is missing" in said[1]
    assert f"step_000002: model.safetensors has 100 bytes instead of {whole}" in said[2]

    assert states.choose_state("never", tmp_path, said.append) is None
    assert states.choose_state("auto", tmp_path, said.append) == tmp_path / "step_000001"
    assert states.choose_state(str(tmp_path / "step_000001"), tmp_path, said.append) == tmp_path / "step_000001"
    with pytest.raises(ValueError, match="step_000003' cannot be read: trainer.json is missing; name another"):
        states.choose_state(str(tmp_path / "step_000003"), tmp_path, said.append)
    os.truncate(tmp_path / "step_000001" / "model.safetensors", 1)
    with pytest.raises(ValueError, match="none of the states in .* can be read; set resume=never"):
        states.choose_state("auto", tmp_path, said.append)
    assert states.choose_state("auto", tmp_path / "empty", said.append) is None


def save_on_a_full_disk(folder: Path) -> None:
    """Says how each library fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond: writing fails half way
    big = {"big": torch.zeros(100_000)}
    for write in (
        lambda aside: torch.save(big, aside / "optimizer.bin"),
        lambda aside: save_file(big, aside / "model.safetensors"),
        lambda aside: (aside / "trainer.json").write_bytes(bytes(200_000)),
    ):
        try:
            with states.whole_folder(folder / "step_000002", Accelerator(cpu=True)) as aside:
                write(aside)
        except OSError as error:
            print(error)


def test_a_full_disk_costs_nothing_that_was_saved(tmp_path, tmp_path_factory, accelerator):
    """Each library fails in its own way (RuntimeError, SafetensorError, OSError); the file size limit makes it real."""
    before = saved(tmp_path, 1, accelerator)
    sentences = (
        ProcessGroup(tmp_path_factory.mktemp("logs"), save_on_a_full_disk, folder=tmp_path).finish().splitlines()
    )
    assert len(sentences) == 3, sentences
    for sentence in sentences:
        assert sentence.startswith(f"could not save {tmp_path / 'step_000002'} (")
        assert sentence.endswith("intact: free some space and start the same command again")
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert states.find_damage(before) is None
