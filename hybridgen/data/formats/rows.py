"""Rows of the usual data sets -> chat records: captions, questions, conversations, OBELICS and MMC4 documents.

    messages      {"messages": [...], "images": [...]}                         as it is; images fill `<image>` in order
    llava         {"conversations": [{"from": "human", "value": "<image>\\nwhat?"}, ...], "image": ...}
    mmc4          {"text_list": [...], "image_info": [{"image_name": ..., "matched_text_index": 0}, ...]}
    cauldron      {"texts": [{"user": ..., "assistant": ...}, ...], "images": [...]}
    obelics       {"texts": ["one", None, "two"], "images": [None, ..., None]}   one of the two at each place
    questions     {"question": ..., "answer": ..., "image": ...}               answered, with a picture or without
    alpaca        {"instruction": ..., "input": ..., "output": ...}            likewise
    prompts       {"prompt": ..., "completion": ...}                           likewise
    captions      {"image": ..., "text": ...}                                  drawn from its text
    text          {"text": ...}                                                a text of a corpus, no conversation

Forms that no row tells by itself, so that a config has to:

    turn          {"text": ...}                                                one turn of the assistant
    plain         a row of captions, llava or messages                         the picture, its caption; no template
    interleaved   a row of obelics, mmc4 or text                               as a corpus has it; no template

Records of text, plain and interleaved have `plain: true`: no chat template is put around them.

What a row is, is told by its own columns, row by row: files hold rows of several kinds in any order. A row that has a
column for a picture is never plain text, even where that column is empty: then its picture is missing. A row is a plain
dict, whatever file it came from; no file is opened here. An interleaved document becomes one turn of the assistant, so
all of it carries a loss; an image of MMC4 stands before the sentence that it was matched to.
"""

import base64
import binascii
from collections.abc import Sized
from pathlib import Path
from typing import Any

from hybridgen.core.messages import parts
from hybridgen.core.values import shown
from hybridgen.data.bad_records import record_errors
from hybridgen.data.formats.conversations import conversation
from hybridgen.data.formats.fields import Fields, exchange, holds_objects, text_of
from hybridgen.data.records import chat_record, check_record, image_part, load_images, picture_value, text_part

# fields that a form needs; `picture` is `image` or `images`
_FIELDS_OF_FORM = {
    "messages": ("messages",),
    "llava": ("conversations",),
    "mmc4": ("text_list", "image_info"),
    "cauldron": ("texts", "images"),
    "obelics": ("texts", "images"),
    "questions": ("question", "answer"),
    "alpaca": ("instruction", "output"),
    "prompts": ("prompt", "completion"),
    "captions": ("picture", "text"),
    "text": ("text",),
}
FORMS = (*_FIELDS_OF_FORM, "turn", "plain", "interleaved")
PLAIN_FORMS = ("text", "plain", "interleaved")
_OF_WORDS = ("text", "questions", "alpaca", "prompts")  # forms in which words alone are enough


class RowSource:
    """What sources of rows share: row i, made a chat record by its form.

    A subclass gives `__len__`, `_row` and `where`.

    Args:
        name: of the file or data set, said in errors.
        form, columns: see the head of this file and `fields.USUAL_COLUMNS`; a form of None is told by each row.
        images: the folder that paths of images are relative to.
    """

    def __init__(
        self, name: str, form: str | None = None, columns: dict[str, str] | None = None, images: str | Path = ""
    ):
        self.name, self.form, self.columns, self.images = name, form, columns or {}, Path(images)
        self.files: list[str] = []  # what it is read from, where that is files

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        return self.read(index)

    def read(self, index: int, variant: int = 0, unread: bool = False) -> dict:
        """Record `index` (`record`) with its pictures decoded, or as what can be decoded later (`unread`).

        Raises:
            ValueError: the record is broken.
            OSError: the source itself cannot be read any more.
        """
        record = self.record(index, variant)
        with record_errors(where := self.where(index)):
            return load_images(record, self.images, where, unread)

    def record(self, index: int, variant: int = 0) -> dict:
        """Record `index` with its pictures as the row holds them: what it is, told without decoding any.

        Args:
            variant: which of several captions or answers it takes, counted round and round.
        """
        return self.record_of(self.row(index), self.where(index), variant)

    def row(self, index: int) -> Any:
        """Row `index` as its file holds it: what a record leaves out of it, such as further accepted answers."""
        check_index(self, index, self.name)
        with record_errors(self.where(index), ends_run=OSError):  # of the source's own file
            return self._row(index)

    def record_of(self, row: Any, where: str, variant: int = 0) -> dict:
        """The record that a row is. Raises ValueError, whatever is wrong with it."""
        with record_errors(where):
            return self._record(row, where, variant)

    def where(self, index: int) -> str:
        """The file and the place in it where a record stands."""
        raise NotImplementedError

    def _row(self, index: int) -> Any:
        raise NotImplementedError

    def _record(self, row: Any, where: str, variant: int = 0) -> dict:
        return check_record(record_of(row, self.form, self.columns, where, variant), where)


