"""The one reader of pictures: from whatever holds a picture to an upright RGB picture, the same pixels by every way in.

    read_picture      one: a file, its bytes, a data: URL or base64, a PIL picture, an array or a tensor
    read_pictures     one, several, or a batch
    UnreadPicture     one that is read later, its size known before
    transparent_pixels where one is transparent
    with_pictures     chat messages, their image parts read
    pixels_hash       what was seen, whatever file it came from

What is decided here, for training, commands, the pipeline and the processor alike:

- Pictures are turned as their EXIF orientation says; EXIF that is broken keeps them as they are.
- What is transparent (alpha, palette, colour key) shows white.
- More than 8 bits are scaled by the range of their type, floats by [0, 1]; what has no known range is refused.
- Of an animation, the first frame. Colour profiles and gamma are ignored, as by the libraries of this field.
- Pictures without pixels, or with more than `PIL.Image.MAX_IMAGE_PIXELS`, are refused.

A picture that was read is read again at no cost, and is the same object.
"""

import base64
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hybridgen.core.messages import parts
from hybridgen.core.recognition import is_there, user_path, what_bytes_are
from hybridgen.core.values import one_line, shorten

# a path, file://, data: URL or base64; encoded bytes; {"bytes": ..., "path": ...} of the datasets library; pixels
Source = str | Path | bytes | dict | Image.Image | np.ndarray | Tensor

T = TypeVar("T")

_ALPHA = {"RGBA": "RGBA", "RGBa": "RGBA", "LA": "RGBA", "La": "LA", "PA": "RGBA"}  # mode -> next on the way to RGBA
_OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # Pillow makes RGB of them
_KEYED = ("1", "L", "P", "RGB")  # that may have a transparent colour
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_CHANNELS = (1, 3, 4)
_HALF_LEVEL = 0.5 / 255  # floats may be so far out of range, by rounding
_HEAD = 512  # bytes of a file that tell its kind
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_LONG_NAME = 255  # letters that the name of a file may have


def read_picture(source: Source, root: str | Path | None = None, where: str = "") -> Image.Image:
    """A picture, upright and in RGB.

    Args:
        source: floats of an array are in [0, 1]; its channels (1, 3, 4, or none) are the last axis in numpy and the
            first in torch, or the other where only that can be.
        root: the folder that relative paths are relative to; None = the working directory.
        where: said first in errors, such as `captions.jsonl:12`.

    Raises:
        ValueError: in one sentence, what is no picture, and what to do about it.
    """
    if isinstance(source, UnreadPicture):
        return source.read()
    return _read(source, root, where, _rgb)


def transparent_pixels(source: Source) -> Image.Image:
    """Where a picture is transparent: one in mode 1, upright, true where it is more so than not. Raises ValueError, see
    `read_picture`."""
    return _read(source, None, "", _transparent)


def _read(source: Source, root: str | Path | None, where: str, take: Callable[[Image.Image, str], T]) -> T:
    """What `take` makes of the opened picture and the words for it in errors."""
    where = f"{where}: " if where else ""
    if isinstance(source, dict):
        held = source.get("path") if source.get("bytes") is None else source["bytes"]
        if held is None:
            keys = ", ".join(map(repr, source)) or "nothing"
            raise ValueError(f"{where}an image as a dict holds 'bytes' or 'path', but this one holds {_short(keys)}")
        source = held
    if isinstance(source, str):
        source = _from_text(source, where)
    if isinstance(source, str | Path):
        return _from_file(source, root, where, take)
    if isinstance(source, bytes | bytearray | memoryview):
        what = f"{where}the image of {len(source)} bytes"
        with _one_sentence(what, bytes(source[:_HEAD])), Image.open(io.BytesIO(source)) as opened:
            return take(opened, what)
    what = f"{where}the image"
    if isinstance(source, np.ndarray | Tensor):
        with _one_sentence(what):
            return take(_from_array(source, what), what)
    if isinstance(source, Image.Image):
        with _one_sentence(what):
            return take(source, what)
    raise ValueError(
        f"{where}an image must be a file, its bytes, a PIL image, an array or a tensor, not {type(source).__name__}"
    )


