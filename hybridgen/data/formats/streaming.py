"""Streams as sources (`streaming: true`): records read from front to end, again and again, shuffled within a buffer.

A stream is indexed like any other source, and record i is always the same: the stream is cut into chunks of `buffer`
records, and `DocumentSource` shuffles within a chunk by a permutation that is a function of the chunk's number. So the
position of a run is one integer here too. To go on in chunk 40,000 nothing before it is read again: where chunks begin
is kept in the datasets library's own terms (shard and row), and saved.
"""

import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hybridgen.data.formats.hf_datasets import reason_of, said_by_us
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.text_files import check_utf8_file, parse_json
from hybridgen.data.formats.webdataset import BROKEN, WHERE, tar_rows

# chunks kept in memory, and resume points that are saved; twice as many points, and that of chunk 0, stay in memory.
# Documents that wait to be packed come from the last chunks
KEPT_CHUNKS = 4
ROW = "row"  # key of a state within a short epoch: the number of its next row
LINE = "__line__"  # key of a row that is a line of JSON, not parsed yet


class StreamSource(RowSource):
    """Records of a stream without end: after the last one the first follows.

    Args:
        open_files: files in their order -> their `datasets.IterableDataset`.
        files_of: epoch -> its files in their order; the same order gives the same rows.
        name: what to call it in errors.
        buffer: records of a chunk.
        form, columns: see `rows`; a form of None is told by each row.
        images: the folder that paths of images are relative to.
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
    ):
        super().__init__(name, form, columns, images)
        self._open, self._files_of, self.buffer = open_files, files_of, buffer
        self._shard = (0, 1)  # which part of how many this process reads
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._chunks: OrderedDict[int, list[Any]] = OrderedDict()
        self._resume_points: dict[int, dict] = {0: {"epoch": 0, "state": None}}
        self._short_epochs: dict[tuple[str, ...], list[Any]] = {}  # all rows of epochs that end within a chunk
        self._rows: Iterator[Any] | None = None
        self._next = 0  # the chunk that `_rows` goes on with

    def use_shard(self, rank: int, world_size: int) -> None:
        """Read only this rank's equal part of the stream; whole files where their number allows it."""
        self._shard = (rank, world_size)
        self._restart()

    def __len__(self) -> int:
        return sys.maxsize  # an index counts over all epochs

    def first_records(self, count: int) -> Iterator[dict]:
        """Up to `count` records of the first epoch that are whole, with their pictures as the rows hold them."""
        for number, row in enumerate(itertools.islice(iter(self._dataset(0, None)), count)):
            try:
                yield self.record_of(row, self._where_row(row, number))
            except ValueError:
                continue

    def where(self, index: int) -> str:
        """The place that the row carries, or its index."""
        return self._where_row(self._row(index), index)

    def state_dict(self) -> dict:
        """The resume points of the last chunks; JSON-able."""
        return {str(chunk): self._resume_points[chunk] for chunk in sorted(self._resume_points)[-KEPT_CHUNKS:]}

    def load_state_dict(self, state: dict) -> None:
        """Without it the same records come, only slower."""
        self._restart()
        self._resume_points |= {int(chunk): point for chunk, point in state.items()}

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

    # --------------------------------------------------------------------------------------------------------- reading

    def _row(self, index: int) -> Any:
        chunk, position = divmod(index, self.buffer)
        with self._lock:
            if chunk not in self._chunks:
                self._seek(chunk)
                while self._next <= chunk:
                    self._read()
            return self._chunks[chunk][position]

    def _seek(self, chunk: int) -> None:
        """Let `_rows` go on with this chunk, or with the nearest before it whose beginning is known."""
        known = max(start for start in self._resume_points if start <= chunk)
        if self._rows is None or not known <= self._next <= chunk:
            self._next, resume_point = known, self._resume_points[known]
            self._rows = self._endless(resume_point["epoch"], resume_point["state"])

    def _read(self) -> None:
        """Read the next chunk, and keep where it begins."""
        rows = []
        with said_by_us():
            for position in range(self.buffer):
                row, resume_point = next(self._rows)
                if not position:
                    self._resume_points[self._next] = resume_point
                rows.append(row)
        self._chunks[self._next] = rows
        self._next += 1
        while len(self._chunks) > KEPT_CHUNKS:
            self._chunks.popitem(last=False)
        for old in sorted(self._resume_points)[1 : -2 * KEPT_CHUNKS]:  # chunk 0 is always known
            del self._resume_points[old]

    def _endless(self, epoch: int, state: dict | None) -> Iterator[tuple[Any, dict]]:
        """Rows, each with the resume point of its chunk. `state_dict()` is slow, so it is called once per chunk."""
        count, resume_point = 0, {}
        while True:
            dataset = self._dataset(epoch, state)
            rows, started, kept = iter(dataset), False, []
            while True:
                if not count % self.buffer:  # before the first row the state is the one we resumed with
                    resume_point = {"epoch": epoch, "state": dataset.state_dict() if started else state}
                try:
                    row = next(rows)
                except StopIteration:
                    break
                except (OSError, ValueError) as error:  # errors of pyarrow and datasets derive from these
                    raise OSError(f"{self.name} cannot be read on: {reason_of(error, self.files)}") from error
                yield row, resume_point
                count, started = count + 1, True
                if len(kept) <= self.buffer:
                    kept.append(row)
            if not started and state is None:
                raise ValueError(f"{self.name} holds no record")
            if state is None and sum(map(len, [kept, *self._short_epochs.values()])) <= self.buffer:
                self._short_epochs.setdefault(self._files_of(epoch), kept)
            epoch, state = epoch + 1, None

    def _dataset(self, epoch: int, state: dict | None) -> Any:
        """Rows of an epoch, from a state on. A short one is read from its files once and repeated from memory: to fill
        a chunk with a data set of few rows, its files would be opened again and again."""
        files = self._files_of(epoch)
        place = state.get(ROW) if state else 0  # None = of a state of the library
        if place and files not in self._short_epochs:
            rows = list(itertools.islice(self._opened(files), self.buffer + 1))
            if len(rows) <= self.buffer:  # else the data have grown, and the epoch is read anew
                self._short_epochs[files] = rows
        if place is not None and files in self._short_epochs:
            return _ShortEpoch(self._short_epochs[files], place)
        dataset = self._opened(files)
        if place is None:
            dataset.load_state_dict(state)
        return dataset

    def _opened(self, files: tuple[str, ...]) -> Any:
        dataset = self._open(files)
        rank, world_size = self._shard
        if world_size == 1:
            return dataset
        from datasets.distributed import split_dataset_by_node  # slow to import, as in `hf_datasets.open_dataset`

        return split_dataset_by_node(dataset, rank=rank, world_size=world_size)


