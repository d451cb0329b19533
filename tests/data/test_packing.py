"""Packing: everything fits, nothing is lost, holes are filled."""

import itertools
import random
from dataclasses import dataclass

import pytest

from hybridgen.core.documents import Document
from hybridgen.core.layout import SpecialTokens, TextSegment, lay_out
from hybridgen.data.packing import best_fit, fill_row, fit_rows


@dataclass(frozen=True)
class Sized:
    number: int
    size: int
    document: int | None = None

    def __len__(self) -> int:
        return self.size

    @property
    def order_key(self):
        return self.number if self.document is None else ("cut", self.document)


def stream(sizes):
    return iter(Sized(number, size) for number, size in enumerate(sizes)).__next__


def test_the_picture_in_the_docstring():
    waiting = [Sized(number, size) for number, size in enumerate((7, 4, 3))]
    row, waiting = fill_row(stream([]), 10, waiting, max_waiting=3)
    assert [len(x) for x in row] == [7, 3]
    assert [len(x) for x in waiting] == [4]


def test_documents_come_in_order_as_long_as_all_fit():
    row, waiting = fill_row(stream([2, 3, 4, 5, 9, 1]), 15, [], max_waiting=2)
    assert [x.number for x in row] == [0, 1, 2, 3, 5]  # the last one fills the hole that 9 is too large for
    assert [x.number for x in waiting] == [4]


def test_nothing_is_dropped_nothing_comes_twice_and_nothing_overflows():
    rng = random.Random(0)
    draw, waiting, seen, used = stream(rng.randint(1, 90) for _ in range(100_000)), [], [], 0
    for _ in range(300):
        first = waiting[:1]
        row, waiting = fill_row(draw, 100, waiting)
        assert sum(map(len, row)) <= 100
        assert row[:1] == first or not first  # the oldest is never passed over
        assert len(waiting) <= 16
        seen += [x.number for x in row]
        used += sum(map(len, row))
        waits = [x.number for x in waiting]
        assert sorted([*seen, *waits]) == list(range(max([*seen, *waits]) + 1))
    assert used / (300 * 100) > 0.91  # seen 0.93, with documents up to 90 long in rows of 100


def test_full_rows_draw_no_more():
    drawn = []
    row, waiting = fill_row(lambda: drawn.append(1) or Sized(0, 5), 10, [])
    assert len(drawn) == len(row) == 2
    assert not waiting


def test_the_best_fit_is_that_of_all_choices():
    rng = random.Random(1)
    for _ in range(300):
        sizes, room = [rng.randint(1, 30) for _ in range(rng.randint(0, 9))], rng.randint(1, 80)
        allowed = [place for place in range(len(sizes)) if rng.random() < 0.8]
        chosen = best_fit(sizes, room, allowed)
        assert chosen == sorted(set(chosen) & set(allowed))
        choices = itertools.chain.from_iterable(itertools.combinations(allowed, n) for n in range(len(allowed) + 1))
        best = max(total for choice in choices if (total := sum(sizes[place] for place in choice)) <= room)
        assert sum(sizes[place] for place in chosen) == best
    assert best_fit([1, 2, 3, 6, 6], 6, range(5)) == [4]  # one large one instead of three small ones


def test_pieces_of_a_document_stay_in_order():
    """The second would fit, but the first waits."""
    sizes = [4, 9, 5, 3, 2, 10]
    pieces = [Sized(number, size, 0 if number in (1, 2, 3) else None) for number, size in enumerate(sizes)]
    draw = iter(pieces).__next__
    row, waiting = fill_row(draw, 10, [], max_waiting=4)
    assert [x.number for x in row] == [0, 4]
    for expected in ([1], [2, 3]):
        row, waiting = fill_row(lambda: Sized(9, 10), 10, waiting, max_waiting=4)
        assert [x.number for x in row] == expected


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
