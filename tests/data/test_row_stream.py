"""Rows as streams of their own: shares of every batch, and positions of older versions divided among rows."""

import json
import re

import pytest
import torch

from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.older_positions import LABELS_CHANGED, ROWS_DIVIDED
from hybridgen.data.row_stream import pick, spread
from tests.data.in_memory import Listed, documents_of, numbered, same, source_of
from tests.processors import assistant, image, tiny_processor, user

PROCESSOR = tiny_processor()
LONG = Listed([[user("what?"), assistant(f"<{i}>" + " red" * 9)] for i in range(7)])
LENGTH = len(source_of(LONG).document(0, PROCESSOR))  # of all of them


def sources(count: int) -> list:
    return [source_of(LONG, 1, name) for name in "abcd"[:count]]


CURRICULUM = [{0: 9.0, 20: 1.0, 33: 4}, {0: 1.0, 20: 5.0}, {0: 0, 33: 4}]


@pytest.mark.parametrize("rows", [1, 3, 8, 16])
@pytest.mark.parametrize(
    ("weights", "temperature"),
    [([1, 1], 1), ([0.9, 0.1], 1), ([5, 3, 2], 1), ([0.62, 0.2, 0.1, 0.08], 1), ([0.9, 0.1], 3.0), (CURRICULUM, 1)],
)
def test_of_documents_as_long_as_a_row_each_source_gives_its_share_of_every_batch(weights, temperature, rows):
    """Rounded up or down: within one row, from the first batch on and wherever weights change."""
    mixture = Mixture(sources(len(weights)), weights, temperature)
    loader = RowLoader(mixture, PROCESSOR, rows, LENGTH, prefetch=0)
    for step in range(50):
        drawn = [name for name, _ in next(loader)["records"]]
        assert len(drawn) == rows
        for name, share in mixture.weights_at(step).items():
            assert abs(drawn.count(name) - share * rows) < 1, (step, name, drawn)
    if rows > 1:
        for stream in loader.streams:  # and over time, no row is one source's
            assert min(stream.tokens.values()) > 0


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 64, 100])
def test_rows_begin_at_places_that_are_spaced_evenly(rows):
    assert sorted(round(spread(row, rows) * rows) for row in range(rows)) == list(range(rows))
    for first in range(0, rows - 8, 8):  # the rows of a process see the whole circle
        places = sorted(spread(row, rows) for row in range(first, first + 8))
        assert max(b - a for a, b in zip(places, [*places[1:], places[0] + 1], strict=True)) < 0.3


def test_a_share_of_nothing_is_never_picked():
    shares = {"a": 0.0, "b": 0.3, "c": 0.7 - 1e-12, "d": 0.0}
    assert [pick(shares, place) for place in (0.0, 0.29, 0.31, 1 - 1e-16)] == ["b", "b", "c", "c"]


# -------------------------------------------------------------------------------------------------- what does not fit


def test_of_a_document_with_a_picture_longer_than_a_row_nothing_is_in_any_row():
    """Not the words before it either: it is a broken record, and the whole source is refused where all are."""
    words = " red" * 40
    texts = [[assistant(f"<{number}>{words}")] for number in range(4)]
    pictured = [[assistant(words, image(1), words)], [user(image(1)), assistant("red")]]
    how = {"long": "split", "read": "diffusion"}
    mixture = Mixture([source_of(Listed(texts + pictured), **how)], max_broken=9)
    loader = RowLoader(mixture, PROCESSOR, 2, 16, prefetch=0)
    source, seen = loader.mixture.sources["task"], set()
    for _ in range(60):
        seen |= {source.index(cursor) for _, cursor in next(loader)["records"]}
    assert seen == {0, 1, 2, 3}
    assert {bad.where for bad in loader.bad_records()} == {"source 'task', record 4", "source 'task', record 5"}
    with pytest.raises(ValueError, match="source 'task' is broken: 4 records in a row.*a picture of 18 tokens"):
        RowLoader(Mixture([source_of(Listed(pictured), **how)], max_broken=9), PROCESSOR, 2, 16)


# ------------------------------------------------------------------------------------------ positions of older versions


