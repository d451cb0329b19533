"""Streams as sources (`streaming: true`): records read from front to end, again and again, shuffled within a buffer.

A stream is indexed like any other source, and record i is always the same: the stream is cut into chunks of `buffer`
records, and each is shuffled by a permutation that is a function of its number. So the position of a run is a few
integers here too. Of a global batch of G rows, row r takes the shuffled records r, r + G, r + 2G, ...: a process keeps
the records of its own rows alone (`use_rows`) and passes the others without reading what is in them, where the format
allows it (a tar on this machine is skipped through; lines are not parsed; of parquet and data sets the library makes
every row). A thread reads the next chunk while one is used, so nothing waits at its end.

    chunk of 8, G = 4   shuffled  5 0 7 2 1 6 3 4
                        row       0 1 2 3 0 1 2 3    a process with rows 0 and 1 keeps 5 0 1 6
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.core.threads import compute_alone
from hybridgen.data.formats.endless import LINE, START, EndlessRows, Epochs
from hybridgen.data.formats.hf_datasets import said_by_us
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.text_files import parse_json
from hybridgen.data.formats.webdataset import BROKEN, WHERE, read_parts
from hybridgen.data.keyed_random import feistel_permutation

KEPT = 16  # records of a row that stay in memory behind the last one asked for: threads do not ask quite in order
FIRST_ROWS = 100  # that are read when a stream is opened
FAR = 256  # chunks: what lies farther from all in memory is read on its own
EXACT_POINTS = 8  # last resume points that are all saved; of older ones, one in an eighth of their distance


class Rows(NamedTuple):
    """Rows `first` to `first + count - 1` of the `total` of a global batch."""

    first: int
    count: int
    total: int


class StreamSource(RowSource):
    """Records of a stream without end: after the last one the first follows.

    Args:
        open_files: files in their order -> their `datasets.IterableDataset`.
        files_of: epoch -> its files in their order; the same order gives the same rows.
        name: what to call it in errors.
        buffer: records of a chunk; `use_rows` rounds it up.
        form, columns: see `rows`; a form of None is told by each row.
        images: the folder that paths of images are relative to.
        shuffle: names the permutations; None = records come as they stand.
    """

    def __init__(
        self,
        open_files: Callable[[tuple[str, ...]], Any],
        files_of: Callable[[int], tuple[str, ...]],
        name: str,
        buffer: int,
        form: str | None = None,
        columns: dict[str, str] | None = None,
        images: str | Path = "",
        shuffle: str | None = None,
    ):
        super().__init__(name, form, columns, images)
        self._open, self._files_of, self._shuffle = open_files, files_of, shuffle
        self._buffer = self.buffer = buffer
        self._shard = (0, 1)  # which part of how many this process reads
        self._own = Rows(0, 1, 1)
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()  # of what `_begin` and `_forget` make, except `_reader`, which is the thread's
        self._begin()

    def _begin(self) -> None:
        """At the beginning of the stream, with nothing in memory."""
        self._epochs = Epochs(self._open, self._files_of, self.name, self.buffer, self._shard)
        self._points: dict[int, dict] = {0: START}  # of records at which chunks begin
        self._reached = 0  # the last chunk that was asked for
        self._forget()

    def _forget(self) -> None:
        self._chunks: dict[int, Future[dict[int, list]]] = {}  # chunk -> own row -> its records
        self._first = self._end = 0  # chunks from `_first` on, up to `_end`, are or were in `_chunks`
        self._last: dict[int, int] = {}  # own row -> the chunk of the record that was asked for last
        self._reader: tuple[int, EndlessRows] | None = None  # the chunk that it goes on with
        self._stopped = threading.Event()

    def use_shard(self, rank: int, world_size: int) -> None:
        """Read only this rank's equal part of the stream; whole files where their number allows it."""
        self.close()
        self._shard = (rank, world_size)
        self._begin()

    def use_rows(self, first: int, count: int, total: int) -> None:
        """Keep only the records of the rows from `first` on of a global batch of `total`: record i is row i % total's.

        `buffer` becomes the next multiple of `total`. Whatever the number of processes, record i stays the same.
        """
        self.close()
        self._own = Rows(first, count, total)
        self.buffer = -(-self._buffer // total) * total
        self._begin()

    def anew(self) -> "StreamSource":
        """The same stream from its beginning, all its rows, for a second reader."""
        other = copy.copy(self)
        other._own, other.buffer = Rows(0, 1, 1), other._buffer
        other._threads, other._lock = None, threading.Lock()
        other._begin()
        return other

    def close(self) -> None:
        """End the thread that reads ahead. What is asked for afterwards is read again."""
        self._stopped.set()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        with self._lock:
            self._threads = None
            self._forget()

    def __len__(self) -> int:
        return sys.maxsize  # an index counts over all epochs

    def check(self) -> None:
        """Raises ValueError or OSError if its first rows cannot be read, whatever is in them."""
        with said_by_us():
            for _ in islice(EndlessRows(self._epochs, START), min(self.buffer, FIRST_ROWS)):
                pass

    def first_records(self, count: int) -> Iterator[dict]:
        """Up to `count` records of the first epoch that are whole, with their pictures as the rows hold them."""
        for number, row in enumerate(islice(iter(self._epochs.rows(0)), count)):
            try:
                yield self.record_of(read_parts(row), self._where_row(row, number))
            except ValueError:
                continue

    def where(self, index: int) -> str:
        """The place that the row carries, or its index."""
        return self._where_row(self._row(index), index)

    def state_dict(self) -> dict:
        """Resume points by the number of their record; JSON-able. The same stream read by several processes has the
        points of all (`merged_states`)."""
        with self._lock:  # nothing of what the thread has read ahead, which depends on time
            records = self._worth_keeping(self._reached, EXACT_POINTS)
            return {"points": {str(record): self._points[record] for record in records}}

    def load_state_dict(self, state: dict) -> None:
        """Without it the same records come, only slower. Older states count in chunks of the config's buffer."""
        self.close()
        self._begin()
        saved = state.get("points")
        records = saved if saved is not None else {int(chunk) * self._buffer: state[chunk] for chunk in state}
        self._points |= {int(record): point for record, point in records.items()}
        self._reached = max(self._points) // self.buffer

    def _where_row(self, row: Any, index: int) -> str:
        return row[WHERE] if isinstance(row, dict) and WHERE in row else f"{self.name}, record {index}"

    def _record(self, row: Any, where: str, variant: int = 0) -> dict:
        if isinstance(row, dict):
            if BROKEN in row:
                raise ValueError(f"{where}: {row[BROKEN]}")
            row = {name: value for name, value in row.items() if name != WHERE}
            if LINE in row:
                row = parse_json(row[LINE], where)
        return super()._record(row, where, variant)

    # ------------------------------------------------------------------------------------------------ what is in memory

    def _row(self, index: int) -> Any:
        chunk, place = divmod(index, self.buffer)
        turn, row = divmod(place, self._own.total)
        if not 0 <= row - self._own.first < self._own.count:
            raise IndexError(f"record {index} of {self.name} is of row {row}, but this process has {self._own}")
        while True:
            with self._lock:
                reading = self._ask(chunk, row)
                if reading.done():
                    if (error := reading.exception()) is not None:
                        del self._chunks[chunk]  # asked again, it is read again
                        raise error
                    return reading.result()[row][turn]
            with suppress(CancelledError):
                reading.exception()  # waits

    def _ask(self, chunk: int, row: int) -> Future[dict[int, list]]:
        """The chunk, read or being read with this row's records in it; so is the next one. Chunks are read in one go
        from the first to the last that any row has asked for, as rows advance at their own pace."""
        if not self._first - FAR <= chunk < self._end + FAR or self._first == self._end:
            self._chunks.clear()
            self._first = self._end = chunk
        self._reached = max(self._reached, chunk)
        missing = [*range(chunk, self._first), *range(self._end, chunk + 2)]
        self._first, self._end = min(self._first, chunk), max(self._end, chunk + 2)
        if chunk not in missing and (chunk not in self._chunks or self._has_dropped(chunk, row)):
            missing = [chunk, *missing]
        if self._last.get(row) != chunk:
            self._last[row] = chunk
            self._drop(row)
        for each in missing:
            self._chunks[each] = self._read_later(each, self._chunks.get(each), row)
        return self._chunks[chunk]

    def _has_dropped(self, chunk: int, row: int) -> bool:
        reading = self._chunks[chunk]
        return reading.done() and reading.exception() is None and row not in reading.result()

    def _is_past(self, row: int, chunk: int) -> bool:
        """Whether a row needs no record of a chunk any more. Of a row that has not asked yet it is not known."""
        records = self.buffer // self._own.total  # of a row in a chunk
        return row in self._last and chunk < self._last[row] - max(1, KEPT // records)

    def _drop(self, row: int) -> None:
        """Forget a row's records in chunks that it is past."""
        for chunk in sorted(self._chunks):
            if not self._is_past(row, chunk):
                break
            reading = self._chunks[chunk]
            if reading.done() and reading.exception() is None:
                reading.result().pop(row, None)
                if not reading.result():
                    del self._chunks[chunk]

    # --------------------------------------------------------------------------------------------------------- reading

    def _read_later(self, chunk: int, read: Future | None, row: int) -> Future[dict[int, list]]:
        """Begin to read a chunk for all rows that are not past it, or, if it was read before, for this row."""
        if self._threads is None:
            self._stopped = threading.Event()
            self._threads = ThreadPoolExecutor(1, "hybridgen-stream", compute_alone)
        rows = {row}
        if read is None:
            own = range(self._own.first, self._own.first + self._own.count)
            rows |= {each for each in own if not self._is_past(each, chunk)}
        kept = {} if read is None else read.result()
        return self._threads.submit(self._read, chunk, rows, kept, self._stopped)

    def _read(self, chunk: int, rows: set[int], kept: dict[int, list], stopped: threading.Event) -> dict[int, list]:
        """The records of some rows in a chunk; only the thread calls it, one chunk after the other."""
        turns = self.buffer // self._own.total
        records: dict[int, list] = {row: [None] * turns for row in sorted(rows)}
        place_of = {
            self._place(chunk, turn * self._own.total + row): (row, turn) for row in rows for turn in range(turns)
        }
        reader, self._reader = self._reader_at(chunk, stopped), None
        with said_by_us():
            for place in range(self.buffer):
                row = _next(reader, stopped)
                if place in place_of:
                    own, turn = place_of[place]
                    records[own][turn] = read_parts(row)
            self._note(chunk + 1, reader.point())
        self._reader = (chunk + 1, reader)
        return {**kept, **records}

    def _place(self, chunk: int, position: int) -> int:
        """Where in a chunk the record stands that comes at a position."""
        if self._shuffle is None:
            return position
        return feistel_permutation(position, self.buffer, f"{self._shuffle}/{chunk}")

    def _reader_at(self, chunk: int, stopped: threading.Event) -> EndlessRows:
        """A reader at the beginning of a chunk: the one there is, or from the nearest resume point before it."""
        if self._reader is not None and self._reader[0] == chunk:
            return self._reader[1]
        first = chunk * self.buffer
        with self._lock:
            record = max(record for record in self._points if record <= first)
            point = self._points[record]
        with said_by_us():
            reader = EndlessRows(self._epochs, point)
            for _ in range(record, first):
                _next(reader, stopped)
            self._note(chunk, reader.point())
        return reader

    def _note(self, chunk: int, point: dict) -> None:
        """Keep the resume point of a chunk, and of others all that may be saved."""
        with self._lock:
            self._points[chunk * self.buffer] = point
            last = max(self._points) // self.buffer
            self._points = {record: self._points[record] for record in self._worth_keeping(last, 2 * EXACT_POINTS)}

    def _worth_keeping(self, last: int, exact: int) -> list[int]:
        """The records, up to the chunk `last`, whose resume points are kept: of all chunks near it, of fewer and fewer
        that lie before."""
        kept = []
        for record in self._points:
            chunk = record // self.buffer
            step = 1 << max(0, ((last - chunk) // exact).bit_length() - 1)
            if chunk <= last and not chunk % step:
                kept.append(record)
        return kept


def merged_states(states: list[dict]) -> dict:
    """The state of a stream that several processes have read, each for its own rows."""
    return {"points": {record: point for state in states for record, point in state["points"].items()}}


class _Stopped(Exception):
    """Reading was given up as nobody waits for it."""


def _next(reader: EndlessRows, stopped: threading.Event) -> Any:
    if stopped.is_set():
        raise _Stopped
    return next(reader)
