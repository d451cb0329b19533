"""Readers of written text (OCR), behind one small protocol: pictures -> what each says.

A reader knows nothing of who drew a picture, and makes mistakes of its own; so what it reads in the true pictures
stands beside what it reads in drawn ones. `rapidocr` (extra `ocr`) runs PP-OCRv6 with weights that lie in its wheel
(Apache-2.0, Baidu and RapidAI): nothing is downloaded. It was trained on photographs and documents, so small pictures
are enlarged before it looks, by a smooth filter and with more of their rim around.
"""

import importlib.util
import unicodedata
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from hybridgen.evaluation.named_objects import load_named

ENLARGED = 256  # pixels a side that a smaller picture is brought to, a whole multiple
_RIM = 32  # pixels of rim repeated around it, then


class Reader(Protocol):
    """Reads pictures: one text each, its lines from the top, divided by line feeds; empty where nothing stands."""

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]: ...


def open_reader(name: str) -> Reader:
    """`rapidocr`, or a reader of one's own, a callable (`named_objects`).

    Raises:
        ValueError: no reader has that name, or its package is not installed.
    """
    if name == "rapidocr":
        return RapidReader()
    if ":" not in name:
        raise ValueError(f"there is no reader {name!r}; choose rapidocr, or name your own as MODULE:NAME")
    return load_named("reader", name, "callable: pictures -> list of texts")


class RapidReader:
    """PP-OCRv6 through `rapidocr`: finds lines, then reads each.

    Raises:
        ValueError: `rapidocr` or what it runs on is not installed.
    """

    def __init__(self):
        missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"reading text needs {' and '.join(missing)}, which is not installed: pip install 'hybridgen[ocr]', or "
                "name another reader by --option reader=MODULE:NAME, or none by reader=none"
            )
        from rapidocr import RapidOCR  # of the extra `ocr`

        threads = torch.get_num_threads()
        settings = {
            "Global.log_level": "error",
            "Global.use_cls": False,  # whether a line stands on its head
            "Global.text_score": 0.0,  # what it is unsure of, it may say all the same
            "Det.limit_type": "max",  # no further enlarging: 736 pixels a side cost five times as much
            "Det.limit_side_len": 960,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        self._engine = RapidOCR(params=settings)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        return [self._read(picture) for picture in pictures]

    def _read(self, picture: Image.Image) -> str:
        found = self._engine(np.ascontiguousarray(enlarged(picture)[..., ::-1]))  # as OpenCV orders colours
        return "\n".join(found.txts or ())


def enlarged(picture: Image.Image) -> np.ndarray:
    """A small picture as a reader sees it: (H, W, 3) uint8."""
    picture = picture.convert("RGB")
    times = max(ENLARGED // max(picture.size), 1)
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    rim = _RIM if times > 1 else 0
    return np.pad(np.asarray(picture), ((rim, rim), (rim, rim), (0, 0)), mode="edge")


def letters_only(text: str) -> str:
    """What counts of a reading: its letters, small, without accents, spaces and marks ("Faír," -> "fair")."""
    plain = unicodedata.normalize("NFKD", text.lower())
    return "".join(letter for letter in plain if letter.isalpha())