def older_state(drawn: int, waiting: list[int]) -> dict:
    """As saved when all rows shared one place in the mixture."""
    mixture = {
        "cursors": {"text": drawn},
        "tokens": {"text": 803},
        "owed": {"text": 803.0},
        "broken": [],
        "streams": {},
    }
    mixture["data"] = {"text": {"records": 41, "files": None}}
    pending = [["text", number] for number in waiting]
    return {"rows": 4, "length": 96, "part": None, "batches": 7, "used": 770, "mixture": mixture, "pending": pending}


@pytest.mark.parametrize("drawn", [0, 17, 40, 66])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_position_of_an_older_version_is_divided_among_the_rows(drawn, shuffle):
    """The documents that were drawn do not come again, those that waited and all others come once."""
    waiting = sorted({drawn - 1, drawn - 4, drawn - 11} & set(range(drawn)))
    unused, plain = source_of(numbered(41), 3, "text", shuffle=shuffle), RowLoader
    expected = [unused.index(number) for number in (*waiting, *range(drawn, drawn + 60))]
    source = source_of(numbered(41), 3, "text", shuffle=shuffle)
    stream = plain(Mixture([source]), PROCESSOR, 4, 96, prefetch=0)
    assert stream.load_state_dict(older_state(drawn, waiting)) == [ROWS_DIVIDED, LABELS_CHANGED]
    source.config.form = "chat"  # nothing of which changed
    assert stream.load_state_dict(older_state(drawn, waiting)) == [ROWS_DIVIDED]
    assert stream.changes(older_state(drawn, waiting)) == []
    assert sum(row.tokens["text"] for row in stream.streams) == 803
    assert stream.fill_rate() == 770 / (7 * 4 * 96)
    batch = next(stream)
    assert batch["row_numbers"].tolist() == [28, 29, 30, 31]
    found = _numbers(batch)
    while min(row.cursors["text"] for row in stream.streams) * 4 < drawn + 64:
        found += _numbers(next(stream))
    found += [source.index(drawn.cursor) for row in stream.streams for drawn in row.waiting]
    for number in set(expected):
        assert found.count(number) >= expected.count(number)
    state = json.loads(json.dumps(stream.state_dict()))
    again = plain(Mixture([source_of(numbered(41), 3, "text", shuffle=shuffle)]), PROCESSOR, 4, 96, prefetch=0)
    assert again.load_state_dict(state) == []


def _numbers(batch: dict) -> list[int]:
    return [int(re.search(r"<n (\d+)>", words)[1]) for words in documents_of(batch, PROCESSOR.tokenizer)]


def test_the_first_documents_after_an_older_position_are_exactly_those_left():
    source = source_of(numbered(500), 3, "text")
    plain = source_of(numbered(500), 3, "text")
    stream = RowLoader(Mixture([source]), PROCESSOR, 4, 96, prefetch=0)
    stream.load_state_dict(older_state(66, [60, 63]))
    first = [source.index(drawn.cursor) for row in stream.streams for drawn in row.waiting]
    lap = max(row.cursors["text"] for row in stream.streams) + 3
    for row in stream.streams:
        first += [source.index(number * 4 + row.row) for number in range(row.cursors["text"], lap)]
    assert sorted(first) == sorted(plain.index(number) for number in (60, 63, *range(66, 4 * lap)))


# ------------------------------------------------------------------------------------------------------ long documents


def long_loader(rows: int, length: int = 40, long: str | None = "split", **how) -> RowLoader:
    """Texts without a template, some of them of several rows, and short questions beside them."""
    texts = [" ".join(f"{number}.{word}" for word in range(3 + 37 * number % 113)) for number in range(11)]
    records = Listed([[{"role": "assistant", "content": words}] for words in texts])
    plain = source_of(records, 1, "texts", long=long, weight=3)
    return RowLoader(
        Mixture([plain, source_of(numbered(9), 1, "asked")], max_broken=99), PROCESSOR, rows, length, **how
    )


def pieces_of_rows(loader: RowLoader, batches: int) -> list[list[tuple]]:
    """Of each row, (source, number, piece, tokens) of what was placed in it, in order."""
    placed = [[] for _ in loader.streams]
    for stream, row in zip(loader.streams, placed, strict=True):
        fill = stream.fill

        def recorded(step, fill=fill, row=row):
            documents = fill(step)
            row += [(each.source.name, each.cursor, each.piece, each.document.layout.input_ids) for each in documents]
            return documents

        stream.fill = recorded
    for _ in range(batches):
        next(loader)
    return placed


