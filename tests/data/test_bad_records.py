"""Broken records: skipped in the same order by everyone, listed once, counted up to a limit that holds the list."""

import errno
import itertools
import json

import pytest

from hybridgen.data import records
from hybridgen.data.bad_records import BadRecord, BadRecordLog
from hybridgen.data.formats import rows
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.data.formats.test_formats import png, sample, write_tar
from tests.data.in_memory import Listed, documents_of, numbered, same, source_of
from tests.processors import assistant, picture, tiny_processor, user

PROCESSOR = tiny_processor()
BROKEN = (2, 5, 11)


@pytest.fixture
def file(tmp_path):
    """Twenty questions about pictures; 2 lacks its picture, that of 5 is cut, 11 has no messages, 7 is long."""
    lines = []
    for number in range(20):
        picture(seed=number).save(tmp_path / f"{number}.png")
        words = f"<{number}>" + " red" * (60 if number == 7 else number % 5)
        parts = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "what?"}]
        lines.append({"messages": [{"role": "user", "content": parts}, assistant(words)]})
    (tmp_path / "2.png").unlink()
    (tmp_path / "5.png").write_bytes(png(5)[:-40])
    lines[11] = {"message": []}
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path / "a.jsonl"


def loader(file, limit: float = 4, streaming: bool = False, rows: int = 2, **how) -> RowLoader:
    config = SourceConfig(str(file), name="ask", streaming=streaming, buffer=6)
    tasks = [open_source(config, 1), source_of(numbered(9), 1, "text")]
    return RowLoader(
        Mixture(tasks, max_broken=limit, loader_threads=how.pop("loader_threads", 0)), PROCESSOR, rows, 64, **how
    )


def take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("loader_threads", [0, 2])
def test_they_are_skipped_listed_once_and_all_else_is_read(file, streaming, loader_threads):
    stream = loader(file, streaming=streaming, loader_threads=loader_threads)
    batches = take(stream, 25)
    stream.close()
    words = " ".join(document for batch in batches for document in documents_of(batch, PROCESSOR.tokenizer))
    for number in range(20):
        assert (f"<{number}>" in words) == (number not in (2, 5, 7, 11)), number
    found = {each.where: each.reason for each in stream.bad_records()}
    where = f"source 'ask', {file}:"
    assert set(found) == {where + line for line in ("3", "6", "8", "12")}
    assert "2.png' is not there" in found[where + "3"]
    assert "5.png cannot be decoded" in found[where + "6"]
    assert "tokens, but a row only 64" in found[where + "8"]
    assert "messages" in found[where + "12"]
    assert not any(reason.startswith(("source", str(file))) for reason in found.values())


@pytest.mark.parametrize("streaming", [False, True])
def test_skipping_is_exact_after_an_interruption_and_on_every_rank(file, streaming):
    whole = take(loader(file, streaming=streaming, rows=4, prefetch=0), 8)
    for after in (0, 1, 3):
        begun = loader(file, streaming=streaming, rows=4)
        take(begun, after)
        state = json.loads(json.dumps(begun.state_dict()))
        resumed = loader(file, streaming=streaming, rows=4, prefetch=0)
        resumed.load_state_dict(state)
        assert resumed.bad_records() == begun.bad_records()
        begun.close()
        assert all(map(same, take(resumed, 5), whole[after:]))
    ranks = [loader(file, streaming=streaming, rank=rank, world_size=2, prefetch=0) for rank in range(2)]
    for one, *parts in zip(whole, *(take(rank, 8) for rank in ranks), strict=True):
        assert one["input_ids"].tolist() == [row for part in parts for row in part["input_ids"].tolist()]
    (alone,) = [loader(file, streaming=streaming, rows=4, prefetch=0)]
    take(alone, 8)
    met = [rank.met_since_shared() for rank in ranks]
    for rank in ranks:
        assert rank.unshared == 0
        rank.agree_on_bad_records([*met[0], *met[1]])
    assert ranks[0].bad_records() == ranks[1].bad_records() != []
    assert sorted(ranks[0].bad_records()) == sorted(alone.bad_records())


