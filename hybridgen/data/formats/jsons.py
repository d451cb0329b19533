"""JSON files as sources: one object a line (.jsonl), or one list (.json), as LLaVA's conversations come.

Rows of any form (`forms`) are taken; pictures are opened when a record is asked for, all else is checked at once. The
fact a newcomer gets wrong: of a .jsonl only the places of its lines are kept in memory, of a .json all of it.
"""

import json
from array import array
from pathlib import Path
from typing import Any

from hybridgen.data.broken import Broken
from hybridgen.data.formats.forms import find_form, record_of
from hybridgen.data.records import check_record, load_images


class _JsonSource:
    """What both kinds share: rows become records, those that do not are broken.

    Args:
        form, columns: see `forms`; None = told by the first row that holds one.
        images: the folder that paths of images are relative to; None = that of the file.
        broken: what is wrong is added to it; None = the first such thing is raised.
    """

    def __init__(
        self,
        path: str | Path,
        form: str | None = None,
        columns: dict[str, str] | None = None,
        images: str | Path | None = None,
        broken: list[Broken] | None = None,
    ):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(
                f"there is no file {self.path}; a source is a .jsonl file or the name of a synthetic dataset, or a folder, .json, "
                ".parquet or .tar files or the name of a data set"
            )
        self.form, self.columns, self._broken = form, columns or {}, broken
        self.images = self.path.parent if images is None else Path(images)
        self._lines = array("q")  # the number of each record's line, or in its list
        self._index()
        if not self._lines:
            first = f" that can be read: {broken[0]}" if broken else "; write one JSON object a line"
            raise ValueError(f"{self.path} holds no record{first}")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has records 0 to {len(self) - 1}, not {index}")
        where = self.where(index)
        return load_images(self._record(self._row(index), where), self.images, where)

    def where(self, index: int) -> str:
        """The file and line of a record."""
        return self._place(self._lines[index])

    def _record(self, row: Any, where: str) -> dict:
        if self.form is None and isinstance(row, dict):
            try:
                self.form = find_form(row, self.columns, where)
            except ValueError:
                if self.columns:
                    raise
                return check_record(row, where)  # says what is asked of a chat record
        if self.form in (None, "messages") and "messages" not in self.columns:
            return check_record(row, where)
        return check_record(record_of(row, self.form, self.columns, where), where)

    def _refuse(self, error: ValueError, number: int) -> None:
        if self._broken is None:
            raise error
        self._broken.append(Broken.of(self._place(number), error))


class JsonlSource(_JsonSource):
    """Records of a JSON-lines file. All lines are checked at once, pictures are opened when a record is asked for.

    Raises:
        ValueError: the file is missing or empty, or a line is no record; it names the file and the line.
    """

    def _index(self) -> None:
        self._offsets, offset = array("q"), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        self._record(parse_line(line, self._place(number)), self._place(number))
                        self._offsets.append(offset)
                        self._lines.append(number)
                    except ValueError as error:
                        self._refuse(error, number)
                offset += len(line)

    def _row(self, index: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return parse_line(file.readline(), self.where(index))

    def _place(self, number: int) -> str:
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
                self._record(row, self._place(number))
                self._lines.append(number)
            except ValueError as error:
                self._refuse(error, number)

    def _row(self, index: int) -> Any:
        return self._rows[self._lines[index]]

    def _place(self, number: int) -> str:
        return f"{self.path}, record {number}"


def parse_line(line: bytes, where: str) -> Any:
    """One line of JSON.

    Raises:
        ValueError: it is none; it says where.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg} at column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from error
