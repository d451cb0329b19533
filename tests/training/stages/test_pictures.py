"""Pictures for a codec: the broken ones are gone over, listed and counted; a position is exact."""

import json
import threading

import pytest
import torch

from hybridgen.data.document_source import DocumentSource
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.training.stages.pictures import PictureLoader
from tests.data.in_memory import drawings, source_of
from tests.processors import assistant, picture


@pytest.fixture
def folder(tmp_path):
    for number in range(9):
        picture(seed=number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("red")
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "3.txt").unlink()
    return tmp_path


def loader(folder, **how) -> PictureLoader:
    rows = [{"messages": [assistant({"type": "image", "image": f"{number}.png"})]} for number in range(9)]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    configs = [SourceConfig(f"{folder}/", name="folder"), SourceConfig(f"{folder}/a.jsonl", streaming=True, buffer=4)]
    return PictureLoader([*map(open_source, configs), source_of(drawings(2))], 4, 16, **{"max_broken": 3, **how})


def test_broken_pictures_are_gone_over_and_listed(folder):
    told = []
    pictures = loader(folder, on_broken=lambda broken: told.append(len(broken)))
    seen = torch.stack([next(pictures)["pictures"] for _ in range(12)]).flatten(0, 1)
    assert pictures.shares() == pytest.approx({"folder": 1 / 3, "a-understanding": 1 / 3, "task": 1 / 3}, abs=0.03)
    found = [each.where.rpartition("/")[2] for each in pictures.broken.entries()]
    assert found[0] == "3.png"  # found when the folder was opened
    assert sorted(found) == ["2.png", "3.png", "a.jsonl:3"]
    assert told == [1, 2, 3]
    assert len({image.numpy().tobytes() for image in seen}) == 8  # of nine seeds all but the broken one
    with pytest.raises(ValueError, match="3 broken records are more than data.max_broken 2 allows: .*3.png"):
        [next(each) for each in [loader(folder, max_broken=2)] for _ in range(12)]


AHEAD = [{}, {"prefetch": 2}, {"loader_threads": 3}, {"prefetch": 1, "loader_threads": 2}]


@pytest.mark.parametrize("ahead", AHEAD)
def test_what_is_read_ahead_changes_nothing(folder, ahead):
    """Neither the pictures nor what is said of the broken ones, nor where a run goes on."""
    told, expected_told = [], []
    expected = loader(folder, on_broken=lambda broken: expected_told.append(list(broken)))
    pictures = loader(folder, on_broken=lambda broken: told.append(list(broken)), **ahead)
    for _ in range(9):
        ours, theirs = next(pictures), next(expected)
        assert torch.equal(ours["pictures"], theirs["pictures"])
        assert ours["records"] == theirs["records"]
        states = [each.state_dict() | {"streams": None} for each in (pictures, expected)]  # beginnings known so far
        assert states[0] == states[1]
        assert pictures.shares() == expected.shares()
        assert told == expected_told
    pictures.close()
    assert torch.equal(next(pictures)["pictures"], next(expected)["pictures"])


def test_records_are_read_ahead_by_threads_and_each_once(folder, monkeypatch):
    read = []
    original = DocumentSource.pictures

    def recorded(source, cursor):
        read.append((threading.current_thread().name.split("_")[0], source.name, cursor))
        return original(source, cursor) * 2  # a record of two pictures

    monkeypatch.setattr(DocumentSource, "pictures", recorded)
    pictures = loader(folder, loader_threads=2)
    for _ in range(6):
        next(pictures)
    assert {thread for thread, _, _ in read} == {"hybridgen-data"}
    assert len({each[1:] for each in read}) == len(read)


@pytest.mark.parametrize("ahead", AHEAD)
def test_it_goes_on_where_it_was(folder, ahead):
    begun = loader(folder, **ahead)
    for _ in range(5):
        next(begun)
    state = json.loads(json.dumps(begun.state_dict()))
    resumed = loader(folder)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for _ in range(6):
        assert torch.equal(next(begun)["pictures"], next(resumed)["pictures"])
