"""Streams: every record once, shuffled by blocks; positions exact in the middle of a pack; parts for ranks; threads."""

import gzip
import itertools
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import datasets
import pyarrow
import pytest

from hybridgen.data.formats import endless, streaming, webdataset
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
    assert resumed.state_dict()["row_streams"] == state["row_streams"]
    assert all(map(same, take(resumed, 3), batches[after:]))
    drawn = sum(each["cursors"]["s"] for each in state["row_streams"].values())
    assert after < 23 or drawn > COUNT  # or this test shows less than it says


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("pattern", ["0", "[12]"])
def test_a_short_epoch_is_read_from_its_files_once(files, suffix, pattern, monkeypatch):
    """Chunks take in several epochs; positions within them are exact, and states of the library go on."""
    name = f"{files}/{pattern}.{suffix}"
    config = SourceConfig(name, name="s", streaming=True, buffer=60, format=FORMATS[suffix])
    begun, plain = open_source(config, seed=3), open_source(config, seed=3)
    opened, epochs = [], begun.record_source._epochs
    open_files = epochs._open
    epochs._open = lambda shards: opened.append(shards) or open_files(shards)
    texts = [begun[index] for index in range(200)]
    monkeypatch.setattr(endless, "SHORT_EPOCH_BYTES", -1)  # as if each epoch were longer than a chunk
    assert texts == [plain[index] for index in range(200)]
    assert len(opened) == len(set(opened))  # each order of the files at most once
    for state in (begun.record_source.state_dict(), plain.record_source.state_dict()):
        resumed = open_source(config, seed=3)
        resumed.record_source.load_state_dict(json.loads(json.dumps(state)))
        assert [resumed[index] for index in range(120, 200)] == texts[120:]


@pytest.mark.parametrize("suffix", FORMATS)
def test_to_go_on_nothing_before_is_read_again(files, suffix, monkeypatch):
    begun = stream(files, suffix, buffer=4)
    for cursor in range(45):
        begun.document(cursor, PROCESSOR)
    state = json.loads(json.dumps(begun.record_source.state_dict()))
    resumed = stream(files, suffix, buffer=4)
    resumed.record_source.load_state_dict(state)
    read, row = [], endless.EndlessRows.__next__
    monkeypatch.setattr(endless.EndlessRows, "__next__", lambda rows: read.append(rows) or row(rows))
    for cursor in range(41, 50):
        assert resumed.document(cursor, PROCESSOR).layout == begun.document(cursor, PROCESSOR).layout
    own = [rows for rows in read if rows._epochs is resumed.record_source._epochs]
    assert len(own) <= 16  # of 50; whole blocks of 4


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


def test_a_stream_of_fewer_records_than_processes_that_divide_it_is_refused_by_those_without_any(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "red"}\n' * 3)
    source = open_source(SourceConfig(f"{tmp_path}/a.jsonl", streaming=True))
    source.use_shard(2, 8)
    assert source[0]["messages"]
    source.use_shard(3, 8)
    with pytest.raises(ValueError, match=r"a.jsonl holds too few records to be divided by 8 .*shard_by_rank: false"):
        source[0]
    source.close()


PACKED = "".join(json.dumps({"text": f"<{number}> red"}) + "\n" for number in range(40)).encode()


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


PACKINGS = {
    "a.jsonl.gz": gzip.compress(PACKED[:300]) + gzip.compress(PACKED[300:]),
    "a.jsonl.zst": zstd(PACKED),
    "a.jsonl.zstd": zstd(PACKED[:300]) + zstd(PACKED[300:]),  # frames, as several threads write them
}


