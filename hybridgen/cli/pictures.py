"""Pictures of the command line: read, and written as PNG files that say how they were made (`checkpoints.png`).

No file is ever written over: a name that is taken gets a number.
"""

import contextlib
import itertools
from pathlib import Path

from PIL import Image

from hybridgen.checkpoints.png import png_bytes
from hybridgen.core.files import write_whole
from hybridgen.core.pictures import read_picture


def open_picture(file: str | Path) -> Image.Image:
    """A picture from disk, see `core.pictures.read_picture`."""
    return read_picture(Path(file))


def save_png(image: Image.Image, folder: Path, name: str, text: dict) -> Path:
    """Write `name`.png with text fields, or `name-2`.png where there is such a file, and so on; returns the path."""
    return write_new(folder, name, ".png", png_bytes(image, text))


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