@pytest.mark.parametrize(("limit", "count"), [(0, 1), (2, 3), (0.1, 3), (0.06, 2)])
def test_one_too_many_stops_with_the_list(file, limit, count):
    with pytest.raises(ValueError) as error:
        take(loader(file, limit, prefetch=0), 25)
    sentence = str(error.value)
    noun = "1 broken record is" if count == 1 else f"{count} broken records are"
    assert sentence.startswith(f"{noun} more than data.max_broken {limit:g} allows: source 'ask', {file}:12: ")
    assert sentence.count(f"{file}:") == count
    assert "\n" not in sentence


def test_a_share_is_of_each_source_and_a_number_of_all():
    ledger = BadRecordLog(0.5)
    for number in range(2):
        ledger.add("a", BadRecord(f"a {number}", "why"), 4)
    ledger.add("b", BadRecord("b 0", "why"), 4)
    ledger.add("b", BadRecord("b 0", "again"), 4)
    assert len(ledger) == 3
    with pytest.raises(ValueError, match="4 broken records are more than data.max_broken 0.5 allows: a 0: why; a 1"):
        ledger.add("a", BadRecord("a 2", "why"), 4)
    ledger = BadRecordLog(30)
    for number in range(30):
        ledger.add("ab"[number % 2], BadRecord(str(number), "why"), 4)
    with pytest.raises(ValueError, match="31 broken records .* 19: why; and 11 more$"):
        ledger.add("a", BadRecord("30", "why"), 4)


