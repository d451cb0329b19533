"""A folder of captioned pictures as a source: each picture with its caption, as a record that draws it.

Two layouts. With `metadata.jsonl`, `.csv` or `.parquet` (those of the datasets library's imagefolder) or a list in
`metadata.yaml`, each of its rows names a picture (`file_name`) and holds the other columns of a row of any form
(`rows`). Without it, a `.txt` or `.caption` of the same name stands beside each picture. Folders inside are searched
too, each by its own layout; a metadata file speaks for all below it. Of the usual split folders (`train`, `test`, ...)
one is read. A caption is read when its record is, but for short ones: those may be empty, and that is said at once.

To read the pictures instead of drawing them, a source's config says `order: image_first`. A picture without a caption
is a broken record, listed and counted: if it were skipped in silence, nobody would notice a third of a data set that
is missing. Links are followed. What computers leave behind (names that begin with a dot, `__MACOSX`) is no data.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hybridgen.core.values import one_line
from hybridgen.data.bad_records import BadRecord, record_errors
from hybridgen.data.formats.csv_files import check_cells, read_table
from hybridgen.data.formats.fields import PICTURES
from hybridgen.data.formats.rows import RowSource, record_of
from hybridgen.data.formats.text_files import decode, parse_json, read_lines
from hybridgen.data.records import check_record

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.yaml", "metadata.yml")
CAPTIONS = (".txt", ".caption")
SHORT_CAPTION = 64  # bytes; one of so few may be empty, and is read when the folder is opened
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "held_out")
_LITTER = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # of macOS, Synology, Windows


class FolderSource(RowSource):
    """Records of a folder, in the order of metadata files or of the files' names.

    A folder is listed once, and of each record the picture's name and where it is told what it shows stay in memory.

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
        self._pictures = Strings()  # of each record, relative to the folder
        self._tellers: list[_Captions | _Metadata] = [_Captions(self.folder, suffix) for suffix in CAPTIONS]
        self._teller_of, self._places = array("i"), array("q")  # of each record: what says its words, and where in it
        self.files = Strings()
        first: BadRecord | None = None
        for bad in self._find():
            first = first or bad
            if bad_records is None:
                raise ValueError(str(bad))
            bad_records.append(bad)
        if not len(self):
            if first:
                raise ValueError(f"{self.folder} holds no captioned picture that is whole: {first}")
            raise ValueError(f"{self.folder} holds no picture ({', '.join(PICTURES)}); put some there with captions")

    def __len__(self) -> int:
        return len(self._places)

    def where(self, index: int) -> str:
        """The file of a record."""
        return str(self.folder / self._pictures[index])

    def _row(self, index: int) -> tuple["_Captions | _Metadata", int, str]:
        return self._tellers[self._teller_of[index]], self._places[index], self._pictures[index]

    def _record(self, told: tuple["_Captions | _Metadata", int, str], where: str, variant: int = 0) -> dict:
        teller, place, picture = told
        if isinstance(teller, _Metadata):
            return self._checked(teller.row(place), picture, where, variant)
        row = {"image": picture, "text": teller.caption(picture)}
        return check_record(record_of(row, "captions", {}, where, variant), where)

    def _checked(self, row: dict, picture: str, where: str, variant: int = 0) -> dict:
        """The record of a row of metadata."""
        row = {**row, self.columns["image"]: picture}
        return check_record(record_of(row, self.form, self.columns, where, variant), where)

    def _add(self, teller: int, place: int, picture: str) -> None:
        self._teller_of.append(teller)
        self._places.append(place)
        self._pictures.append(picture)

    def _find(self) -> Iterator[BadRecord]:
        """Notes every record; yields what is wrong with the others."""
        for folder in walk(self.folder) if self.folder.is_dir() else ():
            if folder.metadata is not None:
                self.files.append(str(folder.metadata))
                yield from self._from_metadata(folder.metadata)
            inside = "" if folder.path == self.folder else os.path.relpath(folder.path, self.folder)
            for picture in folder.pictures:
                if picture.is_file():
                    self.files.append(picture.path)
                if (bad := self._from_text(picture, os.path.join(inside, picture.name), folder)) is not None:
                    yield bad

    def _from_metadata(self, file: Path) -> Iterator[BadRecord]:
        metadata, listing = _Metadata(file), Listing()
        self._tellers.append(metadata)
        teller = len(self._tellers) - 1
        for number, place, raw in metadata.rows():
            where = f"{file}:{number}"
            try:
                with record_errors(where):
                    row = metadata.parsed(raw, where)
                    picture = self._picture_of(row, file.parent, listing)
                    self._checked(row, picture, where)
                    self._add(teller, place, picture)
            except ValueError as error:
                yield BadRecord.of(where, error)
        if not metadata.count:
            yield BadRecord(str(file), "it names no picture; fill it, or remove it where .txt files hold the captions")

    def _picture_of(self, row: Any, folder: Path, listing: "Listing") -> str:
        """The picture that a line names, relative to the source's folder."""
        name = row.get(self.columns["image"]) if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            names = f", but its columns are {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else ""
            raise ValueError(f'a line must be {{"{self.columns["image"]}": a picture, "text": its caption}}{names}')
        there = [each for each in (name, name.replace("\\", "/")) if listing.has(folder / each)]  # or of Windows
        if not there:
            raise ValueError(f"the image {name!r} is not there; paths are relative to the file")
        return os.path.relpath(folder / there[0], self.folder) if folder != self.folder else there[0]

    def _from_text(self, picture: os.DirEntry, relative: str, folder: "Folder") -> BadRecord | None:
        """Notes the record of a picture; returns what is wrong with it."""
        if not picture.is_file():
            return BadRecord(picture.path, "it is a link to a file that is not there")
        stem = os.path.splitext(picture.name)[0]
        for teller, suffix in enumerate(CAPTIONS):
            caption = folder.others.get(stem + suffix)
            if caption is None or not caption.is_file():
                continue
            try:
                if caption.stat().st_size <= SHORT_CAPTION:  # else it holds words, and is read when its turn comes
                    self._tellers[teller].caption(relative)
            except ValueError as error:
                return BadRecord(picture.path, str(error))
            self._add(teller, 0, relative)
            return None
        return BadRecord(picture.path, _no_caption(Path(picture.path), "is missing"))