class UnreadPicture:
    """A picture that is read where it is needed; its size is known before, from the head of the file.

    Args:
        source, root, where: as of `read_picture`, which takes this in place of them.
    """

    def __init__(self, source: Source, root: str | Path | None = None, where: str = ""):
        self._source, self._root, self._where = source, root, where

    def read(self) -> Image.Image:
        """The picture. Raises ValueError, see `read_picture`."""
        return read_picture(self._source, self._root, self._where)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, which nothing is decoded for, unless the file says behind its pixels
        how it is turned. Raises ValueError, see `read_picture`."""
        return _read(self._source, self._root, self._where, _upright_size)

    def content_hash(self) -> bytes:
        """A hash of the bytes of its file, of which nothing is decoded; of pixels that are in no file, `pixels_hash`.
        Raises ValueError, see `read_picture`."""
        return _read(self._source, self._root, self._where, _content_hash)


def read_pictures(sources: Any) -> list[Image.Image]:
    """One picture, a batch (an array of four axes, the first of them pictures), or lists of either -> a flat list.

    Raises:
        ValueError: see `read_picture`.
    """
    if isinstance(sources, list | tuple):
        return [picture for source in sources for picture in read_pictures(source)]
    if isinstance(sources, np.ndarray | Tensor) and sources.ndim == 4:
        return [read_picture(source) for source in sources]
    return [read_picture(sources)]


def with_pictures(
    messages: list[dict], root: str | Path | None = None, where: str = "", unread: bool = False
) -> list[dict]:
    """Chat messages with an upright RGB picture in each image part, or one that is to be read (`unread`). Raises
    ValueError, see `read_picture`."""
    take = UnreadPicture if unread else read_picture

    def read(part: dict) -> dict:
        return {**part, "image": take(part["image"], root, where)} if part["type"] == "image" else part

    return [
        message if isinstance(message["content"], str) else {**message, "content": [*map(read, parts(message))]}
        for message in messages
    ]


def picture_file(source: str | Path, root: str | Path | None = None) -> Path:
    """The file that a path, with `~` or as a file:// URL, names; it need not be there."""
    path = user_path(source)
    path = path if root is None else Path(root) / path
    if "\\" in str(source) and os.sep != "\\" and not is_there(path):  # written on Windows
        return picture_file(str(source).replace("\\", "/"), root)
    return path


def pixels_hash(picture: Image.Image) -> bytes:
    """A hash of a picture's size and pixels as they are seen, whatever file they came from."""
    picture = read_picture(picture)
    return hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()


def _content_hash(image: Image.Image, what: str) -> bytes:
    file = getattr(image, "fp", None)
    if file is None:
        return pixels_hash(image)
    file.seek(0)
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


# --------------------------------------------------------------------------------------------------- texts and files


def _from_text(text: str, where: str) -> bytes | str:
    """The bytes that a text encodes, or the path that it is."""
    if text.startswith("data:"):
        head, comma, body = text.partition(",")
        try:
            content = unquote_to_bytes(body)
            return base64.b64decode(content, validate=True) if head.endswith(";base64") else content
        except ValueError as error:  # binascii.Error is one
            shown = _short(text, 60)
            raise ValueError(f"{where}the data: URL {shown!r} is not base64 ({error}); encode it again") from None
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) and not text.startswith("file:"):
        raise ValueError(f"{where}the image {_short(text)!r} is an address; pictures are not downloaded, name a file")
    try:
        content = base64.b64decode("".join(text.splitlines()), validate=True)
    except ValueError:
        return text
    return content if len(text) > _LONG_NAME or _looks_like_picture(content) else text


def _looks_like_picture(content: bytes) -> bool:
    try:
        Image.open(io.BytesIO(content)).close()
    except Exception:  # Pillow's plugins raise anything, and then it is the text that it was
        return False
    return True


