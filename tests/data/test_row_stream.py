"""Rows as streams of their own: shares of every batch, and positions of older versions divided among rows."""

import json
import re

import pytest

from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.older_positions import ROWS_DIVIDED
from hybridgen.data.row_stream import pick, spread
from tests.data.in_memory import Listed, documents_of, numbered, source_of
from tests.processors import assistant, tiny_processor, user

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