def _no_caption(picture: Path, state: str) -> str:
    name = picture.with_suffix(CAPTIONS[0]).name
    return f"the caption of {picture} {state}; write {name} beside it, or all in {METADATA[0]}"


class _Captions:
    """Files of one suffix beside pictures, each the caption of the picture of its name."""

    def __init__(self, folder: Path, suffix: str):
        self._folder, self._suffix = folder, suffix

    def caption(self, picture: str) -> str:
        """Raises ValueError where it is empty or no UTF-8."""
        file = (self._folder / picture).with_suffix(self._suffix)
        if not (caption := decode(file.read_bytes(), file.name).strip()):
            raise ValueError(_no_caption(self._folder / picture, "is empty"))
        return caption


class _Metadata:
    """A file whose rows name pictures: of lines only the offsets are kept, of tables all of it."""

    def __init__(self, file: Path):
        self.file, self.count = file, 0
        self._table = None if file.suffix == ".jsonl" else _table(file)

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        """(number, place, row not yet `parsed`) of each row."""
        if self._table is None:
            rows = ((number, offset, line) for number, offset, line in read_lines(self.file))
        else:
            rows = ((number, place, row) for place, (number, row) in enumerate(self._table))
        for each in rows:
            self.count += 1
            yield each

    def row(self, place: int) -> Any:
        """The row at a place, parsed."""
        if self._table is not None:
            return self.parsed(self._table[place][1], str(self.file))
        with self.file.open("rb") as file:
            file.seek(place)
            return self.parsed(file.readline(), str(self.file))

    def parsed(self, row: Any, where: str) -> Any:
        """Raises ValueError for a row that cannot be read."""
        if self._table is None:
            return parse_json(row, where)
        return check_cells(row, where) if self.file.suffix == ".csv" else row


def _table(file: Path) -> list[tuple[int, Any]]:
    """(number, row) of each row of a table."""
    if file.suffix == ".csv":
        return list(read_table(file))
    if file.suffix == ".parquet":
        from pyarrow import ArrowException  # comes with datasets, and is slow to import
        from pyarrow.parquet import read_table as read_parquet

        try:
            rows = read_parquet(file).to_pylist()
        except ArrowException as error:
            raise ValueError(f"{file}: no parquet file that can be read ({one_line(error)})") from error
        return list(enumerate(rows, start=1))
    try:
        rows = yaml.safe_load(decode(file.read_bytes(), str(file)))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: no YAML ({one_line(error)})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file}: it must be a list of rows, as `- {{file_name: a.png, text: a cat}}`")
    return list(enumerate(rows, start=1))


class Strings(Sequence):
    """Many short texts in few bytes, one after the other."""

    def __init__(self):
        self._bytes, self._ends = bytearray(), array("Q")

    def append(self, text: str) -> None:
        self._bytes += os.fsencode(text)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._bytes[first : self._ends[index]]))


class Listing:
    """Which files are there, asked folder by folder and not file by file."""

    def __init__(self):
        self._names: dict[str, set[str]] = {}

    def has(self, file: Path) -> bool:
        folder, name = os.path.split(file)
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    self._names[folder] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                self._names[folder] = set()
        return name in self._names[folder] or file.is_file()  # some file systems know a name by several spellings


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


class Folder(NamedTuple):
    """What a folder holds: the metadata file that speaks for all of it, or pictures, and its other files by name."""

    path: Path
    metadata: Path | None
    pictures: list[os.DirEntry]
    others: dict[str, os.DirEntry]


def walk(folder: Path, seen: set[str] | None = None) -> Iterator[Folder]:
    """A folder and the folders inside, by name; each is listed once.

    Links are followed; a folder to which several paths lead is walked once, so that a link to a folder above ends.
    """
    seen = set() if seen is None else seen
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    with os.scandir(folder) as listed:
        entries = sorted((entry for entry in listed if not is_litter(entry.name)), key=lambda entry: entry.name)
    if metadata := [entry.name for entry in entries if entry.name in METADATA]:
        if len(metadata) > 1:
            raise ValueError(f"{folder} has {' and '.join(metadata)}; keep one of them")
        yield Folder(folder, folder / metadata[0], [], {})
        return
    pictures: list[os.DirEntry] = []
    others = {entry.name: entry for entry in entries if not entry.name.lower().endswith(PICTURES)}
    for entry in entries:  # pictures and folders in the order of their names
        if entry.is_dir():
            if pictures:
                yield Folder(folder, None, pictures, others)
                pictures = []
            yield from walk(folder / entry.name, seen)
        elif entry.name.lower().endswith(PICTURES):
            pictures.append(entry)
    if pictures:
        yield Folder(folder, None, pictures, others)
