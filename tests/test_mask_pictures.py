"""The drawn masks of docs/concepts.md (scripts/mask_pictures.py): they are those of today, and right."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("mask_pictures", ROOT / "scripts" / "mask_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawn_masks_are_those_of_today(drawing):
    """Drawn again, they are the committed ones to the byte; if not, `python scripts/mask_pictures.py` and look."""
    for name, panels in drawing.pictures().items():
        file = DOCS / "images" / name
        assert drawing.draw(panels) == file.read_text(encoding="utf-8"), name
        assert file.stat().st_size < 25_000
        assert f"(images/{name})" in (DOCS / "concepts.md").read_text(encoding="utf-8")


SEEN_BY = """
x . . . . . . . . . .
x x . . . . . . . . .
x x x . . . . . . . .
x x x x . . . . . . .
x x x x x x x x . . .
x x x x x x x x . . .
x x x x x x x x . . .
x x x x x x x x . . .
x x x x x x x x x . .
x x x x x x x x x x .
x x x x x x x x x x x
"""  # three words, the frame, four patches, the frame, two words


def test_a_drawn_mask_is_what_one_would_draw_by_hand(drawing):
    """Read off the squares of the SVG: where they stand, and which are not empty."""
    panel = drawing.pictures()["masks_paths.svg"][1]
    filled = [["."] * 11 for _ in range(11)]
    for colour, squares in re.findall(r'<path fill="(#\w+)" d="([^"]+)"', "".join(drawing.draw_panel(panel))):
        for left, top in re.findall(r"M(\d+) (\d+)h", squares):
            key = (int(left) - drawing.LEGEND) // drawing.CELL
            query = (int(top) - drawing.HEAD - drawing.LEGEND) // drawing.CELL
            filled[query][key] = "." if colour == drawing.EMPTY else "x"
    assert "\n".join(" ".join(row) for row in filled) == SEEN_BY.strip()