def _from_file(source: str | Path, root: str | Path | None, where: str, take: Callable[[Image.Image, str], T]) -> T:
    try:
        file = picture_file(source, root)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
    what = f"{where}the image {_short(str(file))}"
    if "\0" in str(file):
        raise ValueError(f"{where}the image {_short(repr(str(file)))} has a zero character in its name; name a file")
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{what} is a folder, not a picture; name a file in it")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{what} is no file but a pipe or a device; save the picture to a file, and name that")
        content = file.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        if root is None:
            raise ValueError(f"{where}there is no image {_short(str(file))}") from None
        looked_for = f"looked for {_short(str(file))}"
        raise ValueError(
            f"{where}the image {_short(str(source))!r} is not there ({looked_for}); paths are relative to the file"
        ) from None
    except OSError as error:
        raise ValueError(f"{what} cannot be read ({error.strerror or error})") from error
    with content:
        head = content.read(_HEAD)
        content.seek(0)
        with _one_sentence(what, head), Image.open(content) as opened:
            return take(opened, what)


class _Refused(ValueError):
    """A sentence of this file."""


@contextmanager
def _one_sentence(what: str, head: bytes | None = None) -> Iterator[None]:
    """Whatever Pillow raises inside (its plugins raise anything on damaged files) as one sentence.

    Args:
        head: the first bytes of the file, which tell its kind where Pillow knows none.
    """
    try:
        yield
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    except UnidentifiedImageError:
        raise ValueError(f"{what} {_unknown(head or b'')}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{what} has more than the {_most_pixels()}; make it smaller") from None
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"{what} cannot be decoded ({_short(reason)}); replace it") from error


