"""A folder of captioned pictures as a source: each picture with its caption, as a record that draws it.

Two layouts. With `metadata.jsonl` or `metadata.csv` (those of the datasets library's imagefolder), each of its lines
names a picture (`file_name`) and holds the other columns of a row of any form (`rows`). Without it, a `.txt` or
`.caption` of the same name stands beside each picture. Folders inside are searched too, each by its own layout; a
metadata file speaks for all below it. Of the usual split folders (`train`, `test`, ...) one is read.

To read the pictures instead of drawing them, a source's config says `order: image_first`. A picture without a caption
is a broken record, listed and counted: if it were skipped in silence, nobody would notice a third of a data set that
is missing. Links are followed. What computers leave behind (names that begin with a dot, `__MACOSX`) is no data.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.data.bad_records import BadRecord, record_errors
from hybridgen.data.formats.csv_files import check_cells, read_table
from hybridgen.data.formats.fields import PICTURES
from hybridgen.data.formats.rows import RowSource, record_of
from hybridgen.data.formats.text_files import decode, parse_json, read_lines
from hybridgen.data.records import check_record

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTIONS = (".txt", ".caption")
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "held_out")
_LITTER = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # of macOS, Synology, Windows


class _Entry(NamedTuple):
    """A picture and what is said of it."""

    file: str  # relative to the folder
    row: dict
    from_metadata: bool  # else `row` is its caption


class FolderSource(RowSource):
    """Records of a folder, in the order of metadata files or of the files' names.

    Args:
        form, columns: of rows of metadata, see `rows`; the picture is the column `file_name`.
        split: the folder inside that is read; None = the only one, where there are split folders.
        bad_records: pictures without a caption and the like are added to it; None = the first of them is raised.

    Raises:
        ValueError: it holds no picture, or a caption or a picture is missing; it names the file.
    """

    def __init__(
        self,
        folder: str | Path,
        bad_records: list[BadRecord] | None = None,
        form: str | None = None,
        columns: dict[str, str] | None = None,
        split: str | None = None,
    ):
        self.folder = _split_of(Path(folder), split)
        super().__init__(str(self.folder), form, {"image": "file_name", **(columns or {})}, self.folder)
        self._entries: list[_Entry] = []
        first: BadRecord | None = None
        for entry in self._found():
            if isinstance(entry, _Entry):
                self._entries.append(entry)
                continue
            first = first or entry
            if bad_records is None:
                raise ValueError(str(entry))
            bad_records.append(entry)
        if not self._entries:
            if first:
                raise ValueError(f"{self.folder} holds no captioned picture that is whole: {first}")
            raise ValueError(f"{self.folder} holds no picture ({', '.join(PICTURES)}); put some there with captions")

    def __len__(self) -> int:
        return len(self._entries)

    def where(self, index: int) -> str:
        """The file of a record."""
        return str(self.folder / self._entries[index].file)

    def _row(self, index: int) -> _Entry:
        return self._entries[index]

    def _record(self, entry: _Entry, where: str, variant: int = 0) -> dict:
        form, columns = (self.form, self.columns) if entry.from_metadata else ("captions", {})
        return check_record(record_of(entry.row, form, columns, where, variant), where)

    def _found(self) -> Iterator[_Entry | BadRecord]:
        """Each picture with what is said of it, or what is wrong with that."""
        for file in walk(self.folder) if self.folder.is_dir() else ():
            self.files += [str(file)] if file.is_file() else []
            if file.name in METADATA:
                yield from self._from_metadata(file)
            else:
                yield self._from_text(file)

    def _from_metadata(self, metadata: Path) -> Iterator[_Entry | BadRecord]:
        rows = read_table(metadata) if metadata.suffix == ".csv" else _json_rows(metadata)
        number = 0
        for number, row in rows:
            where = f"{metadata}:{number}"
            try:
                with record_errors(where):
                    row = check_cells(row, where) if metadata.suffix == ".csv" else parse_json(row, where)
                    entry = self._entry(row, metadata.parent)
                    self._record(entry, where)
                    yield entry
            except ValueError as error:
                yield BadRecord.of(where, error)
        if not number:
            yield BadRecord(
                str(metadata), "it names no picture; fill it, or remove it where .txt files hold the captions"
            )

    def _entry(self, row: Any, folder: Path) -> _Entry:
        name = row.get(self.columns["image"]) if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            names = f", but its columns are {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else ""
            raise ValueError(f'a line must be {{"{self.columns["image"]}": a picture, "text": its caption}}{names}')
        if not (folder / name).is_file() and (folder / name.replace("\\", "/")).is_file():
            name = name.replace("\\", "/")  # written on Windows
        if not (folder / name).is_file():
            raise ValueError(f"the image {name!r} is not there; paths are relative to the file")
        file = os.path.relpath(folder / name, self.folder) if folder != self.folder else name
        return _Entry(file, {**row, self.columns["image"]: file}, True)

    def _from_text(self, picture: Path) -> _Entry | BadRecord:
        texts = [text for suffix in CAPTIONS if (text := picture.with_suffix(suffix)).is_file()]
        file = str(picture.relative_to(self.folder))
        try:
            if not picture.is_file():
                raise ValueError("it is a link to a file that is not there")
            caption = decode(texts[0].read_bytes(), texts[0].name).strip() if texts else ""
        except ValueError as error:
            return BadRecord(str(picture), str(error))
        if caption:
            return _Entry(file, {"image": file, "text": caption}, False)
        state = "is empty" if texts else "is missing"
        name = picture.with_suffix(CAPTIONS[0]).name
        return BadRecord(
            str(picture), f"the caption of {picture} {state}; write {name} beside it, or all in {METADATA[0]}"
        )


def _json_rows(metadata: Path) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, _, line in read_lines(metadata))


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is no data but left behind by a computer."""
    return name.startswith(".") or name in _LITTER


def _split_of(folder: Path, split: str | None) -> Path:
    """The folder inside that holds the split, or the folder itself where there are no split folders.

    Raises:
        ValueError: there is no such split, or there are several and none is asked for.
    """
    inside = [entry for entry in folder.iterdir() if not is_litter(entry.name)] if folder.is_dir() else []
    splits = sorted(entry.name for entry in inside if entry.name.lower() in SPLITS and entry.is_dir())
    if split is not None:
        if not (folder / split).is_dir():
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(splits) or 'no folders of splits'}")
        return folder / split
    only_splits = bool(splits) and all(entry.name in splits or not entry.is_dir() for entry in inside)
    if not only_splits or any(entry.suffix.lower() in PICTURES or entry.name in METADATA for entry in inside):
        return folder
    if len(splits) > 1:
        raise ValueError(f"{folder} has the splits {', '.join(splits)}; say split: one of them")
    return folder / splits[0]


def walk(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """The metadata file that speaks for all of a folder, or the pictures in it and in the folders inside, by name.

    Links are followed; a folder to which several paths lead is walked once, so that a link to a folder above ends.
    """
    seen = set() if seen is None else seen
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    entries = sorted(entry for entry in folder.iterdir() if not is_litter(entry.name))
    if metadata := [entry for entry in entries if entry.name in METADATA]:
        if len(metadata) > 1:
            raise ValueError(f"{folder} has {' and '.join(METADATA)}; keep one of them")
        yield metadata[0]
        return
    for entry in entries:
        if entry.is_dir():
            yield from walk(entry, seen)
        elif entry.suffix.lower() in PICTURES:
            yield entry
