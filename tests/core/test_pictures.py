"""The one reader of pictures: each mode in each format by each way in, what is refused and how, what large ones cost.

The truth of each file is computed beside it, from the levels that were written, not by Pillow's conversions.
"""

import base64
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from hybridgen.core.pictures import picture_file, pixels_hash, read_picture, read_pictures, with_pictures
from hybridgen.data.records import load_image
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor, as_rgb
from tests.processors import tiny_processor

HIGH, WIDE = 20, 24
GRAY = (np.arange(HIGH * WIDE, dtype=np.uint32).reshape(HIGH, WIDE) * 255 // (HIGH * WIDE - 1)).astype(np.uint8)
RGB = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], -1)
ALPHA = np.tile(np.linspace(0, 255, WIDE).astype(np.uint8), (HIGH, 1))
CLEAR = np.tile(np.arange(WIDE) < WIDE // 2, (HIGH, 1))  # the left half is transparent
EXIF_ORIENTATION = {  # tag -> what makes the stored pixels of the upright ones
    1: lambda levels: levels,
    2: lambda levels: levels[:, ::-1],
    3: lambda levels: levels[::-1, ::-1],
    4: lambda levels: levels[::-1],
    5: lambda levels: levels.swapaxes(0, 1),
    6: lambda levels: levels.swapaxes(0, 1)[::-1],
    7: lambda levels: levels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda levels: levels.swapaxes(0, 1)[:, ::-1],
}


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gray(levels: np.ndarray) -> np.ndarray:
    return np.stack([levels] * 3, -1)


def on_white(levels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return np.rint(levels * share + 255 * (1 - share)).astype(np.uint8)


def with_alpha(mode: str, alpha: np.ndarray = ALPHA) -> Image.Image:
    image = Image.fromarray(RGB if mode == "RGBA" else GRAY).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    return image


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(levels: np.ndarray, bits: int, colour: int, key: tuple[int, ...]) -> bytes:
    """A PNG of 2, 4 or 16 bits with a transparent colour, which Pillow cannot write."""
    high, wide = levels.shape[:2]
    if bits == 16:
        rows = levels.astype(">u2").reshape(high, -1).tobytes()
    else:
        every = np.unpackbits(levels.astype(np.uint8)[..., None], axis=-1)[..., -bits:]
        rows = np.packbits(every.reshape(high, -1), axis=-1).tobytes()
    size = len(rows) // high
    data = b"".join(b"\0" + rows[start : start + size] for start in range(0, len(rows), size))
    head = struct.pack(">IIBBBBB", wide, high, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tRNS", struct.pack(f">{len(key)}H", *key))]
    chunks += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def raw_tiff(levels: np.ndarray, bits: int, photometric: int) -> bytes:
    """A gray TIFF of 12 or 16 bits, which Pillow cannot write."""
    if bits == 12:
        every = np.unpackbits(levels.astype(">u2").view(np.uint8).reshape(*levels.shape, 2), axis=-1)[..., 4:]
        data = np.packbits(every.reshape(levels.shape[0], -1), axis=-1).tobytes()
    else:
        data = levels.astype("<u2").tobytes()
    tags = {256: levels.shape[1], 257: levels.shape[0], 258: bits, 259: 1, 262: photometric}
    tags |= {273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: levels.shape[0], 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def files() -> dict[str, tuple[bytes, np.ndarray, int]]:
    """name -> (file, the levels that must be seen, by how many they may differ)."""
    colours, grays = Image.fromarray(RGB), Image.fromarray(GRAY)
    black_or_white = np.where(GRAY >= 128, np.uint8(255), np.uint8(0))
    keyed, keyed_gray = np.where(CLEAR[..., None], np.uint8((255, 0, 255)), RGB), np.where(CLEAR, 7, GRAY | 8)
    of_key, of_gray_key = np.where(CLEAR[..., None], 255, RGB), gray(np.where(CLEAR, 255, GRAY | 8))
    four = np.where(CLEAR, 3, GRAY >> 4 | 4)  # levels of 4 bits, of which 3 is transparent
    deep = GRAY.astype(np.uint16) * 257
    bleached = with_alpha("RGBA", np.where(CLEAR, 0, 255).astype(np.uint8)).quantize(256)
    told = np.asarray(bleached.convert("RGBA"))
    palette = on_white(told[..., :3], told[..., 3])
    found = {
        f"{kind} {mode}": (saved(image, kind, **options), truth, margin)
        for mode, image, truth, margin, kinds in [
            ("RGB", colours, RGB, 0, ("PNG", "TIFF", "BMP", "WEBP", "PPM", "TGA", "JPEG2000")),
            ("L", grays, gray(GRAY), 0, ("PNG", "TIFF", "BMP", "PPM", "JPEG2000")),
            ("1", Image.fromarray(black_or_white).convert("1"), gray(black_or_white), 0, ("PNG", "TIFF", "BMP", "PPM")),
            ("P", grays.convert("P"), gray(GRAY), 0, ("PNG", "GIF", "TIFF", "BMP")),
            ("RGBA", with_alpha("RGBA"), on_white(RGB, ALPHA), 1, ("PNG", "TIFF", "WEBP", "TGA", "ICO")),
            ("LA", with_alpha("LA"), on_white(gray(GRAY), ALPHA), 1, ("PNG", "TIFF")),
            ("P with alpha", bleached, palette, 1, ("PNG",)),
            ("I;16", Image.fromarray(deep), gray(GRAY), 0, ("PNG", "TIFF", "PPM", "JPEG2000")),
            ("I", Image.fromarray(deep.astype(np.int32)), gray(GRAY), 0, ("TIFF",)),
            ("F", Image.fromarray((GRAY / 255).astype(np.float32)), gray(GRAY), 0, ("TIFF",)),
            ("CMYK", colours.convert("CMYK"), RGB, 0, ("TIFF",)),
            ("YCbCr", colours.convert("YCbCr"), RGB, 3, ("TIFF",)),
            ("LAB", colours.convert("LAB"), np.asarray(colours.convert("LAB").convert("RGB")), 0, ("TIFF",)),
        ]
        for kind in kinds
        for options in [{"WEBP": {"lossless": True}, "ICO": {"sizes": [image.size]}}.get(kind, {})]
    }
    smooth = np.asarray(Image.fromarray(RGB[:2, :2]).resize((WIDE, HIGH), Image.Resampling.BILINEAR))
    for mode in ("RGB", "CMYK"):  # Pillow writes CMYK inverted, as Adobe does
        file = saved(Image.fromarray(smooth).convert(mode), "JPEG", quality=100, subsampling=0)
        found[f"JPEG {mode}"] = file, smooth, 3
    found["JPEG L"] = saved(grays, "JPEG", quality=100), gray(GRAY), 3
    plain = saved(colours, "PNG")
    found["PNG RGB with gamma"] = plain[:33] + png_chunk(b"gAMA", struct.pack(">I", 100000)) + plain[33:], RGB, 0
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    found["PNG RGB with a profile"] = saved(colours, "PNG", icc_profile=profile), RGB, 0
    found["TIFF of two pages"] = saved(colours, "TIFF", save_all=True, append_images=[grays.convert("RGB")]), RGB, 0
    found["PNG animated"] = saved(colours, "PNG", save_all=True, append_images=[grays.convert("RGB")]), RGB, 0
    frames = {"save_all": True, "append_images": [grays.convert("RGB")]}
    found["WEBP animated"] = saved(colours, "WEBP", lossless=True, **frames), RGB, 0
    frames = {"save_all": True, "append_images": [grays.rotate(90)]}
    found["GIF animated"] = saved(grays.convert("P"), "GIF", **frames), gray(GRAY), 0
    clear_left = Image.new("P", (WIDE, HIGH), 1)
    clear_left.putpalette([9, 9, 9, 200, 100, 50])
    clear_left.paste(0, (0, 0, WIDE // 2, HIGH))
    cut = np.where(CLEAR[..., None], np.uint8(255), np.uint8((200, 100, 50)))
    found["GIF with a transparent index"] = saved(clear_left, "GIF", transparency=0), cut, 0
    found["PNG with a transparent index"] = saved(clear_left, "PNG", transparency=0), cut, 0
    half = np.where(CLEAR[..., None], on_white(np.full((1, 1, 3), 9), np.uint8([[128]])), np.uint8((200, 100, 50)))
    found["PNG with palette bytes"] = saved(clear_left, "PNG", transparency=b"\x80\xff"), half, 1
    found["PNG RGB key"] = saved(Image.fromarray(keyed), "PNG", transparency=(255, 0, 255)), of_key, 0
    found["PNG L key"] = saved(Image.fromarray(keyed_gray.astype(np.uint8)), "PNG", transparency=7), of_gray_key, 0
    found["PNG 16 bits key"] = (
        saved(Image.fromarray(keyed_gray.astype(np.uint16) * 257), "PNG", transparency=7 * 257), of_gray_key, 0,
    )  # fmt: skip
    found["PNG 1 bit key"] = (
        saved(Image.fromarray(np.where(CLEAR, 0, 255).astype(np.uint8)).convert("1"), "PNG", transparency=0),
        gray(np.full((HIGH, WIDE), 255, np.uint8)), 0,
    )  # fmt: skip
    found["PNG 4 bits key"] = raw_png(four, 4, 0, (3,)), gray(np.where(CLEAR, 255, four * 17).astype(np.uint8)), 0
    found["PNG 2 bits key"] = raw_png(four >> 2, 2, 0, (0,)), gray(np.where(CLEAR, 255, (four >> 2) * 85)), 0
    found["PNG 48 bits key"] = raw_png(keyed.astype(np.uint16) * 257, 16, 2, (65535, 0, 65535)), of_key, 0
    found["TIFF 12 bits"] = raw_tiff((GRAY.astype(np.uint16) << 4 | GRAY >> 4), 12, 1), gray(GRAY), 0
    found["TIFF 16 bits, white is zero"] = raw_tiff(65535 - deep, 16, 0), gray(GRAY), 0
    for tag, stored in EXIF_ORIENTATION.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        turned = Image.fromarray(np.ascontiguousarray(stored(RGB)))
        for kind in ("PNG", "TIFF", "WEBP"):
            options = {"lossless": True} if kind == "WEBP" else {}
            found[f"{kind} orientation {tag}"] = saved(turned, kind, exif=exif, **options), RGB, 0
        found[f"JPEG orientation {tag}"] = (
            saved(Image.fromarray(np.ascontiguousarray(stored(smooth))), "JPEG", quality=100, subsampling=0, exif=exif),
            smooth, 3,
        )  # fmt: skip
    return found


FILES = files()


def ways(file: Path) -> dict[str, Image.Image]:
    """A picture by every way in that needs no model."""
    content, processor = file.read_bytes(), HybridGenImageProcessor()
    encoded = base64.b64encode(content).decode()
    opened, user = Image.open(file), {"role": "user", "content": [{"type": "image", "image": content}]}
    return {
        "path": read_picture(file),
        "text": read_picture(str(file)),
        "relative": read_picture(file.name, file.parent),
        "file://": read_picture(file.as_uri()),
        "bytes": read_picture(content),
        "data:": read_picture(f"data:image/any;base64,{encoded}"),
        "base64": read_picture(encoded),
        "of datasets": read_picture({"bytes": content, "path": None}),
        "opened": read_picture(opened),
        "opened, read again": read_picture(opened),
        "record": load_image(file.name, file.parent, "here"),
        "as_rgb": as_rgb(Image.open(io.BytesIO(content))),
        "messages": with_pictures([user])[0]["content"][0]["image"],
        "processor": processor.fetch_images([str(file)])[0],
    }


@pytest.mark.parametrize("name", FILES)
def test_the_same_file_is_the_same_pixels_by_every_way_in(tmp_path, name):
    content, truth, margin = FILES[name]
    file = tmp_path / "a picture.dat"  # formats are told by content, not by suffix
    file.write_bytes(content)
    seen = ways(file)
    first = np.asarray(seen["path"])
    assert first.shape == (HIGH, WIDE, 3)
    assert np.abs(first.astype(int) - truth.astype(int)).max() <= margin
    for way, image in seen.items():
        assert image.mode == "RGB", way
        assert (np.asarray(image) == first).all(), way
        assert read_picture(image) is image, way
        assert pixels_hash(image) == pixels_hash(seen["path"]), way


MODES = {
    "HSV": Image.fromarray(RGB).convert("HSV"),
    "RGBX": Image.fromarray(RGB).convert("RGBX"),
    "RGBa": with_alpha("RGBA").convert("RGBa"),
    "La": with_alpha("LA").convert("La"),
    "PA": Image.fromarray(GRAY).convert("P").convert("PA"),
    "I of 8 bits": Image.fromarray(GRAY.astype(np.int32)),
    "I;16B": Image.frombytes("I;16B", (WIDE, HIGH), (GRAY.astype(">u2") * 257).tobytes()),
    "I;16L": Image.frombytes("I;16L", (WIDE, HIGH), (GRAY.astype("<u2") * 257).tobytes()),
}  # fmt: skip
TRUTH = {"RGBa": on_white(RGB, ALPHA), "La": on_white(gray(GRAY), ALPHA), "HSV": RGB, "RGBX": RGB}


@pytest.mark.parametrize("name", MODES)
def test_modes_that_no_file_has(name):
    margin = {"HSV": 7, "RGBa": 1, "La": 1}.get(name, 0)
    seen = np.asarray(read_picture(MODES[name])).astype(int)
    assert np.abs(seen - TRUTH.get(name, gray(GRAY)).astype(int)).max() <= margin


def test_a_picture_that_is_upright_rgb_is_not_copied():
    image = Image.fromarray(RGB)
    image.info["exif"] = b"Exif\0\0garbage"
    assert read_picture(image) is image
    assert as_rgb(image) is image


def exif_of(orientation: bytes, *others: bytes) -> bytes:
    entries = [orientation, *others]
    body = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries)
    return b"Exif\0\0" + body + struct.pack("<I", 0)


def tag(number: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI4s", number, kind, count, value)


BROKEN_EXIF = {
    "orientation 9": exif_of(tag(0x112, 3, 1, b"\x09\0\0\0")),
    "a text": exif_of(tag(0x112, 2, 4, b"abc\0")),
    "two": exif_of(tag(0x112, 3, 2, b"\x06\0\x08\0")),
    "cut": exif_of(tag(0x112, 3, 1, b"\x06\0\0\0"))[:-9],
    "no TIFF": b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff" + bytes(30),
    "resolution is a text": exif_of(tag(0x112, 3, 1, b"\x06\0\0\0"), tag(0x11A, 2, 4, b"abc\0")),  # TypeError
    "maker is a number": exif_of(tag(0x112, 3, 1, b"\x06\0\0\0"), tag(0x10F, 5, 1, struct.pack("<I", 8))),  # Attribute
    "a pointer to nowhere": exif_of(tag(0x112, 3, 1, b"\x09\0\0\0"), tag(0x8825, 4, 1, b"\xff\xff\0\0")),
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_keeps_a_picture_as_it_is(name):
    stored = Image.new("RGB", (WIDE, HIGH), (200, 30, 60))
    seen = read_picture(saved(stored, "JPEG", quality=95, exif=BROKEN_EXIF[name]))
    assert sorted(seen.size) == sorted(stored.size)
    assert np.abs(np.asarray(seen).astype(int) - (200, 30, 60)).max() < 4
    if name not in ("two", "a pointer to nowhere"):
        assert seen.size == stored.size


# --------------------------------------------------------------------------------------------------------- arrays

ARRAYS = {
    "uint8": RGB,
    "float32": (RGB / 255).astype(np.float32),
    "float64": RGB / 255,
    "uint16": RGB.astype(np.uint16) * 257,
    "int64": RGB.astype(np.int64),
    "channels first": RGB.transpose(2, 0, 1),
    "opaque": np.concatenate([RGB, np.full((HIGH, WIDE, 1), 255, np.uint8)], -1),
    "not contiguous": np.repeat(RGB, 2, axis=1)[:, ::2],
    "tensor": torch.from_numpy(RGB.copy()).permute(2, 0, 1),
    "tensor of floats": torch.from_numpy(RGB / 255).permute(2, 0, 1).float().requires_grad_(),
    "tensor, channels last": torch.from_numpy(RGB.copy()),
}
GRAY_ARRAYS = {
    "(H, W)": GRAY,
    "(H, W, 1)": GRAY[..., None],
    "tensor (H, W)": torch.from_numpy(GRAY.copy()),
    "tensor (1, H, W)": torch.from_numpy(GRAY.copy())[None],
    "floats": GRAY / 255,
}


def test_arrays_and_tensors_of_every_type():
    for name, array in ARRAYS.items():
        assert (np.asarray(read_picture(array)) == RGB).all(), name
    for name, array in GRAY_ARRAYS.items():
        assert (np.asarray(read_picture(array)) == gray(GRAY)).all(), name
    assert (np.asarray(read_picture(CLEAR)) == gray(np.where(CLEAR, 255, 0))).all()
    seen = np.asarray(read_picture(torch.from_numpy(RGB / 255).permute(2, 0, 1).bfloat16()))
    assert np.abs(seen.astype(int) - RGB).max() <= 1
    rgba = np.asarray(with_alpha("RGBA"))
    assert np.abs(np.asarray(read_picture(rgba)).astype(int) - on_white(RGB, ALPHA)).max() <= 1
    assert np.abs(np.asarray(read_picture(rgba / 255)).astype(int) - on_white(RGB, ALPHA)).max() <= 1
    assert np.asarray(read_picture(np.full((3, 3, 3), 1 + 1e-4))).max() == 255  # rounding, not another range


def test_batches_and_lists_are_taken_apart():
    other = RGB[:, ::-1]
    batch = np.stack([RGB, other])
    tensors = torch.from_numpy(batch).permute(0, 3, 1, 2)
    for sources in (batch, batch / 255, tensors, tensors / 255, [RGB, other], [[RGB], (other,)], [batch[:1], other]):
        seen = [np.asarray(image) for image in read_pictures(sources)]
        assert len(seen) == 2
        assert (seen[0] == RGB).all()
        assert (seen[1] == other).all()
    assert read_pictures([]) == []
    processor = HybridGenImageProcessor(image_size=16)
    pixels = processor([Image.fromarray(RGB), Image.fromarray(other)])["pixel_values"]
    assert torch.equal(processor(batch)["pixel_values"], pixels)
    assert torch.equal(processor(tensors / 255)["pixel_values"], pixels)


# ------------------------------------------------------------------------------------------------- what is refused

PNG = saved(Image.fromarray(RGB), "PNG")
JPEG = saved(Image.fromarray(RGB), "JPEG")
REFUSED = {
    "nothing": (b"", "the image of 0 bytes is empty"),
    "words": (b"no picture at all", "cannot be decoded: it is no picture in a format that Pillow knows"),
    "half a PNG": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "cannot be decoded .*[Tt]runcated"),
    "half a GIF": (saved(Image.fromarray(RGB), "GIF")[:-300], "cannot be decoded"),
    "half a WebP": (saved(Image.fromarray(RGB), "WEBP")[:-60], "cannot be decoded"),
    "half a TIFF": (saved(Image.fromarray(RGB), "TIFF")[:-500], "cannot be decoded"),
    "half a BMP": (saved(Image.fromarray(RGB), "BMP")[:-500], "cannot be decoded"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture, .*pip install pillow-heif"),
    "JPEG XL": (b"\xff\x0a" + bytes(40), "a JPEG XL picture.*pip install pillow-jxl-plugin"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing.*rsvg-convert"),
    "PDF": (b"%PDF-1.7\n", "a PDF document.*pdftoppm"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "a PostScript document"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git.lfs"),
    "a page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    "an address": ("https://example.org/a.png", "is an address; pictures are not downloaded"),
    "a data: URL": ("data:image/png;base64,*", "is not base64"),
    "base64 of words": (base64.b64encode(b"words " * 60).decode(), "the image of 360 bytes cannot be decoded"),
    "no file": ("gone.png", "there is no image gone.png"),
    "no name": ("", "is no path"),
    "a zero byte": ("a\0b.png", "is no path"),
    "a caption": ("a red house " * 40, "cannot be read .File name too long"),
    "a folder": (".", "is a folder, not a picture; name a file in it"),
    "a device": ("/dev/null", "is no file but a pipe or a device"),
    "a number": (7, "must be a file, its bytes, a PIL image, an array or a tensor, not int"),
    "nothing at all": (None, "not NoneType"),
    "an empty crop": (Image.new("RGB", (9, 30)).crop((5, 5, 5, 20)), r"the image has no pixels \(0x15\)"),
    "an empty array": (np.zeros((15, 0, 3), np.uint8), r"the image has no pixels \(0x15\)"),
    "an empty tensor": (torch.zeros(3, 0, 15), r"the image has no pixels \(15x0\)"),
    "no batch here": (np.zeros((2, 8, 8, 3), np.uint8), r"an array of shape \(2, 8, 8, 3\).*or a list of pictures"),
    "two channels": (np.zeros((8, 8, 2), np.uint8), r"an array of shape \(8, 8, 2\); give \(height, width, 3\)"),
    "a row": (torch.zeros(8), r"an array of shape \(8,\)"),
    "[-1, 1]": (np.linspace(-1, 1, 48).reshape(4, 4, 3), r"float64 values from -1 to 1; floats must be in \[0, 1\]"),
    "floats of 255": (RGB.astype(np.float32), "float32 values from 0 to 255"),
    "NaN": (np.full((4, 4, 3), np.nan), "values that are NaN or infinite"),
    "infinity": (torch.full((3, 4, 4), torch.inf), "values that are NaN or infinite"),
    "negative": (np.full((4, 4, 3), -1, np.int32), "int32 values from -1 to -1"),
    "32 bits": (np.full((4, 4, 3), 1 << 20), "int64 values from 1048576 to 1048576"),
    "complex": (np.zeros((4, 4, 3), complex), "values of type complex128"),
    "mode I": (Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "of mode 'I' has int32 values from 1048576"),
    "mode F": (Image.fromarray(np.full((4, 4), 99, np.float32)), "of mode 'F' has float32 values from 99 to 99"),
    "mode F, NaN": (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "of mode 'F' has values that are NaN"),
}


PROCESSOR = tiny_processor()


def prompt(image):
    return PROCESSOR.prompt([{"role": "user", "content": [{"type": "image", "image": image}]}])


WAYS_THAT_SAY_MORE = {  # batches are taken, and addresses downloaded, by the image processor; a message lacks its image
    "no batch here": (prompt,),
    "an address": (prompt,),
    "no name": (HybridGenImageProcessor(),),
    "nothing at all": (HybridGenImageProcessor(),),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source, message = REFUSED[name]
    for way in (read_picture, *WAYS_THAT_SAY_MORE.get(name, (HybridGenImageProcessor(), prompt))):
        with pytest.raises(ValueError, match=message) as error:
            way(source)
        assert "\n" not in str(error.value)
        assert type(error.value) is ValueError
    with pytest.raises(ValueError, match=f"a.jsonl:3: .*{message}"):
        read_picture(source, where="a.jsonl:3")


def test_files_of_formats_that_pillow_lacks_are_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x1cftypavif")
    with pytest.raises(ValueError, match=r"a.jpg is an AVIF picture.*newer pillow|a.jpg .*cannot be decoded"):
        read_picture(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no file but a pipe or a device"):  # and it does not wait for a writer
        read_picture(tmp_path / "pipe")


def test_names_of_files_as_users_write_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ein Bild.png").write_bytes(PNG)
    assert picture_file("~/ein Bild.png") == tmp_path / "ein Bild.png"
    assert picture_file(f"file://{tmp_path}/ein%20Bild.png") == tmp_path / "ein Bild.png"
    assert picture_file("ein Bild.png", tmp_path) == tmp_path / "ein Bild.png"
    assert (np.asarray(read_picture("~/ein Bild.png")) == RGB).all()


# -------------------------------------------------------------------------------------------- what large ones cost


@pytest.mark.parametrize("limit", [HIGH * WIDE - 1, HIGH * WIDE // 2 - 1])  # where Pillow warns, and where it raises
def test_pictures_of_too_many_pixels_are_refused(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=f"the {limit} pixels that PIL.Image.MAX_IMAGE_PIXELS allows; make it"):
            read_picture(PNG)
    with pytest.raises(ValueError, match="pixels that PIL.Image.MAX_IMAGE_PIXELS allows"):
        read_picture(Image.new("RGB", (WIDE, HIGH)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_picture(PNG).size == (WIDE, HIGH)


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (3, 3000), (5000, 40), (1, 1), (700, 500)])
def test_what_a_picture_costs_is_bounded_by_the_frame(size, monkeypatch):
    resize, made = Image.Image.resize, []

    def counted(image, *arguments, **settings):
        made.append(resize(image, *arguments, **settings))
        return made[-1]

    monkeypatch.setattr(Image.Image, "resize", counted)
    processor, image = HybridGenImageProcessor(image_size=32), Image.new("RGB", size, (9, 99, 200))
    for pixels in (processor.generation(image, 32, 48), processor.generation(image, 48, 32)):
        assert torch.allclose(((pixels + 1) * 127.5).amax((1, 2)), torch.tensor([9.0, 99.0, 200.0]), atol=0.01)
    processor.understanding([image])
    assert made
    assert all(image.width * image.height <= 16 * 32 * 48 for image in made)


def test_the_middle_of_a_thin_picture_is_that_of_the_whole():
    rng = np.random.default_rng(0)
    processor = HybridGenImageProcessor()

    def plain(image, high, wide):
        scale = max(high / image.height, wide / image.width)
        size = max(wide, round(image.width * scale)), max(high, round(image.height * scale))
        left, top = (size[0] - wide) // 2, (size[1] - high) // 2
        whole = image.resize(size, Image.Resampling.BICUBIC) if size != image.size else image
        return np.asarray(whole.crop((left, top, left + wide, top + high))).astype(int)

    for width, height in [(16, 16), (40, 30), (31, 177), (500, 40), (7, 9)]:  # as before, to the bit
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        seen = processor.generation(image, 24, 16)
        levels = plain(image, 24, 16).astype(np.uint8)
        assert (seen.permute(1, 2, 0).numpy() == levels / np.float32(127.5) - 1).all()
    for width, height in [(3, 900), (900, 3), (2, 101)]:  # to a level: rows may be resized before columns there
        across = np.linspace(60, 180, height)[:, None] + np.linspace(0, 40, width)
        image = Image.fromarray(np.stack([across, 240 - across, across], -1).astype(np.uint8))
        seen = ((processor.generation(image, 24, 16) + 1) * 127.5).permute(1, 2, 0).numpy()
        assert np.abs(seen - plain(image, 24, 16)).max() < 1.5
