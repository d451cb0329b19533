"""Streams as sources: records that are read from front to end, again and again, and shuffled within a buffer.

A stream is asked for records by number like any other source, and record n is the same whoever asks: the stream is cut
into blocks of `buffer` records, and a task shuffles within a block by a permutation that is a function of its number.
So the position of a run is one integer here too. The fact a newcomer gets wrong: to go on in block 40,000 nothing
before it is read again. Where blocks begin is kept as the datasets library states it (shard and row), and saved.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hybridgen.data.formats.forms import find_form, record_of
from hybridgen.data.formats.jsons import parse_line
from hybridgen.data.formats.tars import BROKEN, WHERE, tar_rows
from hybridgen.data.records import check_record, load_images

BLOCKS = 4  # kept in memory, with where they begin: what waits for a row comes from the last of them
LINE = "__line__"


class StreamSource:
    """Records of a stream without end: after the last one the first follows.

    Args:
        open_epoch: the `datasets.IterableDataset` of an epoch.
        name: what to call it in errors.
        buffer: records of a block.
        form, columns: see `forms`; None = told by the first row.
        images: the folder that paths of images are relative to.
    """

    def __init__(
        self,
        open_epoch: Callable[[int], Any],
        name: str,
        buffer: int,
        form: str | None = None,
        columns: dict[str, str] | None = None,
        images: str | Path = "",
    ):
        self._open, self.name, self.buffer = open_epoch, name, buffer
        self.form, self.columns, self.images = form, columns or {}, Path(images)
        self._part = (0, 1)
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._blocks: OrderedDict[int, list[Any]] = OrderedDict()
        self._begins: dict[int, dict] = {0: {"epoch": 0, "state": None}}
        self._rows: Iterator[Any] | None = None
        self._next = 0  # the block that `_rows` goes on with

    def take_part(self, part: int, parts: int) -> None:
        """Go on with one of equal parts of the stream alone; whole shards where their number allows it."""
        self._part = (part, parts)
        self._restart()

    def __getitem__(self, number: int) -> dict:
        """The record of this number, counted from the first epoch on."""
        row, where = self._row(number), self.where(number)
        if isinstance(row, dict):
            if BROKEN in row:
                raise ValueError(f"{where}: {row[BROKEN]}")
            row = {name: value for name, value in row.items() if name != WHERE}
            if LINE in row:
                row = parse_line(row[LINE], where)
        if self.form is None:
            self.form = find_form(row, self.columns, where) if isinstance(row, dict) else None
        record = record_of(row, self.form or "messages", self.columns, where)
        return load_images(check_record(record, where), self.images, where)

    def where(self, number: int) -> str:
        """What the row says of itself, or its number."""
        row = self._row(number)
        if isinstance(row, dict) and WHERE in row:
            return row[WHERE]
        return f"{self.name}, record {number}"

    def state_dict(self) -> dict:
        """Where the last blocks begin; JSON-able."""
        return {str(block): self._begins[block] for block in sorted(self._begins)[-BLOCKS:]}

    def load_state_dict(self, state: dict) -> None:
        """Only saves time: without it the stream is read from its front to the same records."""
        self._restart()
        self._begins |= {int(block): begin for block, begin in state.items()}

    # --------------------------------------------------------------------------------------------------- the reading

    def _row(self, number: int) -> Any:
        block, place = divmod(number, self.buffer)
        with self._lock:
            if block not in self._blocks:
                self._seek(block)
                while self._next <= block:
                    self._read()
            return self._blocks[block][place]

    def _seek(self, block: int) -> None:
        """Let `_rows` go on with this block, or with one that is known and nearest before it."""
        known = max(begin for begin in self._begins if begin <= block)
        if self._rows is None or not known <= self._next <= block:
            self._next, begin = known, self._begins[known]
            self._rows = self._endless(begin["epoch"], begin["state"])

    def _read(self) -> None:
        """The next block, with where it begins."""
        rows = []
        for place in range(self.buffer):
            row, begin = next(self._rows)
            if not place:
                self._begins[self._next] = begin
            rows.append(row)
        self._blocks[self._next] = rows
        self._next += 1
        while len(self._blocks) > BLOCKS:
            self._blocks.popitem(last=False)
        for old in sorted(self._begins)[1 : -2 * BLOCKS]:  # block 0 is always known
            del self._begins[old]

    def _endless(self, epoch: int, state: dict | None) -> Iterator[tuple[Any, dict]]:
        """Rows, each with where its block begins. That is asked for once a block, because asking costs."""
        count, begin = 0, {}
        while True:
            dataset = self._dataset(epoch)
            if state is not None:
                dataset.load_state_dict(state)
            rows, started = iter(dataset), False
            while True:
                if not count % self.buffer:
                    begin = {"epoch": epoch, "state": dataset.state_dict() if started else state}
                try:
                    row = next(rows)
                except StopIteration:
                    break
                except (OSError, ValueError) as error:  # pyarrow's and the library's own are of these
                    raise OSError(f"{self.name} cannot be read on: {' '.join(str(error).split())}") from error
                yield row, begin
                count, started = count + 1, True
            if not started and state is None:
                raise ValueError(f"{self.name} holds no record")
            epoch, state = epoch + 1, None

    def _dataset(self, epoch: int) -> Any:
        dataset = self._open(epoch)
        part, parts = self._part
        if parts == 1:
            return dataset
        from datasets.distributed import split_dataset_by_node  # see `tables.open_table`

        return split_dataset_by_node(dataset, rank=part, world_size=parts)


def stream_files(files: list[str], kind: str) -> Any:
    """An `IterableDataset` of tars or of JSON lines, each file a shard.

    Args:
        kind: `webdataset` or `jsonl`.
    """
    import datasets  # see `tables.open_table`

    rows = {"webdataset": _tars, "jsonl": _lines}[kind]
    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": files})


def _tars(files: list[str]) -> Iterator[dict[str, Any]]:
    import fsspec  # as datasets does

    for file in files:
        with fsspec.open(file, "rb") as opened:
            yield from tar_rows(file, opened)


def _lines(files: list[str]) -> Iterator[dict[str, Any]]:
    import fsspec  # as datasets does

    for file in files:
        with fsspec.open(file, "rb", compression="infer") as opened:
            for number, line in enumerate(opened, start=1):
                if line.strip():
                    yield {WHERE: f"{file}:{number}", LINE: line}