def check_index(source: Sized, index: int, name: str | Path) -> None:
    """Raises IndexError for an index that is no record's."""
    if not 0 <= index < len(source):
        raise IndexError(f"{name} has records 0 to {len(source) - 1}, not {index}")


def find_form(fields: Fields) -> str:
    """The form of a row: the first whose fields all hold something, else the first whose columns are all there.

    Raises:
        ValueError: it holds what no form needs; the way out is `columns`.
    """
    for test in (fields.holds, fields.has):
        for form, names in _FIELDS_OF_FORM.items():
            if not all(map(test, names)) or (form == "text" and fields.has("picture")):
                continue
            if form != "cauldron" or holds_objects(fields["texts"]):
                return form
    raise ValueError(
        f"{fields.where}: its columns are {fields.columns}, and none of the forms "
        f"{', '.join(_FIELDS_OF_FORM)} is made of them; say which column is which, as in columns: "
        "{image: picture, text: caption}"
    )


def record_of(row: Any, form: str | None, columns: dict[str, str], where: str, variant: int = 0) -> dict:
    """A chat record, whose images are as the row held them.

    Args:
        form: None = that which the row's columns tell.
        variant: which of several captions or answers it takes, counted round and round.

    Raises:
        ValueError: a field is missing or of another kind.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a record must be an object with named parts, not {type(row).__name__}")
    fields = Fields(row, columns, where, form)
    fields.form = form or find_form(fields)
    if fields.form != "captions" and fields.holds("video"):
        raise ValueError(f"{where}: it holds a video or a sound, and those are not read; leave the record out")
    if form is None and fields.form in _OF_WORDS and not fields.has("picture"):
        fields.refuse_unread_picture()
    return _BUILDERS[fields.form](fields, variant)


def captioned(caption: str, image: Any) -> dict:
    """A caption and the picture that is drawn from it."""
    return chat_record(("user", [text_part(caption)]), ("assistant", [image_part(image)]))


# --------------------------------------------------------------------------------------------------------------- forms


def _messages(fields: Fields, variant: int) -> dict:
    others = {name: value for name, value in fields.row.items() if name != "plain"}  # which says it of a record
    return {**others, **_asked(fields, fields.need("messages"), fields.pictures())}


def _llava(fields: Fields, variant: int) -> dict:
    record = _asked(fields, fields.need("conversations"), fields.pictures())
    messages = []
    for number, message in enumerate(record["messages"]):
        if isinstance(message["content"], str):
            message = {**message, "content": [text_part(words)] if (words := message["content"].strip("\n")) else []}
        if not message["content"]:
            raise ValueError(f"{fields.where}: message {number} is empty; leave the record out")
        messages.append(message)
    return {"messages": messages}


def _cauldron(fields: Fields, variant: int) -> dict:
    turns = []
    for number, pair in enumerate(fields.need("texts")):
        here = f"{fields.where}: texts.{number}"
        for role in ("user", "assistant"):
            words = pair.get(role) if isinstance(pair, dict) else None
            turns.append({"role": role, "content": [text_part(text_of(words, role, here))]})
    return _asked(fields, turns, fields.pictures(), lead=True)


def _questions(fields: Fields, variant: int) -> dict:
    words = [text_of(fields.need(name), name, fields.where, variant) for name in ("question", "answer")]
    pictures = fields.pictures()
    if fields.has("picture") and not pictures and fields["images"] != []:
        fields.need("picture")  # a question about a picture that is not there teaches to make things up
    return _asked(fields, [*fields.history(), *exchange(*words)], pictures, lead=True)


def _alpaca(fields: Fields, variant: int) -> dict:
    words = text_of(fields.need("instruction"), "instruction", fields.where, variant)
    if fields.holds("input"):
        words += "\n" + text_of(fields["input"], "input", fields.where, variant)
    answer = text_of(fields.need("output"), "output", fields.where, variant)
    return _asked(fields, [*fields.history(), *exchange(words, answer)], fields.pictures(), lead=True)


def _prompts(fields: Fields, variant: int) -> dict:
    turns = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = fields.need(name)
        if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):  # TRL's conversations
            turns += value
        else:
            turns.append({"role": role, "content": [text_part(text_of(value, name, fields.where, variant))]})
    return _asked(fields, turns, fields.pictures(), lead=True)


def _captions(fields: Fields, variant: int) -> dict:
    caption = text_of(fields.need("text"), "text", fields.where, variant)
    fields.need("picture")
    pictures = fields.pictures()
    if len(pictures) != 1:
        raise ValueError(f"{fields.where}: {len(pictures)} pictures have one caption; give each a row of its own")
    return captioned(caption, pictures[0])


def _text(fields: Fields, variant: int) -> dict:
    words = text_of(fields.need("text"), "text", fields.where, variant, keep_spaces=True)
    return chat_record(("assistant", [text_part(words)])) | {"plain": True}


def _turn(fields: Fields, variant: int) -> dict:
    return chat_record(("assistant", [text_part(text_of(fields.need("text"), "text", fields.where, variant))]))


def _plain(fields: Fields, variant: int) -> dict:
    """LLaVA's first stage (arXiv 2304.08485): what the human says is left out, but for the picture."""
    turns = next((build for name, build in _CONVERSATIONS.items() if fields.has(name)), None)
    if turns is None:
        caption, picture = (parts(message) for message in _captions(fields, variant)["messages"])
    else:
        said: dict[str, list[dict]] = {"system": [], "user": [], "assistant": []}
        for message in turns(fields, variant)["messages"]:
            said[message["role"]] += parts(message)
        picture, caption = [part for part in said["user"] if part["type"] == "image"], said["assistant"]
        if len(picture) != 1 or [part["type"] for part in caption] != ["text"]:
            raise ValueError(
                f"{fields.where}: a record of the form plain is one picture and its one caption; leave the record out, "
                "or leave form out"
            )
    return chat_record(("user", picture), ("assistant", caption)) | {"plain": True}