def _unknown(head: bytes) -> str:
    """What a file is in which Pillow knows no picture, and the way out."""
    start, convert = head.lstrip(b"\xef\xbb\xbf \t\r\n"), "convert it to PNG first"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "is an AVIF picture, which this Pillow cannot read; pip install pillow-avif-plugin, or a newer pillow"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "is a HEIC picture, which Pillow cannot read; pip install pillow-heif, or save it as JPEG"
    if head[4:8] == b"ftyp":
        return "is a video; save one of its frames as PNG or JPEG, as ffmpeg does"
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "is a JPEG XL picture, which Pillow cannot read; pip install pillow-jxl-plugin, or save it as PNG"
    if start.startswith((b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in head:
        return f"is an SVG drawing, which has no pixels; {convert}, as rsvg-convert and inkscape do"
    if start.startswith(b"%PDF"):
        return f"is a PDF document; {convert}, as pdftoppm does"
    kind = what_bytes_are(head)
    if kind is not None and "picture" not in kind:
        return kind
    return "cannot be decoded: it is no picture in a format that Pillow knows; save it as PNG or JPEG"


def _short(text: str, most: int = 200) -> str:
    return shorten(text, most)


def _most_pixels() -> str:
    return f"{Image.MAX_IMAGE_PIXELS} pixels that PIL.Image.MAX_IMAGE_PIXELS allows"


# ------------------------------------------------------------------------------------------------ pictures of Pillow


def _rgb(image: Image.Image, what: str) -> Image.Image:
    """A picture of Pillow, decoded, upright and in RGB; one that is so already is returned as it is."""
    if not image.width or not image.height:
        raise _Refused(f"{what} has no pixels ({image.width}x{image.height})")
    if image.format == "EPS":  # Pillow would run Ghostscript, which runs programs
        raise _Refused(f"{what} is a PostScript document; convert it to PNG first")
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        size = f"{image.width}x{image.height}"
        raise _Refused(f"{what} has {size} pixels, more than the {_most_pixels()}; make it smaller")
    _load(image)
    image = _upright(image)
    if image.mode in _DEEP:
        return _from_deep(image, f"{what} of mode {image.mode!r}")
    if image.mode in _ALPHA or (image.mode in _KEYED and image.has_transparency_data):
        while image.mode != "RGBA":
            image = image.convert(_ALPHA.get(image.mode, "RGBA"))
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode not in _OPAQUE:
        raise _Refused(f"{what} has mode {image.mode!r}, whose colours are not known; convert it to RGB first")
    return image if image.mode == "RGB" else image.convert("RGB")


def _transparent(image: Image.Image, what: str) -> Image.Image:
    _rgb(image, what)  # refuses what is none
    image = _upright(image)
    if image.mode not in _ALPHA and not (image.mode in _KEYED and image.has_transparency_data):
        return Image.new("1", image.size)
    while image.mode != "RGBA":
        image = image.convert(_ALPHA.get(image.mode, "RGBA"))
    return image.getchannel("A").point(lambda level: 255 * (level < 128), "1")


def _load(image: Image.Image) -> None:
    """Decode, and say a PNG's transparent colour in the 8 bits that its pixels have then (Pillow leaves it as it was
    in 2, 4 or 16 bits)."""
    tiles = getattr(image, "tile", None)
    packing = tiles[0][3] if tiles and image.format == "PNG" else None
    image.load()
    key = image.info.get("transparency")
    if packing in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[packing]
    elif packing == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # broken EXIF raises anything, and says nothing
        return image


def _upright_size(image: Image.Image, what: str) -> tuple[int, int]:
    """Width and height after `_rgb`, from the head of the file where that tells."""
    if image.format == "PNG" and "exif" not in image.info and _says_more_behind(image.fp):
        return _rgb(image, what).size
    try:
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # a PNG's own would decode it
    except Exception:  # as `_upright`
        turned = 1
    if image.format == "TIFF" and turned != 1:  # some versions of Pillow turn these by themselves
        return _rgb(image, what).size
    return image.size[::-1] if turned in (5, 6, 7, 8) else image.size


def _says_more_behind(file: IO[bytes]) -> bool:
    """Whether a PNG has words or EXIF behind its pixels."""
    place, behind, found = file.tell(), False, False
    file.seek(8)
    while not found and len(head := file.read(8)) == 8:
        kind = head[4:]
        behind = behind or kind == b"IDAT"
        found = behind and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
        file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
    file.seek(place)
    return found


def _from_deep(image: Image.Image, what: str) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, in 32
        values = values.astype(np.uint16)
    tags, key = getattr(image, "tag_v2", {}), image.info.get("transparency")
    if tags.get(_BITS_PER_SAMPLE) == (12,):
        values = values << 4 | values >> 8
    levels = _levels(values, what)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow turns that over in 8 bits alone
        levels = 255 - levels
    if isinstance(key, int):
        levels = np.where(values == key, np.uint8(255), levels)
    return Image.fromarray(levels).convert("RGB")


# ------------------------------------------------------------------------------------------------ arrays and tensors


def _from_array(array: np.ndarray | Tensor, what: str) -> Image.Image:
    """(H, W), or (H, W, 1 | 3 | 4), or (1 | 3 | 4, H, W) -> a picture in RGB."""
    usual = 0 if isinstance(array, Tensor) else 2  # axis of the channels
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    shape, axes = array.shape, (usual, 2 - usual)
    axis = next((axis for axis in axes if array.ndim == 3 and shape[axis] in _CHANNELS), None)
    if array.ndim != 2 and axis is None:
        raise _Refused(
            f"{what} is an array of shape {shape}; give (height, width, 3), or (3, height, width) for a tensor"
            + (", or a list of pictures" if array.ndim == 4 else "")
        )
    if axis is not None:
        array = np.moveaxis(array, axis, 2)
        array = array[..., 0] if array.shape[2] == 1 else array
    if not array.size:
        raise _Refused(f"{what} has no pixels ({array.shape[1]}x{array.shape[0]})")
    return _rgb(Image.fromarray(np.ascontiguousarray(_levels(array, what))), what)


def _levels(values: np.ndarray, what: str) -> np.ndarray:
    """Values of any type -> levels of 8 bits. Raises ValueError where their range is not known."""
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "f":
        return _levels_of_floats(values, what)
    if kind not in "iu":
        raise _Refused(f"{what} has values of type {values.dtype}; give uint8, or floats in [0, 1]")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise _Refused(f"{what} has {values.dtype} values from {low} to {high}; give 8 bits, or 16 of whole range")
    if values.dtype != np.uint16 and high < 256:
        return values.astype(np.uint8)
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # to the nearest


def _levels_of_floats(values: np.ndarray, what: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())  # NaN if one is
    if not np.isfinite([low, high]).all():
        raise _Refused(f"{what} has values that are NaN or infinite; floats must be in [0, 1]")
    if low < -_HALF_LEVEL or high > 1 + _HALF_LEVEL:
        raise _Refused(f"{what} has {values.dtype} values from {low:g} to {high:g}; floats must be in [0, 1]")
    return np.rint(values.clip(0, 1).astype(np.float32) * 255).astype(np.uint8)
