"""Rows of the usual data sets -> chat records: captions, questions, LLaVA conversations, OBELICS and MMC4 documents.

    messages   {"messages": [...]}                                            our own, as it is
    captions   {image: ..., text: ...}                                        drawn from its text
    text       {text: ...}                                                    one turn of the assistant
    questions  {image: ..., question: ..., answer: ...}                       answered
    llava      {"image": ..., "conversations": [{"from": "human", "value": "<image>\\nwhat?"}, ...]}
    obelics    {"texts": ["one", None, "two"], "images": [None, ..., None]}   one of the two at each place
    mmc4       {"text_list": [...], "image_info": [{"image_name": ..., "matched_text_index": 0}, ...]}

A row is a plain dict, whatever file it came from; no file is opened here. An interleaved document becomes one turn of
the assistant, so all of it carries a loss; an image of MMC4 stands before the sentence that it was matched to.
"""

import base64
import binascii
from collections.abc import Sized
from pathlib import Path
from typing import Any

from hybridgen.data.records import chat_record, check_record, image_part, load_images, text_part

FORMS = ("messages", "captions", "text", "questions", "llava", "obelics", "mmc4")
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
IMAGE_TAG = "<image>"
# the columns in which each field of a row is looked for, in this order, unless `columns` names one
USUAL_COLUMNS = {
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "file_name", "image_path"),
    "text": ("text", "txt", "caption", "captions", "json.caption", "json.text"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "messages": ("messages", "json.messages"),
    "conversations": ("conversations", "json.conversations"),
    "texts": ("texts", "json.texts"),
    "images": ("images", "json.images"),
    "text_list": ("text_list", "json.text_list"),
    "image_info": ("image_info", "json.image_info"),
}
# fields that a form needs; a row has the first form whose fields it holds
_FIELDS_OF_FORM = {
    "messages": ("messages",),
    "llava": ("conversations",),
    "obelics": ("texts", "images"),
    "mmc4": ("text_list", "image_info"),
    "questions": ("question", "answer"),
    "captions": ("image", "text"),
    "text": ("text",),
}
_ABSENT = object()


class RowSource:
    """What sources of rows share: row i, made a chat record by its form, with its pictures decoded.

    A subclass gives `__len__`, `_row` and `where`.

    Args:
        name: of the file or data set, said in errors.
        form, columns: see the head of this file and `USUAL_COLUMNS`; a form of None is found by the first good row.
        images: the folder that paths of images are relative to.
    """

    def __init__(self, name: str, form: str | None, columns: dict[str, str] | None, images: str | Path = ""):
        self.name, self.form, self.columns, self.images = name, form, columns or {}, Path(images)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        check_index(self, index, self.name)
        where = self.where(index)
        return load_images(self._record(self._row(index), where), self.images, where)

    def where(self, index: int) -> str:
        """The file and the place in it where a record stands."""
        raise NotImplementedError

    def _row(self, index: int) -> Any:
        raise NotImplementedError

    def _record(self, row: Any, where: str) -> dict:
        return check_record(record_of(row, self.form, self.columns, where), where)


def check_index(source: Sized, index: int, name: str | Path) -> None:
    """Raises IndexError for an index that is no record's."""
    if not 0 <= index < len(source):
        raise IndexError(f"{name} has records 0 to {len(source) - 1}, not {index}")


def find_form(row: dict, columns: dict[str, str], where: str) -> str:
    """The form of a row, found by its columns.

    Raises:
        ValueError: it holds what no form needs; the way out is `columns`.
    """
    for form, fields in _FIELDS_OF_FORM.items():
        if all(_get(row, field, columns, None) is not _ABSENT for field in fields):
            return form
    raise ValueError(
        f"{where}: its columns are {', '.join(map(str, row))}, and none of the forms {', '.join(FORMS)} is made of "
        "them; say which column is which, as in columns: {image: picture, text: caption}"
    )