def _interleaved(fields: Fields, variant: int) -> dict:
    build = next((build for name, build in _INTERLEAVED.items() if fields.has(name)), _text)
    if build is _text and fields.has("picture"):
        raise ValueError(
            f"{fields.where}: one text and its picture are no interleaved document; say form: captions, or form: plain"
        )
    return build(fields, variant) | {"plain": True}


def _obelics(fields: Fields, variant: int) -> dict:
    texts, images, where = fields.need("texts"), fields.need("images"), fields.where
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise ValueError(f"{where}: texts and images must be lists of one length, a null where the other has something")
    content = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if text and image is not None:
            raise ValueError(f"{where}: both a text and an image stand at place {place}; one of them must be null")
        if image is not None:
            content.append(image_part(picture_value(image)))
        elif text:
            content.append(text_part(text_of(text, f"texts.{place}", where)))
    return _document(content, where)


def _mmc4(fields: Fields, variant: int) -> dict:
    texts, infos, where = fields.need("text_list"), fields.need("image_info"), fields.where
    if not isinstance(texts, list) or not isinstance(infos, list):
        raise ValueError(f"{where}: text_list and image_info must be lists")
    before: dict[int, list[dict]] = {}
    for number, info in enumerate(infos):
        place = info.get("matched_text_index") if isinstance(info, dict) else None
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(texts):
            raise ValueError(
                f"{where}: image_info {number} has matched_text_index {shown(place)}; it must be one of the "
                f"{len(texts)} texts"
            )
        before.setdefault(place, []).append(image_part(_mmc4_image(info, number, where)))
    content = []
    for place, text in enumerate(texts):
        content += before.get(place, [])
        if text:
            content.append(text_part(text_of(text, f"text_list.{place}", where)))
    return _document(content, where)


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


def _document(content: list[dict], where: str) -> dict:
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


def _asked(fields: Fields, turns: Any, pictures: list, lead: bool = False) -> dict:
    """The record of a conversation and the pictures beside it; `lead` as of `conversation`."""
    system = fields["system"] if fields.holds("system") else None
    return {"messages": conversation(turns, pictures, fields.where, system=system, lead=lead)}


_BUILDERS = {
    "messages": _messages,
    "llava": _llava,
    "mmc4": _mmc4,
    "cauldron": _cauldron,
    "obelics": _obelics,
    "questions": _questions,
    "alpaca": _alpaca,
    "prompts": _prompts,
    "captions": _captions,
    "text": _text,
    "turn": _turn,
    "plain": _plain,
    "interleaved": _interleaved,
}
_CONVERSATIONS = {"messages": _messages, "conversations": _llava}
_INTERLEAVED = {"text_list": _mmc4, "texts": _obelics}
