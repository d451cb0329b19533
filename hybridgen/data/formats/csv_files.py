"""Tables as text (.csv, .tsv) as sources: a first line of names, then a row a line. All of it stays in memory."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridgen.data.formats.json_files import CheckedSource
from hybridgen.data.formats.text_files import decode

csv.field_size_limit(sys.maxsize)  # a cell may hold a picture


def read_table(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of each row of a .csv or .tsv file that is not blank: an object, in which an empty cell is a null, or
    the list of its cells where there are more of them than names.

    Raises:
        ValueError: the file is not UTF-8, or no table.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(decode(path.read_bytes(), str(path)), newline=""), delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) < len(names):
            raise ValueError(f"{path}:1: the first line must name each column once, not {', '.join(names)[:200]}")
        before = reader.line_num
        for cells in reader:
            number, before = before + 1, reader.line_num
            if len(cells) > len(names):
                yield number, cells
            elif any(cells):
                yield number, {name: cell or None for name, cell in zip(names, cells, strict=False)}
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: no table ({error})") from error


def check_cells(row: Any, where: str) -> dict:
    """Raises ValueError for a row of more cells than names."""
    if isinstance(row, list):
        raise ValueError(
            f"{where}: the row has {len(row)} cells, more than the first line names; quote cells with commas"
        )
    return row


class CsvSource(CheckedSource):
    """Records of a .csv or .tsv file."""

    def _rows(self) -> Iterator[tuple[int, int, Any]]:
        self._table: list[Any] = []
        for number, row in read_table(self.path):
            self._table.append(row)
            yield len(self._table) - 1, number, row

    def _parsed(self, row: Any, where: str) -> Any:
        return check_cells(row, where)

    def _row_at(self, place: int) -> Any:
        return self._table[place]