def record_of(row: Any, form: str, columns: dict[str, str], where: str) -> dict:
    """A chat record, whose images are as the row held them.

    Raises:
        ValueError: a field is missing or of another kind.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a record must be an object with named parts, not {type(row).__name__}")

    def field(name: str) -> Any:
        value = _get(row, name, columns, where)
        if value is _ABSENT or value is None:
            column = columns.get(name, name)
            raise ValueError(f"{where}: {column!r} is missing; records of the form {form!r} need it")
        return value

    if form == "messages":
        return {"messages": field("messages")}
    if form == "captions":
        return captioned(_text_of(field("text"), "text", where), field("image"))
    if form == "text":
        return chat_record(("assistant", [text_part(_text_of(field("text"), "text", where))]))
    if form == "questions":
        question = [image_part(field("image")), text_part(_text_of(field("question"), "question", where))]
        answer = text_part(_text_of(field("answer"), "answer", where))
        return chat_record(("user", question), ("assistant", [answer]))
    if form == "llava":
        images = _get(row, "image", columns, where)
        return _llava(field("conversations"), [] if images in (_ABSENT, None) else images, where)
    if form == "obelics":
        return _obelics(field("texts"), field("images"), where)
    return _mmc4(field("text_list"), field("image_info"), where)


def captioned(caption: str, image: Any) -> dict:
    """A caption and the picture that is drawn from it."""
    return chat_record(("user", [text_part(caption)]), ("assistant", [image_part(image)]))


def _llava(turns: Any, images: Any, where: str) -> dict:
    images = list(images) if isinstance(images, list) else [images]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: conversations must be a list of at least one turn")
    messages, unplaced = [], list(images)
    for number, turn in enumerate(turns):
        role = ROLES.get(turn.get("from")) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise ValueError(
                f'{where}: turn {number} must be {{"from": one of {", ".join(ROLES)}, "value": a text}}, not '
                f"{repr(turn)[:80]}"
            )
        content = []
        for number_of_tag, words in enumerate(turn["value"].split(IMAGE_TAG)):
            if number_of_tag:
                if not unplaced:
                    raise ValueError(f"{where}: more {IMAGE_TAG} stand in the conversation than the images it has")
                content.append(image_part(unplaced.pop(0)))
            if words := words.strip("\n"):
                content.append(text_part(words))
        if content:
            messages.append({"role": role, "content": content})
    if unplaced:
        raise ValueError(f"{where}: {len(images)} images are given, but {len(unplaced)} of them have no {IMAGE_TAG}")
    return {"messages": messages}


def _obelics(texts: Any, images: Any, where: str) -> dict:
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise ValueError(f"{where}: texts and images must be lists of one length, a null where the other has something")
    content = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if text and image is not None:
            raise ValueError(f"{where}: both a text and an image stand at place {place}; one of them must be null")
        if image is not None:
            content.append(image_part(image))
        elif text:
            content.append(text_part(_text_of(text, f"texts.{place}", where)))
    return _interleaved(content, where)


def _mmc4(texts: Any, infos: Any, where: str) -> dict:
    if not isinstance(texts, list) or not isinstance(infos, list):
        raise ValueError(f"{where}: text_list and image_info must be lists")
    before: dict[int, list[dict]] = {}
    for number, info in enumerate(infos):
        place = info.get("matched_text_index") if isinstance(info, dict) else None
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(texts):
            raise ValueError(
                f"{where}: image_info {number} has matched_text_index {place!r}; it must be one of the "
                f"{len(texts)} texts"
            )
        before.setdefault(place, []).append(image_part(_mmc4_image(info, number, where)))
    content = []
    for place, text in enumerate(texts):
        content += before.get(place, [])
        if text:
            content.append(text_part(_text_of(text, f"text_list.{place}", where)))
    return _interleaved(content, where)


def _mmc4_image(info: dict, number: int, where: str) -> Any:
    if info.get("image_base64"):
        try:
            return base64.b64decode(info["image_base64"], validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise ValueError(f"{where}: image_base64 of image_info {number} is not base64 ({error})") from error
    for name in ("image", "image_name", "raw_url"):
        if info.get(name) is not None:
            return info[name]
    raise ValueError(f"{where}: image_info {number} names no image_name, image or image_base64")


def _interleaved(content: list[dict], where: str) -> dict:
    """One turn; neighbouring texts are paragraphs of one."""
    joined: list[dict] = []
    for part in content:
        if joined and part["type"] == joined[-1]["type"] == "text":
            joined[-1] = text_part(f"{joined[-1]['text']}\n\n{part['text']}")
        else:
            joined.append(part)
    if not joined:
        raise ValueError(f"{where}: the document holds neither a text nor an image")
    return chat_record(("assistant", joined))


# ----------------------------------------------------------------------------------------------------------- fields


def _get(row: dict, name: str, columns: dict[str, str], where: str | None) -> Any:
    """A field of a row, or _ABSENT. A column with a dot is looked up inside of another: `json.caption`."""
    if name in columns:
        value = _look_up(row, columns[name])
        if value is _ABSENT and where is not None:
            raise ValueError(
                f"{where}: there is no column {columns[name]!r}; the columns are {', '.join(map(str, row))}"
            )
        return value
    values = (_look_up(row, column) for column in USUAL_COLUMNS[name])
    return next((value for value in values if value is not _ABSENT), _ABSENT)


def _look_up(row: Any, path: str) -> Any:
    if isinstance(row, dict) and path in row:
        return row[path]
    first, dot, rest = path.partition(".")
    return _look_up(row[first], rest) if dot and isinstance(row, dict) and first in row else _ABSENT


def _text_of(value: Any, name: str, where: str) -> str:
    """A text; the first of several, as data sets with many captions per picture have them."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: {name} is not UTF-8 text (byte {error.start})") from error
    if not isinstance(value, str) or not value.strip():
        shown = "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise ValueError(f"{where}: {name} is {shown}; it must be a text")
    return value.strip()
