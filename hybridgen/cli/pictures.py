"""Pictures of the command line: read, named, and written as PNG files that say how they were made.

No file is ever written over: a name that is taken gets a number.
"""

import contextlib
import io
import itertools
import json
import re
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybridgen.checkpoints.manifest import KEY
from hybridgen.core.files import write_whole
from hybridgen.core.pictures import read_picture
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.version import __version__


def open_picture(file: str | Path) -> Image.Image:
    """A picture from disk, see `core.pictures.read_picture`."""
    return read_picture(Path(file))


def png_texts(file: Path) -> dict[str, str]:
    """The text fields of a PNG that can be read; none in files of other formats."""
    with Image.open(file) as opened:
        return dict(getattr(opened, "text", {}))


def png_text(manifest: dict) -> dict:
    """The text fields of a PNG: its manifest, and before it the most of that in plain words."""
    settings, speed_only = manifest["settings"], ("precision", "window")
    names = {name: full for name, full in DrawSettings.names(manifest["path"]).items() if name not in speed_only}
    return {
        "prompt": manifest["prompt"],
        "negative prompt": manifest["negative_prompt"],
        "path": manifest["path"],
        "seed": manifest["seed"],
        **{name: settings[full] for name, full in names.items() if full in settings},
        "size": f"{manifest['width']}x{manifest['height']}",
        "checkpoint": manifest.get("checkpoint"),
        KEY: json.dumps(manifest),
    }


def slug(prompt: str) -> str:
    """A prompt as a file name: its first words, lower case."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"


def save_png(image: Image.Image, folder: Path, name: str, text: dict) -> Path:
    """Write `name`.png with text fields, or `name-2`.png where there is such a file, and so on; returns the path."""
    return write_new(folder, name, ".png", png_bytes(image, text))


def png_bytes(image: Image.Image, text: dict) -> bytes:
    """A PNG with text fields; those that are None are left out."""
    info = PngInfo()
    for key, value in {**text, "hybridgen": __version__}.items():
        if value is not None:
            info.add_itxt(key, str(value))
    encoded = io.BytesIO()
    image.save(encoded, "PNG", pnginfo=info)
    return encoded.getvalue()


def write_new(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write a file that was not there before: `name`, `name-2`, `name-3` and so on; there whole, or not at all.

    Raises:
        OSError: with the file's name, that it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        file = folder / f"{name}{'' if number == 1 else f'-{number}'}{suffix}"
        with contextlib.suppress(FileExistsError):
            file.touch(exist_ok=False)  # the name is ours, also when two commands run at once
            break
    try:
        write_whole(file, content)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return file
