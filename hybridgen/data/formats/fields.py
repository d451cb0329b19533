"""Fields of a row: its columns by the names that forms give to them, and texts and pictures out of what they hold."""

import json
import math
from functools import lru_cache
from typing import Any

from hybridgen.core.values import shorten, shown
from hybridgen.data.formats.text_files import UTF8_MARK
from hybridgen.data.records import chat_record, picture_value, text_part

PICTURES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl",
)  # fmt: skip
# the columns in which each field of a row is looked for, in this order, unless `columns` names one; then the same in
# the column `json`, as samples of webdataset have it
USUAL_COLUMNS = {
    "image": (
        "image",
        "jpg",
        "jpeg",
        "png",
        "webp",
        "img",
        "file_name",
        "image_path",
        *(each[1:] for each in PICTURES),
    ),
    "images": ("images",),
    "text": ("text", "txt", "caption", "captions", "content"),
    "question": ("question", "query"),
    "answer": ("answer", "answers", "response"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "texts": ("texts",),
    "text_list": ("text_list",),
    "image_info": ("image_info",),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "prompt": ("prompt",),
    "completion": ("completion", "response"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
    "video": ("videos", "video", "mp4", "webm", "audios", "audio", "mp3", "wav", "flac"),  # not read yet
}
_COLUMNS_INSIDE = {**USUAL_COLUMNS, "text": ("caption", *USUAL_COLUMNS["text"])}  # of img2dataset: the caption first
SHOWN_COLUMNS = 20  # columns that a sentence names
_ABSENT = object()


class Fields:
    """A row by the names that forms give to its columns. A column with a dot lies inside of another: `json.caption`.

    Args:
        form: said in errors.

    Raises:
        ValueError: a column that `columns` names is not there.
    """

    def __init__(self, row: dict, columns: dict[str, str], where: str, form: str | None = None):
        self.row, self.where, self.form, self._named = row, where, form, columns
        self._inside = row["json"] if isinstance(row.get("json"), dict) else {}
        self._columns = _columns_of_fields(tuple(row), tuple(self._inside))
        for column in columns.values():
            if _look_up(row, column) is _ABSENT:
                raise ValueError(f"{where}: there is no column {column!r}; its columns are {self.columns}")

    def __getitem__(self, name: str) -> Any:
        """The first column of a field that holds something, else None (a null), else _ABSENT. NaN is a null, too."""
        if name in self._named:
            return _without_nan(_look_up(self.row, self._named[name]))
        places = self._columns.get(name)
        if places is None:
            return _ABSENT
        for is_inside, column in places:
            value = _without_nan((self._inside if is_inside else self.row)[column])
            if value is not None:
                break
        return value

    def has(self, name: str) -> bool:
        """Whether there is a column for it, though perhaps an empty one."""
        if name == "picture":
            return self.has("image") or self.has("images")
        return self[name] is not _ABSENT

    def holds(self, name: str) -> bool:
        """Whether its column holds something."""
        if name == "picture":
            return self.holds("image") or self.holds("images")
        value = self[name]
        return value is not _ABSENT and value not in (None, "", b"", [], {})

    def need(self, name: str) -> Any:
        """A field that the form cannot do without.

        Raises:
            ValueError: it is missing or null.
        """
        if (name == "picture" and self.holds(name)) or (name != "picture" and self[name] not in (None, _ABSENT)):
            return None if name == "picture" else self[name]
        column = self._named.get("image", "image") if name == "picture" else self._named.get(name, name)
        raise ValueError(f"{self.where}: {column!r} is missing; records of the form {self.form!r} need it")

    def pictures(self) -> list:
        """The row's pictures, from one column or a list.

        Raises:
            ValueError: one of several is null, or both columns hold something and differ.
        """
        if not self.has("picture"):
            return []
        image, images = (self[name] if self.holds(name) else [] for name in ("image", "images"))
        image, images = (value if isinstance(value, list) else [value] for value in (image, images))
        if image and images and image != images:
            raise ValueError(f"{self.where}: both image and images hold pictures, and not the same; keep one of them")
        pictures = [*map(picture_value, images or image)]
        for number, picture in enumerate(pictures):
            if picture is None or picture in ("", b"", []):
                raise ValueError(f"{self.where}: picture {number} of its {len(pictures)} is missing")
        return pictures

    def refuse_unread_picture(self) -> None:
        """Raises ValueError for a row of words in which a column that no form reads evidently holds a picture."""
        for place in (self.row, self._inside):
            for column in place:
                if column in _READ_COLUMNS or column in self._named.values():
                    continue
                if _is_picture(place[column]) or str(column).lower().endswith(PICTURES):
                    name = column if place is self.row else f"json.{column}"
                    raise ValueError(
                        f"{self.where}: the column {name!r} holds a picture, and no form reads it; say columns: "
                        f"{{image: {name}}}, or, where only the words are meant, form: {self.form}"
                    )

    def history(self) -> list[dict]:
        """Earlier questions and answers, as pairs of texts."""
        turns = []
        for number, pair in enumerate(self["history"] if self.holds("history") else ()):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"{self.where}: history has {shown(pair)} at place {number}; give [question, answer]")
            turns += exchange(*(text_of(words, "history", self.where) for words in pair))
        return turns

    @property
    def columns(self) -> str:
        """The names of its columns, for a sentence."""
        names = [str(name) for name in self.row if not str(name).startswith("__")]
        more = [f"and {len(names) - SHOWN_COLUMNS} more"] if len(names) > SHOWN_COLUMNS else []
        return ", ".join([*(shorten(name, 60) for name in names[:SHOWN_COLUMNS]), *more]) or "none"


@lru_cache(maxsize=1024)
def _columns_of_fields(columns: tuple, inside: tuple) -> dict[str, list[tuple[bool, str]]]:
    """Of each field that a row of these columns has: (whether inside of the column `json`, column), in the order in
    which they are looked at. Rows of a file mostly have the same columns, so it is done once and kept."""
    found = {}
    for name in USUAL_COLUMNS:
        of_row = [(False, column) for column in USUAL_COLUMNS[name] if column in columns]
        of_json = [(True, column) for column in _COLUMNS_INSIDE[name] if column in inside]
        if of_row or of_json:
            found[name] = of_row + of_json
    return found


def _without_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _look_up(row: Any, path: str) -> Any:
    if isinstance(row, dict) and path in row:
        return row[path]
    first, dot, rest = path.partition(".")
    return _look_up(row[first], rest) if dot and isinstance(row, dict) and first in row else _ABSENT


def _is_picture(value: Any) -> bool:
    """Whether a value can be nothing but a picture: bytes of one, or the name or address of its file."""
    if isinstance(value, list) and value:
        return _is_picture(value[0])
    if isinstance(value, dict):
        return _is_picture(value.get("bytes")) or _is_picture(value.get("path")) or _is_picture(value.get("url"))
    if isinstance(value, bytes):
        return value.startswith(_PICTURE_BYTES)
    if not isinstance(value, str) or len(value) < 5:
        return False
    name = value[:LONGEST_NAME].partition("?")[0]
    is_name = len(value) < LONGEST_NAME and "\n" not in value and name.lower().endswith(PICTURES)
    return is_name or value.startswith(("data:image/", *_PICTURE_BASE64))


_PICTURE_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_PICTURE_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD")
LONGEST_NAME = 1000  # characters
_READ_COLUMNS = {"json", *(column for columns in USUAL_COLUMNS.values() for column in columns)}


def holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def text_of(value: Any, name: str, where: str, variant: int = 0, keep_spaces: bool = False) -> str:
    """A text; the spaces around it are left out unless they are to be kept. Of several, as data sets with many captions
    per picture have them, the one that `variant` counts to, nulls left out; numbers and truth values as JSON writes
    them."""
    if isinstance(value, list):
        several = [each for each in value if each is not None and each == each and each != ""]  # NaN is not itself
        if several:
            return text_of(several[variant % len(several)], name, where, variant, keep_spaces)
    if isinstance(value, dict):  # one of several with notes, as VQAv2's answers
        value = next((value[key] for key in ("answer", "caption", "text") if key in value), value)
    if isinstance(value, bytes):
        try:
            value = value.removeprefix(UTF8_MARK).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: {name} is not UTF-8 text (byte {error.start})") from error
    if isinstance(value, bool | int | float) and math.isfinite(value):
        value = json.dumps(value)
    if not isinstance(value, str) or not value.strip():
        kind = "empty" if value in ("", []) or isinstance(value, str) else f"of type {type(value).__name__}"
        raise ValueError(f"{where}: {name} is {kind}; it must be a text")
    return value if keep_spaces else value.strip()


def exchange(question: str, answer: str) -> list[dict]:
    return chat_record(("user", [text_part(question)]), ("assistant", [text_part(answer)]))["messages"]
