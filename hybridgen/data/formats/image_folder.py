"""A folder of captioned pictures as a source: each picture with its caption, as a record that draws it.

Two layouts: `metadata.jsonl` with lines {"file_name": ..., "text": ...} (that of the datasets library's imagefolder),
or a `.txt` of the same name beside each picture; the folder has the first if the file is there. To read the pictures
instead of drawing them, a source's config says `order: image_first`. A picture without a caption is a broken record,
listed and counted: if it were skipped in silence, nobody would notice a third of a data set that is missing.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from hybridgen.data.bad_records import BadRecord
from hybridgen.data.formats.rows import captioned, check_index
from hybridgen.data.records import load_image

METADATA = "metadata.jsonl"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class FolderSource:
    """Records of a folder, in the order of `metadata.jsonl` or of the files' names; subfolders are searched too.

    Args:
        bad_records: pictures without a caption and the like are added to it; None = the first of them is raised.

    Raises:
        ValueError: it holds no picture, or a caption or a picture is missing; it names the file.
    """

    def __init__(self, folder: str | Path, bad_records: list[BadRecord] | None = None):
        self.folder = Path(folder)
        metadata = self.folder / METADATA
        entries = _from_metadata(metadata) if metadata.is_file() else _from_texts(self.folder)
        self._pairs: list[tuple[str, str]] = []
        for entry in entries:
            if not isinstance(entry, BadRecord):
                self._pairs.append(entry)
            elif bad_records is None:
                raise ValueError(str(entry))
            else:
                bad_records.append(entry)
        if not self._pairs:
            if bad_records:
                raise ValueError(f"{self.folder} holds no captioned picture that is whole: {bad_records[0]}")
            raise ValueError(f"{self.folder} holds no picture ({', '.join(PICTURES)}); put some there with captions")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:
        check_index(self, index, self.folder)
        name, caption = self._pairs[index]
        return captioned(caption, load_image(name, self.folder, self.where(index)))

    def where(self, index: int) -> str:
        """The file of a record."""
        return str(self.folder / self._pairs[index][0])


def _from_metadata(file: Path) -> Iterator[tuple[str, str] | BadRecord]:
    """(picture, caption) of each line, or what is wrong with it."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            yield BadRecord(where, f"not a JSON object ({error.msg} at column {error.colno})")
            continue
        fields = [entry.get(key) if isinstance(entry, dict) else None for key in ("file_name", "text")]
        if not all(isinstance(value, str) and value for value in fields):
            yield BadRecord(where, 'a line must be {"file_name": a picture, "text": its caption}')
        elif not (file.parent / fields[0]).is_file():
            yield BadRecord(where, f"the image {fields[0]!r} is not there; paths are relative to the file")
        else:
            yield tuple(fields)


def _from_texts(folder: Path) -> Iterator[tuple[str, str] | BadRecord]:
    """(picture, caption) of each picture with a `.txt` beside it, or what is wrong with it."""
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES):
        text = file.with_suffix(".txt")
        try:
            caption = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
        except UnicodeDecodeError as error:
            yield BadRecord(str(file), f"{text.name} is not UTF-8 text (byte {error.start})")
            continue
        if caption:
            yield str(file.relative_to(folder)), caption
        else:
            state = "is empty" if text.is_file() else "is missing"
            yield BadRecord(
                str(file), f"the caption of {file} {state}; write {text.name} beside it, or all in {METADATA}"
            )
