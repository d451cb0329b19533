"""One row of the global batch as a stream of its own: row r of the next batch goes on where row r of this one ended.

A global batch has G rows, divided among processes. A row has its own place in the mixture, its own documents that wait,
and of each source the documents r, r + G, r + 2G, ...; so a process reads what its own rows need and nothing else, and
what a row holds does not depend on how many processes there are.

Which source gives a row's next document: the one that is furthest behind its share of the row's tokens, as everywhere,
but the rows do not all begin with the largest share. They follow G schedules that are spread evenly at any time: of
documents of one length, each source gives its share of every batch, rounded up or down.

    shares .5 .3 .2, four rows     batch 0  a c a b     each column is a circle of length 1, cut into arcs of the
                                   batch 1  b a a b     shares, and turned by the golden ratio from one document to
                                   batch 2  a a c a     the next; rows look at it from evenly spaced places
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice

from hybridgen.core.documents import Document
from hybridgen.data.bad_records import BadRecord
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.mixture import Mixture
from hybridgen.data.packing import fill_row, fit_rows
from hybridgen.processing_hybridgen import HybridGenProcessor

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
MAX_BAD_IN_A_ROW = 10_000


@dataclass(frozen=True)
class DrawnDocument:
    """A document, or a piece of one that was cut, and where it came from: enough to build it again.

    Args:
        cursor: the document's number in its source (`DocumentSource.document`).
        piece: of the document; 0 = the first, or all of it.
    """

    document: Document
    source: DocumentSource
    cursor: int
    piece: int = 0

    def __len__(self) -> int:
        return len(self.document)

    @property
    def order_key(self) -> tuple[str, int]:
        """What it shares with the other pieces of its document."""
        return self.source.name, self.cursor

    @property
    def where(self) -> str:
        """What to call it in an error."""
        return self.source.where(self.cursor)


class RowStream:
    """The documents of one row, batch after batch.

    Args:
        row, rows: its number among the rows of the global batch, G.
        length: tokens of the row.

    Attributes:
        cursors, pieces: of each source, how many documents of this row are drawn (broken ones counted), and how many
            pieces of the next.
        tokens, due: of each source, its tokens so far and what they should be by its share.
        drawn: documents and pieces so far.
        placed: tokens in rows so far; what is drawn and not placed waits.
        cut, dropped: documents that were longer than a row, and tokens that `long: truncate` left out.
    """

    def __init__(self, mixture: Mixture, processor: HybridGenProcessor, row: int, rows: int, length: int):
        self.mixture, self.processor, self.row, self.rows, self.length = mixture, processor, row, rows, length
        names = list(mixture.sources)
        self.cursors, self.pieces, self.tokens = (dict.fromkeys(names, 0) for _ in range(3))
        self.due = dict.fromkeys(names, 0.0)
        self._ahead = dict.fromkeys(names, 0.0)  # of the schedule: documents that it gives before their share is due
        self.drawn = self.placed = self.cut = self.dropped = 0
        self.waiting: list[DrawnDocument] = []
        self._cut: dict[str, list[Document]] = {}  # by source, the pieces of the document that is not yet all drawn
        self._begin = spread(row, rows)
        self._row: list[DrawnDocument] = []  # while it is filled: what is in it
        self._chosen: list[tuple[DrawnDocument, Callable[[], None]]] = []  # and what comes once it is decoded
        self._undecoded = dict.fromkeys(names, 0)  # records in a row

    def begin(self, step: int) -> None:
        """Choose the documents of the next row, or of the room that is left in it, and begin to decode their pictures.
        Until then nothing of a picture is read but, where its number of tokens asks for it, its size."""
        room = self.length - sum(map(len, self._row))
        chosen, self.waiting = fill_row(lambda: self.draw(step), room, self.waiting)
        read = self.mixture.read_pixels
        self._chosen = [(each, read(each.source, each.document, each.cursor, self.processor)) for each in chosen]

    def fill(self, step: int) -> list[DrawnDocument]:
        """The documents of the row in the next batch, with their pixels; `step` is the optimizer's. One with a picture
        that cannot be decoded is a broken record, and the next ones take its room.

        Raises:
            ValueError: more records are broken than the limit allows; the sentence lists them.
        """
        if not self._chosen:
            self.begin(step)
        while self._chosen:
            chosen, self._chosen = self._chosen, []
            good = [drawn for drawn, decode in chosen if self._decoded(drawn, decode, step)]
            self._row += good
            if len(good) < len(chosen):
                self.begin(step)
        row, self._row = self._row, []
        self.placed += sum(map(len, row))
        return row

    def _decoded(self, drawn: DrawnDocument, decode: Callable[[], None], step: int) -> bool:
        source = drawn.source
        try:
            decode()
        except ValueError as error:
            bad = BadRecord.of(drawn.where, error)
            self.mixture.add_bad(source, bad, drawn.cursor + 1)
            self._count(drawn, step, -1)
            self._undecoded[source.name] += 1
            if self._undecoded[source.name] >= self._attempts(source):
                raise ValueError(self._all_broken(source, self._undecoded[source.name], bad)) from error
            return False
        if drawn.document.images:
            self._undecoded[source.name] = 0
        return True

    def draw(self, step: int = 0) -> DrawnDocument:
        """The next document or piece, counted.

        Raises:
            ValueError: more records are broken than the limit allows; the sentence lists them.
        """
        source = self.mixture.sources[self._choose(self.mixture.weights_at(step))]
        drawn = self._next_good(source)
        self._count(drawn, step, 1)
        self.drawn += 1
        return drawn

    def _count(self, drawn: DrawnDocument, step: int, sign: int) -> None:
        self.tokens[drawn.source.name] += sign * len(drawn)
        for name, weight in self.mixture.weights_at(step).items():
            self.due[name] += sign * weight * len(drawn)

    def _choose(self, weights: dict[str, float]) -> str:
        """The source that is furthest behind its share (ties: the first), the schedule's lead counted in documents of
        the mean length. Where all have one length, this is the source of the schedule."""
        scheduled = pick(weights, (self._begin + self.drawn * GOLDEN_RATIO) % 1)
        for name, weight in weights.items():
            self._ahead[name] += (name == scheduled) - weight
        mean = sum(self.tokens.values()) / self.drawn if self.drawn else 1
        behind = {
            name: self.due[name] - self.tokens[name] + self._ahead[name] * mean
            for name, weight in weights.items()
            if weight > 0
        }
        return max(behind, key=behind.__getitem__)

    def _next_good(self, source: DocumentSource) -> DrawnDocument:
        """The next piece of a document that was cut, or the next document that is not broken."""
        name, attempts = source.name, self._attempts(source)
        for _ in range(attempts):
            number, piece = self.number(name), self.pieces[name]
            try:
                pieces = self._pieces_of(source, number)
            except ValueError as error:
                pieces, last = [], BadRecord.of(source.where(number), error)
                self.mixture.add_bad(source, last, number + 1)
            if piece + 1 < len(pieces):
                self.pieces[name] += 1
            else:
                self.cursors[name], self.pieces[name] = self.cursors[name] + 1, 0
                self._cut.pop(name, None)
            if piece < len(pieces):
                return DrawnDocument(pieces[piece], source, number, piece)
        raise ValueError(self._all_broken(source, attempts, last))

    @staticmethod
    def _attempts(source: DocumentSource) -> int:
        """Broken records in a row after which the whole source counts as broken: a row meets the records of an epoch in
        no order that brings all of them before one comes again."""
        return min(20 * source.records, MAX_BAD_IN_A_ROW) if source.records else MAX_BAD_IN_A_ROW

    @staticmethod
    def _all_broken(source: DocumentSource, count: int, last: BadRecord) -> str:
        return f"source {source.name!r} is broken: {count} records in a row, the last of them {last}"

    def number(self, name: str) -> int:
        """Of this row's next document in its source."""
        return self.cursors[name] * self.rows + self.row

    def _pieces_of(self, source: DocumentSource, number: int) -> list[Document]:
        """What of a document goes into rows; kept as long as it has pieces to come.

        Raises:
            ValueError: the record is broken, or does not fit.
        """
        if (kept := self._cut.get(source.name)) is not None:
            return kept
        document = self.mixture.build(source, number, self.processor)
        long, place = source.config.long_for(document.plain), source.where(number)
        pieces = list(fit_rows(document, self.length, long, place, self.mixture.max_positions))
        if len(pieces) > 1:
            self._cut[source.name] = pieces
        if not self.pieces[source.name] and len(document) > len(pieces[0]):
            self.cut += 1
            self.dropped += len(document) - sum(map(len, pieces))
        return pieces

    # ---------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict:
        """JSON-able."""
        counts = {"drawn": self.drawn, "placed": self.placed, "cut": self.cut, "dropped": self.dropped}
        waiting = [[each.source.name, each.cursor, each.piece] for each in self.waiting]
        of_sources = {"cursors": self.cursors, "pieces": self.pieces, "tokens": self.tokens}
        of_sources |= {"due": self.due, "ahead": self._ahead}
        return {**counts, **{name: dict(numbers) for name, numbers in of_sources.items()}, "waiting": waiting}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there; documents that wait are built again, and are not counted again."""
        self.drawn, self.placed, self.cut, self.dropped = (
            state[name] for name in ("drawn", "placed", "cut", "dropped")
        )
        names = list(self.mixture.sources)
        of_sources = ("cursors", "pieces", "tokens", "due", "ahead")
        self.cursors, self.pieces, self.tokens, self.due, self._ahead = (
            {name: state[numbers][name] for name in names} for numbers in of_sources
        )
        self._cut, self._row, self._chosen = {}, [], []
        self.waiting = [self._rebuild(*each) for each in state["waiting"]]

    def _rebuild(self, name: str, number: int, piece: int) -> DrawnDocument:
        source = self.mixture.sources[name]
        document = source.document(number, self.processor, decode=False)
        long, limits = source.config.long_for(document.plain), (self.length, self.mixture.max_positions)
        pieces = fit_rows(document, limits[0], long, source.where(number), limits[1])
        return DrawnDocument(next(islice(pieces, piece, None)), source, number, piece)


def pick(shares: dict[str, float], place: float) -> str:
    """Whose arc of a circle of length 1 holds a place, from 0 to below 1; the arcs are as long as the shares."""
    end, found = 0.0, ""
    for name, share in shares.items():
        end += share
        if share > 0:
            found = name
            if place < end:
                break
    return found  # the last one, where rounding left a gap at the end


def spread(row: int, rows: int) -> float:
    """Where on the circle a row begins: evenly spaced, and neighbours (the rows of one process) far apart."""
    stride = next(each for each in count(max(1, round(rows * GOLDEN_RATIO))) if math.gcd(each, rows) == 1)
    return row * stride % rows / rows
