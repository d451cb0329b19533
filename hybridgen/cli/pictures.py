"""Pictures of the command line: opened, named, and written as PNG files that say how they were made.

The fact a newcomer gets wrong: no file is ever written over. A name that is taken gets a number.
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybridgen.checkpoints.manifest import KEY
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.version import __version__


def open_picture(file: Path) -> Image.Image:
    """A picture from disk, read whole. Raises ValueError naming the file when it is missing or no picture."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise ValueError(f"there is no image {file}") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises on broken files
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def in_png(made: dict) -> dict:
    """What a PNG says of itself: its manifest, and the most of it in plain words."""
    settings, hidden = made["settings"], ("precision", "window")  # how fast, not what
    names = {name: told for name, told in DrawSettings.names(made["path"]).items() if name not in hidden}
    return {
        "prompt": made["prompt"],
        "negative prompt": made["negative_prompt"],
        "path": made["path"],
        "seed": made["seed"],
        **{name: settings[told] for name, told in names.items() if told in settings},
        "size": f"{made['width']}x{made['height']}",
        "checkpoint": made.get("checkpoint"),
        KEY: json.dumps(made),
    }


def slug(prompt: str) -> str:
    """A prompt as a file name: its first words, lower case."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"


def save_png(image: Image.Image, folder: Path, name: str, facts: dict) -> Path:
    """Write `name`.png with `facts` as its text, under another number where there is such a file; returns the path."""
    text = PngInfo()
    for key, value in {**facts, "hybridgen": __version__}.items():
        if value is not None:
            text.add_itxt(key, str(value))
    with new_file(folder, name, ".png") as opened:
        image.save(opened, "PNG", pnginfo=text)
    return Path(opened.name)


def new_file(folder: Path, name: str, suffix: str) -> BinaryIO:
    """A file to write, under another number where there is such a file."""
    number = 1
    while True:
        with contextlib.suppress(FileExistsError):  # x: never over another file, also when two commands run at once
            return open(folder / f"{name}{'' if number == 1 else f'-{number}'}{suffix}", "xb")
        number += 1


def folder_to_write(folder: Path) -> Path:
    """The folder, made if need be, before anything long begins. Raises ValueError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{folder} cannot be a folder for results: a file is in its place") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to; choose another --out")
    return folder
