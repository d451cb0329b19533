"""Streams: every record once, shuffled by blocks; positions exact in the middle of a pack; parts for ranks; threads."""

import itertools
import json

import datasets
import pytest

from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.data.formats.test_formats import png, sample, write_tar
from tests.data.in_memory import drawings, numbered, same, source_of
from tests.processors import assistant, tiny_processor, user

COUNT = 53
PROCESSOR = tiny_processor()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same COUNT texts of various lengths in four shards of each kind."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        numbers = range(shard * COUNT // 4, (shard + 1) * COUNT // 4)
        rows = [{"messages": [user("what?"), assistant(f"<{i}>" + " red" * (i * 7 % 11))]} for i in numbers]
        (folder / f"{shard}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        samples = [{f"{i:03}.png": png(i), f"{i:03}.txt": b"red" + b" red" * (i * 7 % 11)} for i in numbers]
        write_tar(folder / f"{shard}.tar", samples)
        rows = [{"image": png(i), "text": "red" + " red" * (i * 7 % 11)} for i in numbers]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{shard}.parquet", batch_size=5)
    return folder


def stream(files, suffix: str, buffer: int = 10, **config):
    source = SourceConfig(
        f"{files}/*.{suffix}", name="s", streaming=True, buffer=buffer, format=FORMATS[suffix], **config
    )
    return open_source(source, seed=3)


FORMATS = {"jsonl": "jsonl", "tar": "webdataset", "parquet": "parquet"}


def loader(files, suffix: str, rows: int = 2, **how) -> RowLoader:
    sources = [
        stream(files, suffix, write=None if suffix == "jsonl" else "vq"),
        source_of(numbered(17), 1, "text"),
        source_of(drawings(9), 1, "more", write="vq"),
    ]
    return RowLoader(Mixture(sources, loader_threads=how.pop("loader_threads", 0)), PROCESSOR, rows, 96, **how)


def take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


def said(source, cursor: int) -> str:
    return source[source.index(cursor)]["messages"][-1]["content"][0]["text"]


def test_every_record_comes_once_before_any_comes_again(files):
    shuffled, plain = stream(files, "jsonl"), stream(files, "jsonl", shuffle=False)
    order = [said(plain, cursor) for cursor in range(2 * COUNT)]
    assert len(set(order[:COUNT])) == COUNT
    assert order[:COUNT] == order[COUNT:]
    found = [said(shuffled, cursor) for cursor in range(2 * COUNT - COUNT * 2 % 10)]
    counts = [found.count(words) for words in set(found)]
    assert set(counts) <= {1, 2}
    assert found[:COUNT] != order[:COUNT]
    assert [said(stream(files, "jsonl"), cursor) for cursor in (0, 77, 31)] == [found[0], found[77], found[31]]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("after", [0, 7, 23])
def test_an_interrupted_stream_goes_on_exactly(files, suffix, after):
    """Documents wait for a row, blocks are half read, and an epoch has ended."""
    whole = loader(files, suffix, prefetch=0)
    batches = take(whole, after + 3)
    interrupted = loader(files, suffix)
    take(interrupted, after)
    state = json.loads(json.dumps(interrupted.state_dict()))
    interrupted.close()
    resumed = loader(files, suffix, prefetch=0)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert all(map(same, take(resumed, 3), batches[after:]))
    assert after < 23 or state["mixture"]["cursors"]["s"] > COUNT  # or this test shows less than it says


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("pattern", ["0", "[12]"])
def test_a_short_epoch_is_read_from_its_files_once(files, suffix, pattern):
    """Chunks take in several epochs; positions within them are exact, and states of the library go on."""
    name = f"{files}/{pattern}.{suffix}"
    config = SourceConfig(name, name="s", streaming=True, buffer=60, format=FORMATS[suffix])
    begun, plain = open_source(config, seed=3), open_source(config, seed=3)
    plain.record_source._short_epochs = _Forgetful()  # as if each epoch were longer than a chunk
    opened, open_files = [], begun.record_source._open
    begun.record_source._open = lambda shards: opened.append(shards) or open_files(shards)
    texts = [begun[index] for index in range(200)]
    assert texts == [plain[index] for index in range(200)]
    assert len(opened) == len(set(opened))  # each order of the files at most once
    for state in (begun.record_source.state_dict(), plain.record_source.state_dict()):
        resumed = open_source(config, seed=3)
        resumed.record_source.load_state_dict(json.loads(json.dumps(state)))
        assert [resumed[index] for index in range(120, 200)] == texts[120:]


class _Forgetful(dict):
    def __setitem__(self, *_):
        pass

    def setdefault(self, *_):
        pass


@pytest.mark.parametrize("suffix", FORMATS)
def test_to_go_on_nothing_before_is_read_again(files, suffix):
    begun = stream(files, suffix, buffer=4)
    for cursor in range(45):
        begun.document(cursor, PROCESSOR)
    state = json.loads(json.dumps(begun.record_source.state_dict()))
    resumed = stream(files, suffix, buffer=4)
    resumed.record_source.load_state_dict(state)
    read, endless = [], resumed.record_source._endless
    resumed.record_source._endless = lambda *begin: (read.append(pair) or pair for pair in endless(*begin))
    for cursor in range(41, 50):
        assert resumed.document(cursor, PROCESSOR).layout == begun.document(cursor, PROCESSOR).layout
    assert len(read) <= 16  # of 50; whole blocks of 4


def test_workers_change_nothing(files):
    plain, helped = loader(files, "tar", prefetch=0), loader(files, "tar", loader_threads=3)
    batches = take(plain, 9)
    assert all(map(same, batches, take(helped, 9)))
    helped.close()  # what was prepared ahead is made again
    assert all(map(same, take(plain, 3), take(helped, 3)))
    helped.close()


def test_two_ranks_equal_one(files):
    whole = take(loader(files, "jsonl", rows=4, prefetch=0), 3)
    ranks = [take(loader(files, "jsonl", rows=2, rank=rank, world_size=2, prefetch=0), 3) for rank in range(2)]
    for one, *parts in zip(whole, *ranks, strict=True):
        for name in ("input_ids", "row_numbers", "labels"):
            assert one[name].tolist() == [row for part in parts for row in part[name].tolist()]


@pytest.mark.parametrize("parts", [2, 3])
def test_divided_data_are_read_once_by_all_ranks_together(files, parts):
    streams = [stream(files, "jsonl", shuffle=False) for _ in range(parts)]
    listed = [source_of(numbered(COUNT), name="text", shuffle=False) for _ in range(parts)]
    for sources in (streams, listed):
        found = []
        for part, each in enumerate(sources):
            each.use_shard(part, parts)
            share = COUNT // parts + (part < COUNT % parts)
            if sources is streams and parts == 2:  # four shards, two for each
                share = (COUNT // 2, COUNT - COUNT // 2)[part]
            found += [said(each, cursor) for cursor in range(share)]
        assert len(found) == len(set(found)) == COUNT


def test_divided_positions_are_of_their_part(files):
    def rank(number: int, world: int = 2, shard_by_rank: bool = True) -> RowLoader:
        return loader(files, "jsonl", rank=number, world_size=world, shard_by_rank=shard_by_rank, prefetch=0)

    ranks = [rank(number) for number in range(2)]
    batches = [take(each, 5) for each in ranks]
    assert [batch["row_numbers"].tolist() for batch in batches[1][:2]] == [[2, 3], [6, 7]]
    assert not same(batches[0][0]["input_ids"], batches[1][0]["input_ids"])
    state = ranks[1].state_dict()
    resumed = rank(1)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert all(map(same, take(resumed, 3), take(ranks[1], 3)))
    assert 0.8 < ranks[0].fill_rate() <= 1
    with pytest.raises(ValueError, match="the saved position is of part 1 of 2 of the data, but this is 0 of 2"):
        rank(0).load_state_dict(state)
    with pytest.raises(ValueError, match="of part 1 of 2 of the data, but this is all"):
        rank(1, shard_by_rank=False).load_state_dict(state)
    with pytest.raises(ValueError, match="source 'text' has 17 records, too few to be divided by 20 processes"):
        source_of(numbered(17), name="text").use_shard(0, 20)


def test_a_stream_without_records_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="a.jsonl holds no record"):
        open_source(SourceConfig(f"{tmp_path}/a.jsonl", streaming=True))
    write_tar(tmp_path / "a.tar", [sample(0)])
    with pytest.raises(ValueError, match="there is no column 'cap'; its columns are png, txt"):
        open_source(SourceConfig(f"{tmp_path}/a.tar", columns={"text": "cap"}, streaming=True))[0]


def test_a_buffer_that_no_memory_holds_is_refused(files):
    with pytest.raises(ValueError, match="s: buffer is 1000000000000; it must be at most 1,000,000, as a few times"):
        stream(files, "jsonl", buffer=10**12)
