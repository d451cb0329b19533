"""A folder of captioned pictures as a source: each picture with its caption, as a record that draws it.

Two layouts that are in use, found out by looking: `metadata.jsonl` with lines {"file_name": ..., "text": ...} (that of
the datasets library's imagefolder), or a `.txt` of the same name beside each picture. To read the pictures instead of
drawing them, a task says `order: image_first`. The fact a newcomer gets wrong: a picture without a caption is an error
and not passed over, because nobody notices a third of a data set that is missing.
"""

import json
from pathlib import Path

from hybridgen.data.records import load_image

METADATA = "metadata.jsonl"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class FolderSource:
    """Records of a folder, in the order of `metadata.jsonl` or of the files' names; subfolders are looked into.

    Raises:
        ValueError: it holds no picture, or a caption or a picture is missing; it names the file.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        metadata = self.folder / METADATA
        self._pairs = _from_metadata(metadata) if metadata.is_file() else _from_texts(self.folder)
        if not self._pairs:
            raise ValueError(f"{self.folder} holds no picture ({', '.join(PICTURES)}); put some there with captions")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has records 0 to {len(self) - 1}, not {index}")
        name, caption = self._pairs[index]
        image = load_image(name, self.folder, self.where(index))
        return {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": caption}]},
                {"role": "assistant", "content": [{"type": "image", "image": image}]},
            ]
        }

    def where(self, index: int) -> str:
        """The file of a record."""
        return str(self.folder / self._pairs[index][0])


def _from_metadata(file: Path) -> list[tuple[str, str]]:
    """(picture, caption) of each line."""
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: not a JSON object ({error.msg} at column {error.colno})") from error
        fields = [entry.get(key) if isinstance(entry, dict) else None for key in ("file_name", "text")]
        if not all(isinstance(value, str) and value for value in fields):
            raise ValueError(f'{file}:{number}: a line must be {{"file_name": a picture, "text": its caption}}')
        if not (file.parent / fields[0]).is_file():
            raise ValueError(f"{file}:{number}: the image {fields[0]!r} is not there; paths are relative to the file")
        pairs.append(tuple(fields))
    return pairs


def _from_texts(folder: Path) -> list[tuple[str, str]]:
    """(picture, caption) of each picture with a `.txt` beside it."""
    pairs = []
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES):
        text = file.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
        if not caption:
            state = "is empty" if text.is_file() else "is missing"
            raise ValueError(f"the caption of {file} {state}; write {text.name} beside it, or all in {METADATA}")
        pairs.append((str(file.relative_to(folder)), caption))
    return pairs
