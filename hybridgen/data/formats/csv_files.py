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
    text = decode(path.read_bytes(), str(path))
    lines = io.StringIO(text, newline="").readlines()
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(lines[0] if lines else "")
    names: list[str] | None = None
    for number, cells in _read_rows(lines, delimiter):
        if names is None and any(cells):
            if isinstance(cells, str):
                raise ValueError(f"{path}:{number}: the first line must name the columns, and cannot be read: {cells}")
            names = [name.strip() for name in cells]
            if len(set(names)) < len(names):
                raise ValueError(f"{path}:1: the first line must name each column once, not {', '.join(names)[:200]}")
        elif names is None:
            continue
        elif isinstance(cells, str) or len(cells) > len(names):
            yield number, cells
        elif any(cells):
            yield number, {name: cell or None for name, cell in zip(names, cells, strict=False)}


def _delimiter(first_line: str) -> str:
    """What separates the names of the columns: a comma, else what spreadsheets of other countries write."""
    return next((each for each in ",;\t|" if each in first_line), ",")


def _read_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(number of its first line, cells) of each row; instead of cells, what is wrong with its first line.

    A quote that is never closed would make all that follows one cell, so a row of several lines must keep to the rules.
    """
    start = 0
    while start < len(lines):
        rest = (lines[number] for number in range(start, len(lines)))  # no copy, as many rows may be broken
        reader = csv.reader(rest, delimiter=delimiter, strict=True)
        before = 0
        try:
            for cells in reader:
                yield start + before + 1, cells
                before = reader.line_num
            return
        except csv.Error as error:
            start += before
            one_line = reader.line_num == before + 1 and "unexpected end" not in str(error)
            yield start + 1, _cells_of(lines[start], delimiter) if one_line else "a quote opens and is not closed well"
            start += 1


def _cells_of(line: str, delimiter: str) -> list[str] | str:
    """The cells of a line that keeps not quite to the rules, as `"a" b`."""
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        return str(error)


def check_cells(row: Any, where: str) -> dict:
    """Raises ValueError for a row of more cells than names, or one that cannot be read."""
    if isinstance(row, str):
        raise ValueError(f"{where}: the row cannot be read: {row}; write a quote inside of a quoted cell twice")
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
