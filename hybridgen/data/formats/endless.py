"""Files read from front to end without end: after the last record the first follows, epoch after epoch.

Where reading stands is kept in the datasets library's own terms (shard and row), so that to go on in the middle of a
corpus nothing before it is read again but the beginning of one file. `streaming` makes a source of it.
"""

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hybridgen.data.formats.hf_datasets import reason_of
from hybridgen.data.formats.text_files import check_utf8_file
from hybridgen.data.formats.webdataset import WHERE, tar_rows

LINE = "__line__"  # key of a row that is a line of JSON, not parsed yet
ZSTD = (".zst", ".zstd")  # ends of names
ROW = "row"  # key of a state within a short epoch: the number of its next row
SHORT_EPOCH_BYTES = 64 << 20  # of all short epochs that are kept in memory
START = {"epoch": 0, "state": None}  # the resume point of the first record


class Epochs:
    """The files of a stream in the order of each epoch, opened.

    An epoch of at most `buffer` rows and few bytes is read from its files once and repeated from memory: to fill a
    chunk with a data set of few rows, its files would be opened again and again.

    Args:
        open_files: files in their order -> their `datasets.IterableDataset`.
        files_of: epoch -> its files in their order; the same order gives the same rows.
        name: what to call the stream in errors.
        buffer: rows of a chunk.
        shard: which part of how many of the stream this process reads; whole files where their number allows it.
    """

    def __init__(
        self,
        open_files: Callable[[tuple[str, ...]], Any],
        files_of: Callable[[int], tuple[str, ...]],
        name: str,
        buffer: int,
        shard: tuple[int, int] = (0, 1),
    ):
        self._open, self.files_of, self.name, self.buffer, self._shard = open_files, files_of, name, buffer, shard
        self._short: dict[tuple[str, ...], list[Any]] = {}
        self._bytes = 0  # of what is in `_short`

    def rows(self, epoch: int, state: dict | None = None) -> Any:
        """The rows of an epoch, from a state on: an `IterableDataset`, or what is used of one."""
        files = self.files_of(epoch)
        place = state.get(ROW) if state else 0  # None = of a state of the library
        if place and files not in self._short:
            rows = list(itertools.islice(self._opened(files), self.buffer + 1))
            if len(rows) <= self.buffer:  # else the data have grown, and the epoch is read anew
                self._short[files] = rows
        if place is not None and files in self._short:
            return _ShortEpoch(self._short[files], place)
        dataset = self._opened(files)
        if place is None:
            dataset.load_state_dict(state)
        return dataset

    def keep(self, epoch: int, rows: list[Any]) -> None:
        """Repeat a whole epoch from memory from now on, if it is short."""
        files, size = self.files_of(epoch), sum(map(_size, rows))
        count = sum(map(len, self._short.values())) + len(rows)
        if files not in self._short and count <= self.buffer and self._bytes + size <= SHORT_EPOCH_BYTES:
            self._short[files] = rows
            self._bytes += size

    def none_here(self) -> str:
        """What there is to say when an epoch holds no row for this process."""
        rank, world_size = self._shard
        if next(iter(self._open(self.files_of(0))), None) is None:
            return f"{self.name} holds no record"
        return (
            f"{self.name} holds too few records to be divided by {world_size} processes, and none for process {rank}; "
            "set data.shard_by_rank: false"
        )

    def _opened(self, files: tuple[str, ...]) -> Any:
        dataset = self._open(files)
        rank, world_size = self._shard
        if world_size == 1:
            return dataset
        from datasets.distributed import split_dataset_by_node  # slow to import, as in `hf_datasets.open_dataset`

        return split_dataset_by_node(dataset, rank=rank, world_size=world_size)


class EndlessRows:
    """The rows of a stream from a resume point on, an iterator without end.

    Raises:
        ValueError: an epoch holds no row.
        OSError: a file cannot be read on.
    """

    def __init__(self, epochs: Epochs, point: dict):
        self._epochs = epochs
        self._begin(point["epoch"], point["state"])

    def _begin(self, epoch: int, state: dict | None) -> None:
        self._epoch, self._state, self._dataset = epoch, state, self._epochs.rows(epoch, state)
        self._rows, self._started = iter(self._dataset), False
        # its rows so far; None = it is not short, or not read from its beginning
        self._whole: list[Any] | None = [] if state is None else None

    def point(self) -> dict:
        """The resume point of the next row; JSON-able. It takes the library a while."""
        return {"epoch": self._epoch, "state": self._dataset.state_dict() if self._started else self._state}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while (row := self._next_of_epoch()) is None:
            if not self._started and self._state is None:
                raise ValueError(self._epochs.none_here())
            if self._whole is not None:
                self._epochs.keep(self._epoch, self._whole)
            self._begin(self._epoch + 1, None)
        self._started = True
        if self._whole is not None:
            self._whole.append(row)
            if len(self._whole) > self._epochs.buffer:
                self._whole = None
        return row

    def _next_of_epoch(self) -> Any | None:
        try:
            return next(self._rows, None)
        except Exception as error:  # what the library or a decompressor met: EOFError, zlib.error and others
            reason = reason_of(error, self._epochs.files_of(self._epoch))
            raise OSError(f"{self._epochs.name} cannot be read on: {reason}") from error


class _ShortEpoch:
    """Rows in memory, with what is used of an `IterableDataset`."""

    def __init__(self, rows: list[Any], first: int):
        self._rows, self._next = rows, first

    def __iter__(self) -> Iterator[Any]:
        while self._next < len(self._rows):
            self._next += 1
            yield self._rows[self._next - 1]

    def state_dict(self) -> dict:
        return {ROW: self._next}


def _size(value: Any) -> int:
    """About the bytes that a row takes in memory."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8


# ------------------------------------------------------------------------------------------------------------- files


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


@contextmanager
def _unpacked(file: str) -> Iterator[Any]:
    """A file of lines, unpacked as its name tells. Of zstd, pyarrow reads all frames, and says where the last is cut;
    fsspec hands out one frame, and needs a package more."""
    import fsspec  # comes with datasets

    if not file.endswith(ZSTD):
        with fsspec.open(file, "rb", compression="infer") as opened:
            yield opened
        return
    import pyarrow  # comes with datasets

    with fsspec.open(file, "rb") as packed, pyarrow.input_stream(packed, compression="zstd") as unpacked:
        yield io.BufferedReader(unpacked)


def _lines(files: list[str]) -> Iterator[dict[str, Any]]:
    for file in files:
        with _unpacked(file) as opened:
            for number, line in enumerate(opened, start=1):
                if number == 1:
                    check_utf8_file(line, file)
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield {WHERE: f"{file}:{number}", LINE: line}
