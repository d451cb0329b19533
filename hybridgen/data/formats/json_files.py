"""JSON files as sources: one object a line (.jsonl), or one list (.json), as LLaVA's conversations come.

Rows of any form (`rows`) are taken. All of the file is checked when it is opened, except pictures, which are decoded
when a record is read. Of a .jsonl only the offsets of its lines stay in memory, of a .json all of it.
"""

import json
from array import array
from pathlib import Path
from typing import Any

from hybridgen.data.bad_records import BadRecord
from hybridgen.data.formats.rows import RowSource, find_form
from hybridgen.data.records import check_record


class _JsonSource(RowSource):
    """What both kinds share: every row is checked when the file is opened.

    Args:
        form, columns: see `rows`; None = found by the first row that has a form.
        images: the folder that paths of images are relative to; None = that of the file.
        bad_records: rows that are no record are added to it; None = the first of them is raised.
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
                "folder, .json, .parquet or .tar files or the name of a data set"
            )
        super().__init__(str(self.path), form, columns, self.path.parent if images is None else images)
        self._bad_records = bad_records
        self._lines = array("q")  # of each record: the number of its line, or its place in the list
        self._index()
        if not self._lines:
            first = f" that can be read: {bad_records[0]}" if bad_records else "; write one JSON object a line"
            raise ValueError(f"{self.path} holds no record{first}")

    def __len__(self) -> int:
        return len(self._lines)

    def where(self, index: int) -> str:
        """The file and line of a record."""
        return self._where_line(self._lines[index])

    def _record(self, row: Any, where: str) -> dict:
        if self.form is None and isinstance(row, dict):
            try:
                self.form = find_form(row, self.columns, where)
            except ValueError:
                if self.columns:
                    raise
                return check_record(row, where)  # whose error says what a chat record must be
        if self.form in (None, "messages") and "messages" not in self.columns:
            return check_record(row, where)
        return super()._record(row, where)

    def _index(self) -> None:
        """Find and check all records: fill `_lines`, and list the bad ones."""
        raise NotImplementedError

    def _where_line(self, number: int) -> str:
        raise NotImplementedError

    def _list_bad(self, error: ValueError, number: int) -> None:
        if self._bad_records is None:
            raise error
        self._bad_records.append(BadRecord.of(self._where_line(number), error))


class JsonlSource(_JsonSource):
    """Records of a JSON-lines file.

    Raises:
        ValueError: the file is missing or empty, or a line is no record; it names the file and the line.
    """

    def _index(self) -> None:
        self._offsets, offset = array("q"), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        self._record(parse_line(line, self._where_line(number)), self._where_line(number))
                        self._offsets.append(offset)
                        self._lines.append(number)
                    except ValueError as error:
                        self._list_bad(error, number)
                offset += len(line)

    def _row(self, index: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return parse_line(file.readline(), self.where(index))

    def _where_line(self, number: int) -> str:
        return f"{self.path}:{number}"


class JsonSource(_JsonSource):
    """Records of a .json file that holds a list of them.

    Raises:
        ValueError: the file is missing, no list or empty, or an entry is no record; it names the file and the entry.
    """

    def _index(self) -> None:
        try:
            self._rows = json.loads(self.path.read_bytes().decode("utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: not UTF-8 text (byte {error.start})") from error
        if not isinstance(self._rows, list):
            raise ValueError(f"{self.path} holds a {type(self._rows).__name__}; it must hold a list of records")
        for number, row in enumerate(self._rows):
            try:
                self._record(row, self._where_line(number))
                self._lines.append(number)
            except ValueError as error:
                self._list_bad(error, number)

    def _row(self, index: int) -> Any:
        return self._rows[self._lines[index]]

    def _where_line(self, number: int) -> str:
        return f"{self.path}, record {number}"


def parse_line(line: bytes, where: str) -> Any:
    """One line of JSON.

    Raises:
        ValueError: it is not JSON or not UTF-8; the sentence begins with `where`.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg} at column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from error
