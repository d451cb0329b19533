"""PNG files that say how they were made: the manifest as text, and before it the most of that in plain words."""

import io
import json
import re
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybridgen.checkpoints.manifest import KEY
from hybridgen.core.names import OF_PATH, SHORT_NAMES
from hybridgen.version import __version__

_LEFT_OUT = ("precision", "window", "forecast", "image_guidance_scale")  # of the plain words: speed, and of rare use


def png_texts(file: Path | BinaryIO) -> dict[str, str]:
    """The text fields of a PNG that can be read; none in files of other formats."""
    with Image.open(file) as opened:
        return dict(getattr(opened, "text", {}))


def png_text(manifest: dict) -> dict:
    """The text fields of a PNG: its manifest, and before it the most of that in plain words."""
    settings = manifest["settings"]
    names = {SHORT_NAMES.get(name, name): name for name in OF_PATH[manifest["path"]] if name not in _LEFT_OUT}
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


def png_bytes(image: Image.Image, text: dict) -> bytes:
    """A PNG with text fields; those that are None are left out."""
    info = PngInfo()
    for key, value in {**text, "hybridgen": __version__}.items():
        if value is not None:
            info.add_itxt(key, str(value))
    encoded = io.BytesIO()
    image.save(encoded, "PNG", pnginfo=info)
    return encoded.getvalue()


def slug(prompt: str) -> str:
    """A prompt as a file name: its first words, lower case."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"