class _ShortEpoch:
    """Rows in memory, with what `StreamSource` uses of an `IterableDataset`."""

    def __init__(self, rows: list[Any], first: int):
        self._rows, self._next = rows, first

    def __iter__(self) -> Iterator[Any]:
        while self._next < len(self._rows):
            self._next += 1
            yield self._rows[self._next - 1]

    def state_dict(self) -> dict:
        return {ROW: self._next}


def stream_files(files: list[str], kind: str) -> Any:
    """An `IterableDataset` of tars or of JSON lines, each file a shard.

    Args:
        kind: `webdataset` or `jsonl`.
    """
    import datasets  # slow to import, as in `hf_datasets.open_dataset`

    rows = {"webdataset": _tars, "jsonl": _lines}[kind]
    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": files})


def _tars(files: list[str]) -> Iterator[dict[str, Any]]:
    import fsspec  # comes with datasets

    for file in files:
        with fsspec.open(file, "rb") as opened:
            yield from tar_rows(file, opened)


def _lines(files: list[str]) -> Iterator[dict[str, Any]]:
    import fsspec  # comes with datasets

    for file in files:
        with fsspec.open(file, "rb", compression="infer") as opened:
            for number, line in enumerate(opened, start=1):
                if number == 1:
                    check_utf8_file(line, file)
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield {WHERE: f"{file}:{number}", LINE: line}
