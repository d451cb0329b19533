"""Pictures of the command line: how they are read, what is said of bad ones, the names of files."""

import io
import os
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from hybridgen.checkpoints.png import slug
from hybridgen.core.pictures import pixels_hash
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.pipeline_hybridgen import HybridGenPipeline


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("An orc, BLUE background!", "an-orc-blue-background"),
        ("猫", "picture"),
        ("a " * 40, "a" + "-a" * 23),
        ("", "picture"),
    ],
)
def test_names_of_files(prompt, name):
    assert slug(prompt) == name


def test_commands_see_a_photograph_upright(run, tiny_checkpoint, doll, tmp_path, monkeypatch):
    """`ask --image`, `chat /image` and `sample --image`, with a path and as a file:// URL."""
    exif = Image.Exif()
    exif[0x0112] = 6
    phone = tmp_path / "a phone.png"
    stored = Image.open(doll).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    stored.save(phone, exif=exif)
    seen, understanding = [], HybridGenImageProcessor.understanding_levels

    def spy(processor, image):
        seen.append(pixels_hash(image))
        return understanding(processor, image)

    monkeypatch.setattr(HybridGenImageProcessor, "understanding_levels", spy)
    lines = io.StringIO(f"/image {phone}\nwhat is this?\n/image {phone.as_uri()}\nand this?\n")
    for image in (doll, phone, phone.as_uri()):
        assert run("ask", tiny_checkpoint, "--image", image, "--question", "what?", "--max-new-tokens", 1)[0] == 0
    drawn = ("--prompt", "an orc", "--steps", 1, "--read", "understanding", "--image", phone, "--out", tmp_path / "out")
    assert run("sample", tiny_checkpoint, *drawn)[0] == 0
    monkeypatch.setattr("sys.stdin", lines)
    assert run("chat", tiny_checkpoint, "--max-new-tokens", 1, "--out", tmp_path / "chat")[0] == 0
    assert len(seen) >= 6
    assert set(seen) == {pixels_hash(Image.open(doll))}


def damaged_exif() -> bytes:
    """A whole JPEG with EXIF that makes Pillow warn."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x11A, 5, 1, 60000) + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def tiff_of_many_samples() -> bytes:
    """A TIFF that makes Pillow log an error."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    return file.getvalue().replace(struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 999))


PNG = io.BytesIO()
Image.fromarray(np.arange(1600).reshape(40, 40).astype(np.uint8)).save(PNG, "PNG")
BAD = {
    "nothing": (b"", "is empty; it was cut off"),
    "words": (b"no picture", "cannot be decoded: it is no picture in a format that Pillow knows"),
    "half": (PNG.getvalue()[:90], "cannot be decoded"),
    "a HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC picture, "),
    "a PDF": (b"%PDF-1.7", "is a PDF document"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "pointer"),
    "a page": (b"<html><body>404</body></html>", "HTML"),
    "a TIFF of 999 colours": (tiff_of_many_samples(), "cannot be decoded"),
    "a bomb that Pillow warns of": (PNG.getvalue(), "has 40x40 pixels, more than the"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_one_line(run, tiny_checkpoint, tmp_path, monkeypatch, caplog, name):
    content, message = BAD[name]
    (tmp_path / "x.png").write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 if "bomb" in name else 2000)
    monkeypatch.setattr(HybridGenPipeline, "answer", None)  # nothing is asked
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, lines, error = run("ask", tiny_checkpoint, "--image", tmp_path / "x.png", "--question", "what?")
    assert (code, lines, error.count("\n")) == (2, [], 1)
    assert message in error
    assert "x.png" in error
    assert not [record for record in caplog.records if record.name.startswith("PIL")]  # which would be printed, too


def test_what_pillow_warns_of_is_not_printed(run, tiny_checkpoint, tmp_path):
    (tmp_path / "x.jpg").write_bytes(damaged_exif())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Image.open(tmp_path / "x.jpg").getexif().get(0x11A)
        assert warned
        warned.clear()
        arguments = ("--question", "what?", "--max-new-tokens", 1)
        code, _, _ = run("ask", tiny_checkpoint, "--image", tmp_path / "x.jpg", *arguments)
    assert code == 0
    assert not [warning for warning in warned if "PIL" in warning.filename]


def test_a_named_pipe_is_refused_and_not_waited_for(run, tiny_checkpoint, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code, _, error = run("ask", tiny_checkpoint, "--image", tmp_path / "pipe", "--question", "what?")
    assert code == 2
    assert "pipe is no file but a pipe or a device; save the picture to a file" in error