@pytest.mark.parametrize("name", PACKINGS)
def test_packed_lines_are_read_to_their_end_or_it_is_said_where_that_fails(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(PACKINGS[name])
    source = open_source(SourceConfig(str(file), streaming=True, shuffle=False))
    for number in [*range(40), 40]:
        assert f"<{number % 40}> red" in str(source[number])
    source.close()
    file.write_bytes(PACKINGS[name][:-20])
    with pytest.raises(OSError, match=f"{name} cannot be read on: (Compressed file ended|Truncated)"):
        open_source(SourceConfig(str(file), streaming=True))


def test_lines_in_json_gz_as_corpora_have_them_are_streamed_where_it_is_said_that_they_are_lines(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(PACKINGS["a.jsonl.gz"])
    with pytest.raises(ValueError, match="a json has none, leave it out, or say format: jsonl if it holds lines"):
        SourceConfig(f"{tmp_path}/*.json.gz", streaming=True)
    source = open_source(SourceConfig(f"{tmp_path}/*.json.gz", format="jsonl", streaming=True, shuffle=False))
    assert "<39> red" in str(source[39])
    source.close()


@pytest.mark.parametrize(("name", "packed"), [("a.jsonl", "gzip"), ("a.jsonl.gz", "zstd"), ("a.tar", "zstd")])
def test_what_is_packed_otherwise_than_its_name_says_is_refused(tmp_path, name, packed):
    (tmp_path / name).write_bytes(PACKINGS["a.jsonl.gz" if packed == "gzip" else "a.jsonl.zst"])
    with pytest.raises(ValueError, match=f"{name} is compressed with {packed}; unpack it"):
        open_source(SourceConfig(str(tmp_path / name), streaming=True))


def threads_of_data() -> list[str]:
    names = [each.name for each in threading.enumerate()]
    return [name for name in names if name.startswith(("hybridgen-data", "hybridgen-stream", "hybridgen-loader"))]


def test_a_loader_leaves_no_thread_where_it_is_closed_or_cannot_begin(files, tmp_path):
    before = threads_of_data()
    loader = RowLoader(Mixture([stream(files, "jsonl")], loader_threads=2), PROCESSOR, 2, 96)
    first = take(loader, 3)
    loader.close()
    assert threads_of_data() == before
    again = RowLoader(Mixture([stream(files, "jsonl")]), PROCESSOR, 2, 96, prefetch=0)
    assert all(map(same, first + take(loader, 3), take(again, 6)))  # closed, it goes on
    loader.close()
    again.close()
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    broken = open_source(SourceConfig(f"{tmp_path}/a.jsonl", streaming=True))
    with pytest.raises(ValueError, match="1 broken record is more than"):
        RowLoader(Mixture([broken], loader_threads=2), PROCESSOR, 2, 96)
    assert threads_of_data() == before


def test_a_buffer_that_no_memory_holds_is_refused(files):
    with pytest.raises(ValueError, match="s: buffer is 1000000000000; it must be at most 1,000,000, as a few times"):
        stream(files, "jsonl", buffer=10**12)


# ------------------------------------------------------------------------------------------ rows of a global batch


def counted(monkeypatch, owner, name: str) -> list:
    """Arguments of each call of a method from now on."""
    calls, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: calls.append(arguments) or method(*arguments))
    return calls


def of_process(files, suffix: str, process: int, processes: int, total: int = 8, **config):
    source = stream(files, suffix, **config)
    own = total // processes
    source.record_source.use_rows(process * own, own, total)
    return source


def settle(source) -> None:
    """Wait until all that was asked for is read."""
    for reading in list(source.record_source._chunks.values()):
        reading.exception()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_read_their_own_rows_of_one_stream(files, suffix, shuffle):
    """For every number of processes the records are the same, and each is kept by one process alone."""
    total, records = 8, 150  # chunks of 16, three epochs
    whole = stream(files, suffix, buffer=16, shuffle=shuffle)
    expected = [whole[cursor]["messages"] for cursor in range(records)]
    assert shuffle != (expected[:COUNT] == expected[COUNT : 2 * COUNT])
    for processes in (1, 2, 4, 8):
        sources = [of_process(files, suffix, each, processes, buffer=13, shuffle=shuffle) for each in range(processes)]
        found = [sources[cursor % total * processes // total][cursor]["messages"] for cursor in range(records)]
        assert found == expected
        for source in sources:
            settle(source)
            held = [part for reading in source.record_source._chunks.values() for part in reading.result().values()]
            assert sum(map(len, held)) * processes <= 16 * (
                3 + 8
            )  # of chunks before the one asked for, it and the next
    with pytest.raises(IndexError, match="record 7 of .* is of row 7, but this process has"):
        sources[0][7]


def test_what_other_processes_train_on_is_not_read(files, monkeypatch):
    """Payloads of a tar, lines parsed: an eighth each; and the headers of a tar once an epoch."""
    payloads = counted(monkeypatch, webdataset._Part, "read")
    parsed = counted(monkeypatch, streaming, "parse_json")
    for suffix, calls, parts in (("tar", payloads, 2), ("jsonl", parsed, 1)):
        source = of_process(files, suffix, 3, 8, buffer=16)
        calls.clear()
        for cursor in range(3, 16 * 5, 8):
            source.record_source.record(cursor)
        settle(source)
        assert len(calls) == 2 * parts * (6 if suffix == "tar" else 5)  # 2 records of a chunk; of a tar one is ahead


def test_rows_that_drift_apart_read_the_stream_once(files, monkeypatch):
    """Row 0 is 25 chunks ahead of row 1: what row 1 has not asked for is kept for it, and nothing is read twice."""
    source, plain = of_process(files, "tar", 0, 4, buffer=8), stream(files, "tar", buffer=8)
    expected = {cursor: plain[cursor]["messages"] for cursor in range(8 * 26)}
    plain.close()
    calls, own = counted(monkeypatch, endless.EndlessRows, "__next__"), source.record_source._epochs
    for row in (0, 1):
        for chunk in range(26):
            assert source[8 * chunk + row]["messages"] == expected[8 * chunk + row]
    settle(source)
    assert len([rows for (rows,) in calls if rows._epochs is own]) == 8 * 27
    behind = [row for reading in source.record_source._chunks.values() for row in reading.result()]
    assert len(behind) <= 2 * (16 + 2)  # of each row what it may still be asked for, and what was read ahead
    assert source[0]["messages"] == expected[0]  # long gone, but it can be had
    assert source[8 * 26]["messages"] == plain[8 * 26]["messages"]


def test_the_next_chunk_is_read_while_one_is_used(files, monkeypatch):
    """Nobody waits at the end of a chunk: all rows are read by the thread, those of the next chunk when the first of
    this one was asked for."""
    others = set(threading.enumerate())
    source = stream(files, "tar", buffer=10)
    own, readers, row = source.record_source._epochs, [], endless.EndlessRows.__next__

    def noted(rows):
        if rows._epochs is own:
            readers.append(threading.current_thread().name)
        return row(rows)

    monkeypatch.setattr(endless.EndlessRows, "__next__", noted)
    for chunk in range(8):
        source[10 * chunk]
        assert chunk + 1 in source.record_source._chunks
        settle(source)
        for place in range(1, 10):
            source[10 * chunk + place]
        assert len(readers) == 10 * (chunk + 2)
    assert {name.split("_")[0] for name in readers} == {"hybridgen-stream"}
    assert set(threading.enumerate()) - others
    source.close()
    assert not set(threading.enumerate()) - others
    source[80]
    source.close()


def test_what_goes_wrong_in_the_thread_is_said_where_the_record_is_asked_for(tmp_path):
    for name in "ab":
        lines = [json.dumps({"text": f"<{name}{number}>"}).encode() + b"\n" for number in range(20)]
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))
    source = open_source(SourceConfig(f"{tmp_path}/*.jsonl", name="s", streaming=True, buffer=4, shuffle=False))
    (tmp_path / "b.jsonl").unlink()
    assert [said(source, cursor) for cursor in range(20)] == [f"<a{number}>" for number in range(20)]
    for _ in range(2):
        with pytest.raises(OSError, match="jsonl cannot be read on: .*b.jsonl"):
            source[20]
    assert said(source, 19) == "<a19>"
    (tmp_path / "b.jsonl").write_bytes(b"".join(lines))
    assert said(source, 20) == "<b0>"  # it is back


@pytest.mark.parametrize("suffix", FORMATS)
def test_threads_may_ask_in_any_order(files, suffix):
    plain, source = stream(files, suffix, buffer=8), stream(files, suffix, buffer=8)
    order = random.Random(0).sample(range(120), 120)
    with ThreadPoolExecutor(6) as threads:
        found = dict(zip(order, threads.map(lambda cursor: source[cursor]["messages"], order), strict=True))
    assert all(found[cursor] == plain[cursor]["messages"] for cursor in range(120))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_long_run_saves_few_resume_points_and_goes_on_from_any_row(files, suffix, monkeypatch):
    """300 chunks: some dozen points; a row that lags goes on from one at most an eighth of its distance before it.
    States of several processes are merged."""
    begun = [of_process(files, suffix, each, 2, total=4, buffer=4) for each in range(2)]
    for chunk in range(300):
        begun[0][4 * chunk], begun[1][4 * chunk + 2]
    states = [json.loads(json.dumps(each.record_source.state_dict())) for each in begun]
    assert states[0] == states[1] == streaming.merged_states(states)
    assert len(states[0]["points"]) < 60
    for process, total, lagging in ((0, 4, 4 * 240 + 1), (1, 4, 4 * 299 + 2)):
        resumed = of_process(files, suffix, process, 2, total, buffer=4)
        resumed.record_source.load_state_dict(states[process])
        read = counted(monkeypatch, endless.EndlessRows, "__next__")
        assert resumed[lagging]["messages"] == begun[process][lagging]["messages"]
        settle(resumed)
        own = [rows for (rows,) in read if rows._epochs is resumed.record_source._epochs]
        assert len(own) <= 4 * (300 - lagging // 4) // 8 + 4 * 3
        assert resumed.record_source.state_dict() == states[process]


@pytest.mark.parametrize("suffix", FORMATS)
def test_states_of_before_rows_were_divided_go_on(files, suffix):
    """They count chunks of the config's buffer."""
    old = {"0": {"epoch": 0, "state": None}}
    rows = endless.EndlessRows(stream(files, suffix, buffer=6).record_source._epochs, endless.START)
    for chunk in range(1, 20):
        old[str(chunk)] = [next(rows) for _ in range(6)] and rows.point()
    whole = of_process(files, suffix, 1, 2, buffer=6)
    resumed = of_process(files, suffix, 1, 2, buffer=6)
    resumed.record_source.load_state_dict(json.loads(json.dumps(old)))
    assert [resumed[cursor] for cursor in (5, 101, 118)] == [whole[cursor] for cursor in (5, 101, 118)]


def test_a_second_reader_moves_nothing(files):
    source = of_process(files, "jsonl", 0, 2, buffer=16)
    assert said(source, 64)
    second = source.anew()
    assert [said(second, cursor) for cursor in range(8)] == [
        said(stream(files, "jsonl", buffer=16), i) for i in range(8)
    ]
    assert source.record_source._last == {0: 4}
    assert said(source, 65)
