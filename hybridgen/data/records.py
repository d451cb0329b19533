"""Records: one chat conversation each, as JSON lines hold them, checked before anything is made of them.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]},
                  {"role": "assistant", "content": [{"type": "image", "image": "0001.png"}]}]}

The format is that of transformers' chat templates, and the same for text-to-image, questions about pictures, plain text
and interleaved documents. Other keys beside `messages` are kept and ignored. The path of an image is relative to the
file that names it, not to the working directory. In memory an image may also be its encoded bytes, or what the datasets
library makes of one, {"bytes": ..., "path": ...}.
"""

import io
import struct
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from hybridgen.core.messages import check_messages, parts

RecordImage = str | bytes | dict | Image.Image  # dict: {"bytes": ..., "path": ...}, one of them may be None
# what PIL raises on files that are damaged, no picture, or too large
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def chat_record(*turns: tuple[str, list[dict]]) -> dict:
    """A record of (role, parts) turns."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def image_part(image: RecordImage) -> dict:
    return {"type": "image", "image": image}


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


def load_images(record: dict, root: Path, where: str) -> dict:
    """A copy of the record with a PIL image in place of each path.

    Raises:
        ValueError: naming an image that is missing or cannot be decoded.
    """

    def with_image(part: dict) -> dict:
        return {**part, "image": load_image(part["image"], root, where)} if part["type"] == "image" else part

    messages = [{**message, "content": [with_image(part) for part in parts(message)]} for message in record["messages"]]
    return {**record, "messages": messages}


def load_image(image: RecordImage, root: Path, where: str) -> Image.Image:
    """One picture, decoded and turned upright as its EXIF tag says; a PIL image stays as it is.

    Raises:
        ValueError: the file is missing, or is not a picture that PIL can decode whole.
    """
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, bytes):
        return _decode(io.BytesIO(image), f"{where}: the image of {len(image)} bytes")
    if not isinstance(image, str) or not image:
        raise ValueError(f"{where}: the image must be a file or the bytes of one, not {type(image).__name__}")
    if "://" in image:
        raise ValueError(f"{where}: the image {image!r} is an address; pictures are not downloaded, name a file")
    path = root / image
    if not path.is_file():
        raise ValueError(
            f"{where}: the image {image!r} is not there (looked for {path}); paths are relative to the file"
        )
    return _decode(path, f"{where}: the image {path}")


def _decode(file: Path | io.BytesIO, what: str) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened)
    except DECODE_ERRORS as error:
        reason = str(error).replace(repr(file), "it")
        raise ValueError(f"{what} cannot be decoded ({reason}); replace it or drop the record") from error
