"""Records: one chat conversation each, as JSON lines hold them, checked before anything is made of them.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]},
                  {"role": "assistant", "content": [{"type": "image", "image": "0001.png"}]}]}

The format is that of transformers' chat templates, and the same for text-to-image, questions about pictures, plain text
and interleaved documents. Other keys beside `messages` are kept and ignored. The path of an image is relative to the
file that names it, not to the working directory. In memory an image may also be its encoded bytes, or what the datasets
library makes of one, {"bytes": ..., "path": ...}.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from hybridgen.core.messages import check_messages, parts
from hybridgen.core.pictures import read_picture, with_pictures

RecordImage = str | bytes | dict | Image.Image  # dict: {"bytes": ..., "path": ...}, one of them may be None


def chat_record(*turns: tuple[str, list[dict]]) -> dict:
    """A record of (role, parts) turns."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def image_part(image: RecordImage) -> dict:
    return {"type": "image", "image": image}


def picture_value(value: Any) -> Any:
    """The picture that an image part or a column names, out of what some data sets wrap it in: a list of one, {"url":
    ...} (OpenAI), {"path": ...}; {"bytes": ..., "path": ...} stays."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and "bytes" not in value:
        value = next((value[key] for key in ("path", "url", "image", "base64", "data") if value.get(key)), value)
    if isinstance(value, dict) and value.get("bytes") is None and not value.get("path"):
        return None
    return value


def check_record(obj: Any, where: str) -> dict:
    """Return the object if it is a record.

    Args:
        where: said first in errors, such as `captions.jsonl:12`.

    Raises:
        ValueError: what is wrong with it, in one sentence.
    """
    if not isinstance(obj, dict) or "messages" not in obj:
        raise ValueError(f"{where}: a record must be an object with the key messages, as {{'messages': [...]}}")
    for message in check_messages(obj["messages"], where):
        for part in parts(message):
            if part["type"] == "image" and not isinstance(part["image"], RecordImage):
                kind = type(part["image"]).__name__
                raise ValueError(f"{where}: the image of an image part must be the path of a file, not {kind}")
    return obj


def load_images(record: dict, root: Path, where: str, unread: bool = False) -> dict:
    """A copy of the record whose contents are parts, with an upright RGB picture in place of each path, or with one
    that is to be read (`unread`: `core.pictures.UnreadPicture`).

    Raises:
        ValueError: naming an image that is missing or cannot be decoded.
    """
    messages = [{**message, "content": parts(message)} for message in record["messages"]]
    return {**record, "messages": with_pictures(messages, root, where, unread)}


def load_image(image: RecordImage, root: Path, where: str) -> Image.Image:
    """One picture, see `core.pictures.read_picture`."""
    return read_picture(image, root, where)