@pytest.mark.parametrize("rows", [1, 3])
def test_pieces_follow_one_another_and_together_are_the_document(rows):
    loader = long_loader(rows, prefetch=0)
    longest = 0
    for stream, row in zip(loader.streams, pieces_of_rows(loader, 60), strict=True):
        texts = [each for each in row if each[0] == "texts"]
        numbers = list(dict.fromkeys(number for _, number, _, _ in texts))
        unfinished = {stream.number("texts"), *(each.cursor for each in stream.waiting if each.source.name == "texts")}
        for number in set(numbers) - unfinished:
            own = [(piece, ids) for _, each, piece, ids in texts if each == number]
            assert [piece for piece, _ in own] == list(range(len(own)))
            whole = loader.mixture.sources["texts"].document(number, PROCESSOR).layout.input_ids
            assert sum((ids for _, ids in own), []) == whole
            assert all(len(ids) <= 40 for _, ids in own)
            longest = max(longest, len(own))
        assert {number % rows for number in numbers} == {stream.row}
    assert longest >= 3
    assert loader.totals()["cut"] > 5
    assert loader.totals()["dropped"] == 0
    assert all(abs(share - weight) < 0.02 for share, weight in zip(loader.shares().values(), (0.75, 0.25), strict=True))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_run_goes_on_in_the_middle_of_a_document(prefetch):
    whole = long_loader(2, prefetch=0)
    states, batches = [], []
    for _ in range(25):
        states.append(json.loads(json.dumps(whole.state_dict())))
        batches.append(next(whole))
    inside = [
        number
        for number, state in enumerate(states)
        if any(row["pieces"]["texts"] for row in state["row_streams"].values())
    ]
    waiting = [
        number
        for number, state in enumerate(states)
        if any(piece for row in state["row_streams"].values() for _, _, piece in row["waiting"])
    ]
    assert len(inside) > 5
    assert len(waiting) > 5
    for number in sorted({*inside[::4], *waiting[::4]}):
        resumed = long_loader(2, prefetch=prefetch)
        resumed.load_state_dict(states[number])
        assert resumed.state_dict() == states[number]
        for batch in batches[number : number + 3]:
            assert same(next(resumed), batch)
        resumed.close()


def test_long_documents_are_the_same_for_every_number_of_processes():
    whole = long_loader(8, prefetch=0)
    ranks = {
        world: [long_loader(8 // world, rank=rank, world_size=world, prefetch=0) for rank in range(world)]
        for world in (2, 8)
    }
    for _ in range(9):
        one = next(whole)
        for parts in ranks.values():
            batches = [next(part) for part in parts]
            for name in ("input_ids", "labels", "position_ids", "document_ids", "source_ids", "text_bytes"):
                assert torch.equal(one[name], torch.cat([batch[name] for batch in batches])), name
    for parts in ranks.values():
        totals = [part.totals() for part in parts]
        assert {name: sum(each[name] for each in totals) for name in totals[0]} == whole.totals()


def test_what_is_left_out_of_long_documents_is_counted():
    loader = long_loader(1, long="truncate", prefetch=0)
    (row,) = pieces_of_rows(loader, 40)
    stream, source = loader.streams[0], loader.mixture.sources["texts"]
    sizes = [len(source.document(number, PROCESSOR)) for number in range(stream.cursors["texts"])]
    assert loader.totals()["cut"] == sum(size > 40 for size in sizes) > 0
    assert loader.totals()["dropped"] == sum(max(0, size - 40) for size in sizes)
    assert not any(piece for _, _, piece, _ in row)
    refused = long_loader(1, long="refuse", prefetch=0)
    for _ in range(20):
        next(refused)
    assert refused.totals()["cut"] == refused.totals()["dropped"] == 0
    assert all("but a row only 40" in bad.reason for bad in refused.bad_records())
    assert len(refused.bad_records()) == len({bad.where for bad in refused.bad_records()}) > 2
