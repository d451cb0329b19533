"""JSON files as sources: one object a line (.jsonl), or one list (.json), as LLaVA's conversations come.

Rows of any form (`rows`) are taken, and what a file holds tells which of the two it is, not its name. All of the file
is checked when it is opened, except pictures, which are decoded when a record is read. Of lines only the offsets stay
in memory, of a list all of it.
"""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridgen.data.bad_records import BadRecord, record_errors
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.text_files import decode, parse_json, read_lines


class CheckedSource(RowSource):
    """Rows of one file that are all checked when it is opened.

    A subclass gives `_rows` and `_row_at`, and may give `_where_row`.

    Args:
        form, columns: see `rows`; a form of None is told by each row.
        images: the folder that paths of images are relative to; None = that of the file.
        bad_records: rows that are no record are added to it; None = the first of them is raised.

    Raises:
        ValueError: the file is missing or empty, or a row is no record; it names the file and the row.
    """

    def __init__(
        self,
        path: str | Path,
        form: str | None = None,
        columns: dict[str, str] | None = None,
        images: str | Path | None = None,
        bad_records: list[BadRecord] | None = None,
    ):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(
                f"there is no file {self.path}; a source is a .jsonl file or the name of a synthetic dataset, or a "
                "folder, .json, .csv, .parquet or .tar files or the name of a data set"
            )
        super().__init__(str(self.path), form, columns, self.path.parent if images is None else images)
        self.files = [str(self.path)]
        self._places = array("q")  # of each record: where `_row_at` finds it
        self._numbers = array("q")  # of each record: the number of its line, or its place in the list
        first: BadRecord | None = None
        for place, number, row in self._rows():
            where = self._where_row(number)
            try:
                with record_errors(where):
                    self._record(self._parsed(row, where), where)
            except ValueError as error:
                if bad_records is None:
                    raise
                bad = BadRecord.of(where, error)
                first = first or bad
                bad_records.append(bad)
            else:
                self._places.append(place)
                self._numbers.append(number)
        if not self._places:
            reason = f" that can be read: {first}" if first else "; write one JSON object a line"
            raise ValueError(f"{self.path} holds no record{reason}")

    def __len__(self) -> int:
        return len(self._places)

    def where(self, index: int) -> str:
        """The file and the line of a record, or its place in the list."""
        return self._where_row(self._numbers[index])

    def _row(self, index: int) -> Any:
        return self._parsed(self._row_at(self._places[index]), self.where(index))

    def _where_row(self, number: int) -> str:
        return f"{self.path}:{number}"

    def _parsed(self, row: Any, where: str) -> Any:
        return row

    def _rows(self) -> Iterator[tuple[int, int, Any]]:
        """(place, number, row) of each row in the file."""
        raise NotImplementedError

    def _row_at(self, place: int) -> Any:
        raise NotImplementedError


class JsonlSource(CheckedSource):
    """Records of a JSON-lines file."""

    def _rows(self) -> Iterator[tuple[int, int, bytes]]:
        for number, offset, line in read_lines(self.path):
            yield offset, number, line

    def _row_at(self, place: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(place)
            return file.readline()

    def _parsed(self, row: bytes, where: str) -> Any:
        return parse_json(row, where)


class JsonSource(CheckedSource):
    """Records of a .json file that holds a list of them, bare or as the one list of objects inside an object."""

    def _rows(self) -> Iterator[tuple[int, int, Any]]:
        try:
            content = json.loads(decode(self.path.read_bytes(), str(self.path)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
        except RecursionError:
            raise ValueError(f"{self.path}: its JSON is nested too deeply to be read") from None
        self._list = self._list_in(content)
        for number, row in enumerate(self._list):
            yield number, number, row

    def _list_in(self, content: Any) -> list:
        if isinstance(content, list):
            return content
        lists = [value for value in content.values() if _is_table(value)] if isinstance(content, dict) else []
        if len(lists) == 1:
            return lists[0]
        keys = f" with the keys {', '.join(map(str, content))[:200]}" if isinstance(content, dict) and content else ""
        raise ValueError(f"{self.path} holds a {type(content).__name__}{keys}; it must hold a list of records")

    def _row_at(self, place: int) -> Any:
        return self._list[place]

    def _where_row(self, number: int) -> str:
        return f"{self.path}, record {number}"


def json_source(path: str | Path, **settings) -> CheckedSource:
    """The source of a file of JSON, whatever its name: lines in a .json are lines, a list in a .jsonl is a list."""
    path = Path(path)
    try:
        is_list = _holds_no_lines(path) if path.suffix.lower() == ".json" else _holds_list(path)
    except (OSError, ValueError, RecursionError):
        is_list = False  # what is wrong with it is said where it is opened
    return (JsonSource if is_list else JsonlSource)(path, **settings)


def _holds_no_lines(path: Path) -> bool:
    """Whether the first line is not an object that could be a record."""
    lines = read_lines(path)
    try:
        row = json.loads(decode(next(lines)[2], ""))
    except (StopIteration, ValueError):
        return True
    return not isinstance(row, dict) or (next(lines, None) is None and any(map(_is_table, row.values())))


def _holds_list(path: Path) -> bool:
    """Whether all of the file is one list of objects."""
    _, _, first = next(read_lines(path), (0, 0, b""))
    return first.lstrip().startswith(b"[") and _is_table(json.loads(decode(path.read_bytes(), "")))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)
