"""Packing: everything fits, nothing is lost, holes are filled."""

import random
from dataclasses import dataclass

import pytest

from hybridgen.core.documents import Document
from hybridgen.core.layout import SpecialTokens, TextSegment, lay_out
from hybridgen.data.packing import fit_rows, pack_rows


@dataclass(frozen=True)
class Sized:
    number: int
    size: int
    where: str = "source 'a', record 7"

    def __len__(self) -> int:
        return self.size


def stream(sizes):
    return iter(Sized(number, size) for number, size in enumerate(sizes)).__next__


def test_the_picture_in_the_docstring():
    rows, waiting = pack_rows(stream([4, 7, 4, 5, 2, 3]), 2, 10, [])
    assert [[len(x) for x in row] for row in rows] == [[4, 4, 2], [7, 3]]
    assert [len(x) for x in waiting] == [5]


def test_nothing_is_dropped_nothing_comes_twice_and_nothing_overflows():
    rng = random.Random(0)
    draw, pending, seen, used = stream(rng.randint(1, 90) for _ in range(100_000)), [], [], 0
    last = -1
    for _ in range(60):
        rows, pending = pack_rows(draw, 5, 100, pending)
        for row in rows:
            assert sum(len(x) for x in row) <= 100
        placed = [x.number for row in rows for x in row]
        seen += placed
        used += sum(len(x) for row in rows for x in row)
        last = max([last, *placed, *(x.number for x in pending)])
        assert sorted([*seen, *(x.number for x in pending)]) == list(range(last + 1))
    assert used / (60 * 5 * 100) > 0.87  # seen 0.89, with documents up to 90 long in rows of 100


def test_what_waits_is_placed_first():
    rows, waiting = pack_rows(stream([6, 6, 6, 6]), 1, 10, [], max_waiting=2)
    assert [x.number for x in rows[0]] == [0]
    assert [x.number for x in waiting] == [1, 2]
    rows, waiting = pack_rows(stream([4]), 1, 10, waiting, max_waiting=2)
    assert [x.number for x in rows[0]] == [1, 0]
    assert [x.number for x in waiting] == [2]


def test_full_rows_draw_no_more():
    drawn = []
    rows, waiting = pack_rows(lambda: drawn.append(1) or Sized(0, 5), 2, 10, [])
    assert len(drawn) == 4
    assert not waiting
    assert [len(row) for row in rows] == [2, 2]


def test_a_document_longer_than_a_row_is_refused_by_name():
    sentence = (
        "source 'a', record 7: the document has 11 tokens, but a row only 10; raise sequence_length to at least 11"
    )
    with pytest.raises(ValueError, match=sentence):
        pack_rows(stream([3, 11]), 2, 10, [])


def document(tokens: int, loss_from: int = 0) -> Document:
    segments = [TextSegment([7] * loss_from, loss=False), TextSegment([8] * (tokens - loss_from))]
    return Document(lay_out(segments, SpecialTokens(begin_image=1, end_image=2, pad=0)))


@pytest.mark.parametrize(("long", "expected"), [("split", [10, 10, 3]), ("truncate", [10])])
def test_a_document_longer_than_a_row_is_cut_as_its_source_says(long, expected):
    assert [len(piece) for piece in fit_rows(document(23), 10, long, "record 7")] == expected
    assert [len(piece) for piece in fit_rows(document(23), 40, long, "record 7", max_positions=10)] == expected
    assert [len(piece) for piece in fit_rows(document(10), 10, long, "record 7")] == [10]


def test_a_document_longer_than_a_row_is_refused_with_the_ways_out():
    with pytest.raises(
        ValueError, match=r"record 7: .* 23 tokens, but a row only 10; raise .* to at least 23, .*long: split"
    ):
        list(fit_rows(document(23), 10, "refuse", "record 7"))
    with pytest.raises(ValueError, match=r"record 7: .* 23 tokens, but the model only 12 positions.*long: split"):
        list(fit_rows(document(23), 40, "refuse", "record 7", max_positions=12))


def test_what_truncation_leaves_must_be_learnt():
    with pytest.raises(ValueError, match="record 7: the first 10 of its 23 tokens have no loss.*long: split"):
        list(fit_rows(document(23, loss_from=12), 10, "truncate", "record 7"))
    assert [len(piece) for piece in fit_rows(document(23, loss_from=12), 10, "split", "record 7")] == [10, 10, 3]
