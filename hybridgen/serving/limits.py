"""What a request may ask for; all of it is checked before anything is decoded or computed.

Pictures of a request come in the request: as a `data:` URL or as an uploaded part. Nothing that a client says is ever
taken for a file or an address of the server.
"""

import base64
import binascii
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hybridgen.core.pictures import read_picture, transparent_pixels
from hybridgen.core.utf8 import check_text
from hybridgen.core.values import shown
from hybridgen.serving.errors import bad

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # that uploaded pictures may have


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    Args:
        body_bytes: of a request.
        image_bytes, image_pixels: of a picture in it, encoded and decoded.
        images_in: pictures in a request.
        text_characters: of all texts in a request.
        messages: of a conversation.
        images: pictures that one request may have drawn.
        image_tokens: of one of them, which bounds its size; also its codes.
        steps: of denoising.
        new_tokens: of text.
        window: codes that are read at once.
        seconds: a request may wait and be made.
        upload_seconds: the sending of a request may take.
    """

    body_bytes: int = 32 << 20
    image_bytes: int = 10 << 20
    image_pixels: int = 16 << 20
    images_in: int = 16
    text_characters: int = 100_000
    messages: int = 200
    images: int = 8
    image_tokens: int = 4096
    steps: int = 200
    new_tokens: int = 4096
    window: int = 16
    seconds: float = 300.0
    upload_seconds: float = 60.0

    def check(self, name: str, value: int | None, param: str | None = None) -> None:
        """Raises ApiError if a count is more than the limit of this name."""
        most = getattr(self, name)
        if value is not None and value > most:
            param = name if param is None else param
            raise bad(f"{param} is {value}; this server allows at most {most}", param, "limit_exceeded")


def parse_json(body: bytes) -> dict:
    """A request's object. Raises ApiError for what is none."""
    try:
        content = json.loads(body, parse_constant=_no_number, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad(f"the request is not valid JSON ({reason[:200]})", code="invalid_json") from None
    if not isinstance(content, dict):
        raise bad(f"the request is {shown(content)}; send a JSON object", code="invalid_json")
    return content


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} is given twice")
    return content


def take_text(name: str, value: Any) -> str:
    """A text of a request. Raises ApiError for what is none, or no UTF-8."""
    if not isinstance(value, str):
        raise bad(f"{name} is {shown(value)}; give a text", name)
    try:
        return check_text(value, name)
    except ValueError as error:
        raise bad(str(error), name) from None


def take_data_url(name: str, url: Any, limits: Limits) -> Image.Image:
    """A picture in a `data:` URL. Raises ApiError for anything else."""
    if not isinstance(url, str) or not url.startswith("data:"):
        raise bad(
            f"{name} is {shown(url)}; send the picture itself as data:image/png;base64,..., no file or address is read",
            name,
            "invalid_image_url",
        )
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise bad(f"{name} is {shown(url)}; a data: URL of a picture is data:image/png;base64,...", name)
    limits.check("image_bytes", len(body) * 3 // 4 - 2, name)
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"{name} is not base64 ({error}); encode it again", name, "invalid_base64") from None
    return take_picture(name, content, limits)


def take_mask(name: str, content: bytes, limits: Limits, size: tuple[int, int]) -> Image.Image:
    """An uploaded mask in the form of the API, whose transparent pixels say what is redrawn: white there, black
    elsewhere.

    Args:
        size: width and height of the picture that it is of.

    Raises:
        ApiError: it has another size, or nothing transparent.
    """
    mask = take_picture(name, content, limits, transparent_pixels)
    if mask.size != size:
        sizes = f"{mask.width}x{mask.height} pixels, but the image is {size[0]}x{size[1]}"
        raise bad(f"{name} is {sizes}; send a mask of the image's size", name, "invalid_mask")
    if not mask.getbbox():
        raise bad(f"{name} has no transparent pixel, so that nothing would be redrawn", name, "invalid_mask")
    return mask


def take_picture(
    name: str, content: bytes, limits: Limits, read: Callable[[bytes], Image.Image] = read_picture
) -> Image.Image:
    """An uploaded picture, upright and in RGB. Its size is read from its head, before any pixel is.

    Args:
        read: what is made of its bytes.
    """
    limits.check("image_bytes", len(content), name)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            pixels, size = opened.width * opened.height, f"{opened.width}x{opened.height}"
    except Exception:  # Pillow's plugins raise anything on damaged files
        known = ", ".join(FORMATS)
        raise bad(f"{name} is no picture that can be read; send one of {known}", name, "invalid_image") from None
    if pixels > limits.image_pixels:
        most = limits.image_pixels
        raise bad(
            f"{name} has {size} pixels; this server reads at most {most}, make it smaller", name, "image_too_large"
        )
    try:
        return read(content)
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else "it is damaged"
        raise bad(f"{name} cannot be read ({said[:300]})", name, "invalid_image") from None