@pytest.mark.parametrize("limit", [0.9, 5000])
def test_a_long_list_costs_no_more_a_record_than_a_short_one(limit):
    """Counted: comparisons and hashes of names, for each record that is added; and what was listed before stays."""

    class Counted(str):
        uses = 0

        def __eq__(self, other):
            Counted.uses += 1
            return str.__eq__(self, other)

        def __hash__(self):
            Counted.uses += 1
            return str.__hash__(self)

    def uses_of(count: int) -> int:
        log, Counted.uses = BadRecordLog(limit), 0
        for number in range(count):
            log.add(Counted("a"), BadRecord(Counted(number), "why"), 10_000)
        uses, state = Counted.uses, json.loads(json.dumps(log.state_dict()))
        again = BadRecordLog(limit)
        again.load_state_dict(state)
        assert again.state_dict() == state == log.state_dict()
        assert log.state_dict(count // 2) == state[: count // 2]
        assert again.entries(3) == log.entries()[:3]
        return uses

    assert uses_of(4000) <= 2.2 * uses_of(2000)  # 4.0 if each were compared with all before it


def test_a_source_of_which_nothing_is_whole_is_refused_at_once(tmp_path):
    nothing = Listed([[user("a"), assistant(" red" * 100)] for _ in range(3)])
    with pytest.raises(ValueError, match="source 'text' is broken: 6 records in a row, the last of them .*record"):
        take(RowLoader(Mixture([source_of(nothing, name="text")], max_broken=1000), PROCESSOR, 1, 32, prefetch=0), 1)
    (tmp_path / "a.jsonl").write_text("{\n[]\n")
    with pytest.raises(ValueError, match="a.jsonl holds no record that can be read: .*a.jsonl:1: not a JSON object"):
        open_source(SourceConfig(f"{tmp_path}/a.jsonl"))


def test_more_of_them_are_told_as_they_are_met(file):
    told = []
    stream = loader(file, prefetch=2, on_bad_records=lambda broken: told.append([each.where for each in broken]))
    take(stream, 25)
    stream.close()
    assert [len(each) for each in told] == sorted({len(each) for each in told})
    assert len(told[-1]) == 4


def test_a_shard_that_vanishes_is_no_broken_record(tmp_path):
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", [sample(shard * 10 + number) for number in range(4)])
    for streaming in (False, True):
        config = SourceConfig(f"{tmp_path}/*.tar", name="s", write="vq", streaming=streaming, buffer=2, shuffle=False)
        stream = RowLoader(Mixture([open_source(config)], max_broken=100), PROCESSOR, 1, 64, prefetch=0)
        (tmp_path / "1.tar").rename(tmp_path / "gone")
        with pytest.raises(OSError, match="1.tar"):
            take(stream, 10)
        (tmp_path / "gone").rename(tmp_path / "1.tar")


def test_the_last_whole_record_is_found_however_the_epochs_meet():
    """Of three records two are broken: four of those may follow one another where an epoch ends."""
    long = [user("a"), assistant(" red" * 100)]
    source = Listed([long, [user("a"), assistant("<whole>")], long])
    stream = RowLoader(Mixture([source_of(source, name="text")], max_broken=2), PROCESSOR, 1, 48, prefetch=0)
    for batch in take(stream, 30):
        assert all("<whole>" in words for words in documents_of(batch, PROCESSOR.tokenizer))
    assert len(stream.bad_records()) == 2


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'NoneType' object has no attribute 'x'"),
        TypeError("an integer is required"),
        KeyError("APP1"),
        RecursionError("maximum recursion depth exceeded"),
        OverflowError("Python int too large to convert to C long"),
        MemoryError(),
        ZeroDivisionError("division by zero"),
        OSError(errno.ENAMETOOLONG, "File name too long"),
        PermissionError(errno.EACCES, "Permission denied"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        NotImplementedError("\n two\nlines " + "x" * 5000),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["picture", "row", "document"])
def test_whatever_one_record_raises_costs_that_record_alone(file, monkeypatch, error, place):
    """Of the picture of record 13, the row in line 14, or the document made of it."""
    real = {"picture": records.load_images, "row": rows.record_of, "document": PROCESSOR.document}[place]

    def failing(*values, **settings):
        if "<13>" in str(values[0]):
            raise error
        return real(*values, **settings)

    if place == "picture":
        monkeypatch.setattr(rows, "load_images", failing)
    elif place == "row":
        monkeypatch.setattr(rows, "record_of", failing)
    else:
        monkeypatch.setattr(PROCESSOR, "document", failing)
    stream = loader(file, limit=12, prefetch=1)
    take(stream, 12)
    stream.close()
    told = {each.where: each.reason for each in stream.bad_records()}
    reason = next(reason for where, reason in told.items() if where.endswith("a.jsonl:14"))
    assert isinstance(error, ValueError) or reason.startswith(f"it cannot be read ({type(error).__name__}")
    assert len(reason) < 300
    assert "\n" not in reason


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_broken_record(file, monkeypatch, code):
    def full(*_):
        raise OSError(code, "No space left on device")

    monkeypatch.setattr(rows, "load_images", full)
    with pytest.raises(OSError, match="No space left on device"):
        take(loader(file, limit=100, prefetch=0), 3)


def test_a_stream_of_words_and_pictures_goes_on_with_the_same_batches(tmp_path):
    """Which row a run (or a process) reads first is nothing that a later row depends on."""
    lines = []
    for number in range(60):
        picture(seed=number).save(tmp_path / f"{number}.png")
        lines.append(
            {"text": f"<{number}> red"} if number % 3 == 0 else {"image": f"{number}.png", "text": f"<{number}>"}
        )
    lines += [{"image": None, "text": "lost"}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def stream(**how) -> RowLoader:
        config = SourceConfig(f"{tmp_path}/a.jsonl", name="draw", write="diffusion", streaming=True, buffer=6)
        return RowLoader(Mixture([open_source(config)], max_broken=3), PROCESSOR, 1, 96, prefetch=0, **how)

    whole = stream()
    states, batches = [], []
    for _ in range(9):
        states.append(json.loads(json.dumps(whole.state_dict())))
        batches.append(next(whole))
    for number, state in enumerate(states):
        resumed = stream()
        resumed.load_state_dict(state)
        assert same(next(resumed), batches[number])
    parts = [stream(rank=rank, world_size=2, shard_by_rank=True) for rank in range(2)]
    words = [
        document for part in parts for batch in take(part, 30) for document in documents_of(batch, PROCESSOR.tokenizer)
    ]
    for number in range(60):
        mine = {document for document in words if f"<{number}>" in document}
        assert mine, number
        assert all(("image" in document) == (number % 3 != 0) for document in mine)
