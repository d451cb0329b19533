"""The masks that docs/concepts.md shows: `python scripts/mask_pictures.py` writes them to docs/images.

Each is the mask that the backbone is given, made by `hybridgen.core.layout` as for training: a row of cells for each
token, filled where it sees the token of the column, in the colour of what the looking token is. They are SVG, written
here line by line, so that they are small, and the same to the byte on every machine (a test makes them again).
"""

import argparse
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

import hybridgen  # noqa: F401  first: it mends torchvision beside a CPU build of torch
from hybridgen.core.files import whole_file
from hybridgen.core.layout import (
    ImageSegment,
    SequenceLayout,
    SpecialTokens,
    TextSegment,
    Window,
    dense_mask,
    find_reach,
    infer_image_ids,
    lay_out,
    pack,
)

BEGIN, END, PAD, SEEN, PATCH, CODE = range(1000, 1006)
TOKENS = SpecialTokens(begin_image=BEGIN, end_image=END, pad=PAD, understanding=SEEN, diffusion=PATCH, vq=CODE)
NAMES = {BEGIN: "[", END: "]", PAD: "pad", SEEN: "seen", PATCH: "patch", CODE: "code"}
COLOURS = {SEEN: "#7a4fa3", PATCH: "#b4541a", CODE: "#3c7d4e", PAD: "#b8bcc2"}  # a word's is WORD
WORD, PAPER, EMPTY, INK = "#2563a8", "#ffffff", "#f1f2f4", "#1a1c20"
WORDS = ("a", "red", "hat", "and", "a", "blue", "one")
CELL, MARGIN, HEAD, LEGEND = 15, 14, 22, 42  # pixels; LEGEND is the room of tokens' names


@dataclass(frozen=True)
class Panel:
    title: str
    layout: SequenceLayout
    window: Window | None = None

    def mask(self) -> list[list[bool]]:
        """(N, N) whether the token of the row sees that of the column."""
        document, block, noised = (
            torch.tensor([vector])
            for vector in (self.layout.document_ids, self.layout.block_ids, self.layout.noised_mask)
        )
        reach = None
        if self.window is not None:
            reach = find_reach(self.window, document, infer_image_ids(block, noised_mask=noised), noised)
        return dense_mask(document, block, noised, reach=reach)[0, 0].tolist()

    def names(self) -> list[str]:
        tokens = zip(self.layout.input_ids, self.layout.noised_mask, strict=True)
        return ["noised" if noised else NAMES.get(token) or WORDS[token] for token, noised in tokens]


def text(*numbers: int) -> TextSegment:
    return TextSegment(list(numbers))


def around(*pictures: ImageSegment) -> SequenceLayout:
    return lay_out([text(0, 1, 2), *pictures, text(3, 5)], TOKENS)


def seen(count: int = 4) -> ImageSegment:
    return ImageSegment("understanding", count, bidirectional=False)


def patches(count: int = 4, clean_copy: bool = False) -> ImageSegment:
    return ImageSegment("diffusion", count, bidirectional=True, write=True, clean_copy=clean_copy)


def codes(count: int = 4) -> ImageSegment:
    return ImageSegment("vq", count, bidirectional=False, write=True)


def pictures() -> dict[str, list[Panel]]:
    """File name -> the masks in it, side by side."""
    documents = [
        lay_out([text(0, 1, 2), patches()], TOKENS),
        lay_out([text(4, 5), codes(), text(3)], TOKENS),
        lay_out([seen(), text(0, 1)], TOKENS),
    ]
    row = pack(documents, sum(map(len, documents)) + 3, PAD)
    windowed = lay_out([text(0, 1, 2, 3), patches(), text(3, 4, 5)], TOKENS)
    return {
        "masks_paths.svg": [
            Panel("read: understanding", around(seen())),
            Panel("drawn: diffusion", around(patches())),
            Panel("drawn: vq", around(codes())),
        ],
        "masks_clean_copy.svg": [Panel("noised patches, then their clean copy", around(patches(clean_copy=True)))],
        "masks_packed.svg": [Panel("three documents and padding in one row", row)],
        "masks_window.svg": [
            Panel("a layer that sees all", windowed),
            Panel("a layer with a window of 3", windowed, Window(3)),
        ],
    }


def draw(panels: list[Panel]) -> str:
    """The panels side by side, as the text of an SVG."""
    sides = [LEGEND + CELL * len(panel.layout) for panel in panels]
    width = sum(sides) + MARGIN * (len(panels) + 1)
    height = HEAD + max(sides) + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" role="img" aria-label="{escape("; ".join(panel.title for panel in panels))}">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
    ]
    left = MARGIN
    for panel, side in zip(panels, sides, strict=True):
        lines += [f'<g transform="translate({left} {MARGIN})">', *draw_panel(panel), "</g>"]
        left += side + MARGIN
    return "\n".join([*lines, "</svg>", ""])


def draw_panel(panel: Panel) -> list[str]:
    mask, names, tokens = panel.mask(), panel.names(), panel.layout.input_ids
    lines = [f'<text y="12" font-size="13" fill="{INK}">{escape(panel.title)}</text>']
    for number, (name, token) in enumerate(zip(names, tokens, strict=True)):
        middle, colour = LEGEND + CELL * number + CELL - 4, COLOURS.get(token, WORD)
        style = f'font-size="10" fill="{colour}"'
        lines.append(f'<text x="{LEGEND - 4}" y="{HEAD + middle}" text-anchor="end" {style}>{name}</text>')
        lines.append(f'<text transform="translate({middle} {HEAD + LEGEND - 4}) rotate(-90)" {style}>{name}</text>')
    squares = {}  # colour -> its cells: one path is a tenth of as many rectangles
    for query, (row, token) in enumerate(zip(mask, tokens, strict=True)):
        for key, allowed in enumerate(row):
            colour = COLOURS.get(token, WORD) if allowed else EMPTY
            square = f"M{LEGEND + CELL * key} {HEAD + LEGEND + CELL * query}h{CELL - 1}v{CELL - 1}h-{CELL - 1}z"
            squares.setdefault(colour, []).append(square)
    lines += [f'<path fill="{colour}" d="{"".join(cells)}"/>' for colour, cells in squares.items()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, panels in pictures().items():
        with whole_file(options.out / name) as aside:
            aside.write_text(draw(panels), encoding="utf-8")
        print(f"{options.out / name}: {(options.out / name).stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
