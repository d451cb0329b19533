"""Pictures for a codec: the broken ones are gone over, listed and counted; a position is exact."""

import json
import threading

import pytest
import torch

from hybridgen.data.document_source import DocumentSource
from hybridgen.data.older_positions import ROWS_DIVIDED
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.training.stages.pictures import PictureLoader
from tests.data.in_memory import Listed, drawings, source_of
from tests.processors import assistant, image, picture


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
    pictures = loader(folder, on_bad_records=lambda broken: told.append(len(broken)))
    seen = torch.stack([next(pictures)["pictures"] for _ in range(12)]).flatten(0, 1)
    assert pictures.shares() == pytest.approx({"folder": 1 / 3, "a-understanding": 1 / 3, "task": 1 / 3}, abs=0.03)
    found = [each.where.rpartition("/")[2] for each in pictures.bad_records()]
    assert found[0] == "3.png"  # found when the folder was opened
    assert sorted(found) == ["2.png", "3.png", "a.jsonl:3"]
    assert told == [3]  # in the first batch
    assert len({image.numpy().tobytes() for image in seen}) == 8  # of nine seeds all but the broken one
    with pytest.raises(ValueError, match="3 broken records are more than data.max_broken 2 allows: .*3.png"):
        [next(each) for each in [loader(folder, max_broken=2)] for _ in range(12)]


AHEAD = [{}, {"prefetch": 2}, {"loader_threads": 3}, {"prefetch": 1, "loader_threads": 2}]


@pytest.mark.parametrize("ahead", AHEAD)
def test_what_is_read_ahead_changes_nothing(folder, ahead):
    """Neither the pictures nor what is said of the broken ones, nor where a run goes on."""
    told, expected_told = [], []
    expected = loader(folder, on_bad_records=lambda broken: expected_told.append(list(broken)))
    pictures = loader(folder, on_bad_records=lambda broken: told.append(list(broken)), **ahead)
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
    begun.close()  # what was prepared ahead is made again
    for _ in range(6):
        assert torch.equal(next(begun)["pictures"], next(resumed)["pictures"])
    begun.close()


def test_a_position_is_of_the_sources_by_their_names(folder):
    state = loader(folder).state_dict()
    others = [source_of(drawings(2), name=name) for name in ("folder", "task", "a-understanding")]
    with pytest.raises(
        ValueError, match="position is of 3 sources .folder, a-understanding, task., but the config names f"
    ):
        PictureLoader(others, 4, 16).load_state_dict(state)
    with pytest.raises(ValueError, match="is of part all of the data, but this is 1 of 2"):
        loader(folder, rank=1, world_size=2, shard_by_rank=True).load_state_dict(state)


def test_each_rank_decodes_its_own_part_alone(monkeypatch):
    """Its own rows', and together they see what one process would; with `shard_by_rank`, its own records'."""
    ranks = [PictureLoader([source_of(drawings(8))], 2, 16, rank, 2, shard_by_rank=True) for rank in range(2)]
    read = []
    monkeypatch.setattr(
        DocumentSource,
        "pictures",
        lambda self, cursor, real=DocumentSource.pictures: read.append(self) or real(self, cursor),
    )
    batches = [[next(loader) for _ in range(2)] for loader in ranks]
    assert len(read) == 8
    assert len({picture.numpy().tobytes() for rank in batches for batch in rank for picture in batch["pictures"]}) == 8
    assert [[batch["numbers"].tolist() for batch in rank] for rank in batches] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    whole = PictureLoader([source_of(drawings(8))], 4, 16)
    shared = [PictureLoader([source_of(drawings(8))], 2, 16, rank, 2) for rank in range(2)]
    read.clear()
    for count in range(1, 4):
        expected, parts = next(whole), [next(loader) for loader in shared]
        assert len(read) == 8 * count  # each picture once by `whole` and once by one of two ranks
        assert torch.equal(expected["pictures"], torch.cat([part["pictures"] for part in parts]))
        assert torch.equal(expected["numbers"], torch.cat([part["numbers"] for part in parts]))


def test_a_position_of_an_older_version_goes_on_with_what_was_not_read():
    """Of eight records, the first three of two pictures, two are used up, and the first picture of the third."""
    records = Listed([[assistant(*[image(2 * i + j) for j in range(1 + (i < 3))])] for i in range(8)])
    pictures, source = PictureLoader([source_of(records, shuffle=False)], 4, 16), source_of(records, shuffle=False)
    older = {"cursors": [2], "given": [5], "inside": [1], "sources": ["task"], "broken": [], "streams": {}}
    assert pictures.load_state_dict(older) == [ROWS_DIVIDED]
    source.use_rows(0, 4, 4)
    read = [(source.index(cursor), inside) for inside, cursor in _records(pictures, 3)]
    assert {(2, 1), *((record, 0) for record in range(3, 8))} <= set(read)
    assert next(each for each in read if each[0] == 2) == (2, 1)
    assert pictures.totals() == {"given/task": 5 + 12}


def _records(pictures: PictureLoader, batches: int) -> list[tuple[int, int]]:
    """(place in the record, cursor) of each picture."""
    found = []
    for _ in range(batches):
        insides = [stream.inside[0] for stream in pictures.streams]
        found += [(inside, cursor) for inside, (_, cursor) in zip(insides, next(pictures)["records"], strict=True)]
    return found
