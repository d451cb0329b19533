"""Exact scores for drawn words: which letters does a picture show, in which font and colours, and were they asked for?

No network judges here and nothing is learned: the picture is compared with the world's own letters, and the reading is
the line of letters that is nearest. It knows the twelve fonts and the sizes that `pictures` draws and where lines stand
(not where they begin), so a word in another font or between the lines is read badly; `evaluation.readers` has a reader
that knows nothing of this.

How much of a pixel is ink is the cover of that pixel. A letter t in place of paper changes the squared error of the
covers a by |t|^2 - 2 a.t, whatever stands beside it, as the cells of letters do not overlap; so the nearest line is
found exactly, by dynamic programming over where letters end.

Shapes: n pictures of S x S x 3, f = 12 fonts, g = 26 letters, H x W a cell as tall as a line and as wide as the widest.
"""

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hybridgen.core.edits import edit_distance
from hybridgen.data.synthetic.questions import Tally, tally
from hybridgen.data.synthetic.words.pictures import (
    ALPHABET,
    COLOURS,
    DARK,
    FAMILIES,
    LIGHT,
    MAX_LETTERS,
    MAX_LINES,
    STYLES,
    WordsSpec,
    bases,
    check_size,
    glyph,
    line_step,
    render,
    sizes_of_letters,
)

SCORES = ("text", "letters", "family", "style", "ink", "paper", "picture")
_FONTS = [(family, style) for family in FAMILIES for style in STYLES]
_CHUNK = 64  # pictures at a time, which bounds the memory for their letters


def score_pictures(images: np.ndarray, specs: list[WordsSpec]) -> dict[str, Tally]:
    """How many pictures show what was asked: (n, S, S, 3) uint8 against n specs, any S from 32.

    Returns a tally {"right", "n", "share"} for "text" (all words of the picture), "letters" (letters asked for, less
    the edits between what was asked and what is read), "family", "style", "ink", "paper" and "picture" (all of it).
    What a spec leaves open (None) is right. Raises ValueError when the counts, the shape or the type do not fit.
    """
    nearest = nearest_specs(images)
    verdicts = _judge(nearest, specs, np.shape(images)[1])
    scores = {name: tally(sum(verdict[name] for verdict in verdicts), len(specs)) for name in verdicts[0]}
    counts = [right_letters(read.lines, wanted.lines) for read, wanted in zip(nearest, specs, strict=True)]
    scores["letters"] = tally(sum(right for right, _ in counts), sum(n for _, n in counts))
    return {name: scores[name] for name in SCORES}


def judge_pictures(images: np.ndarray, specs: list[WordsSpec]) -> list[dict[str, bool]]:
    """As `score_pictures`, picture by picture: {score: whether it is right}, "letters" left out."""
    return _judge(nearest_specs(images), specs, np.shape(images)[1])


def majority_pictures(specs: list[WordsSpec]) -> dict[str, float]:
    """What drawing the commonest words in the commonest font and colours would score, by the names of `SCORES`."""
    parts = {name: [getattr(spec, name) for spec in specs] for name in ("family", "style", "ink", "paper")}
    parts |= {"text": [spec.lines for spec in specs], "picture": specs}
    best = {name: Counter(values).most_common(1)[0] for name, values in parts.items()}
    counts = [right_letters(best["text"][0], spec.lines) for spec in specs]
    shares = {name: count / len(specs) for name, (_, count) in best.items()}
    shares["letters"] = sum(right for right, _ in counts) / sum(n for _, n in counts)
    return {name: shares[name] for name in SCORES}


def nearest_specs(images: np.ndarray) -> list[WordsSpec]:
    """What each picture shows: (n, S, S, 3) uint8 -> n specs. 100 pictures of 64 pixels take seconds on one core."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"pictures must be uint8 of shape (n, S, S, 3), not {images.dtype} {images.shape}: convert them first"
        )
    check_size(images.shape[1])
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    return [spec for chunk in chunks for spec in _read(chunk)]


def right_letters(read: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[int, int]:
    """(letters right, letters wanted): those wanted less the edits that make what is read what is wanted, at least 0.

    Lines are compared in order, a missing one as empty; so the share is 1 less the character error rate.
    """
    pairs = [(read[i] if i < len(read) else "", wanted[i] if i < len(wanted) else "") for i in range(MAX_LINES)]
    n = sum(map(len, wanted))
    return max(n - sum(edit_distance(*pair) for pair in pairs), 0), n


def _judge(nearest: list[WordsSpec], specs: list[WordsSpec], side: int) -> list[dict[str, bool]]:
    if len(nearest) != len(specs):
        raise ValueError(
            f"{len(nearest)} pictures cannot be compared with {len(specs)} specs: pass one spec for each picture"
        )
    verdicts = []
    for read, wanted in zip(nearest, specs, strict=True):
        right = {"text": read.lines == wanted.lines}
        for name in ("family", "style", "ink", "paper"):
            right[name] = getattr(wanted, name) in (None, getattr(read, name)) or (
                right["text"] and _same_look(read, wanted, name, side)
            )
        verdicts.append(right | {"picture": all(right.values())})
    return verdicts


def _same_look(read: WordsSpec, wanted: WordsSpec, name: str, side: int) -> bool:
    """Whether what is read, with that one thing as it was wanted, is the same picture: then nobody could tell."""
    if name in ("ink", "paper"):
        return False  # no two colours are the same
    swapped = read._replace(**{name: getattr(wanted, name)})
    return np.array_equal(render(read, side), render(swapped, side))


class _Letters(NamedTuple):
    """All letters of all fonts in one size, each in a cell of H x W from its left edge; ink as 0..1."""

    table: np.ndarray  # (H * W, f * g) float32
    energy: np.ndarray  # (f, g): the sum of the squares of each
    widths: np.ndarray  # (f, g): of the cells, in pixels
    shape: tuple[int, int]  # H, W


def _read(images: np.ndarray) -> list[WordsSpec]:
    """
    1. Find paper and ink, and how much of each pixel is ink.
    2. For each layout (number of lines, size of letters) and font, find the error of the nearest letters. A layout that
       leaves more ink outside of its lines than the best so far is wrong by cannot be better.
    3. Spell out the letters of the best.
    """
    papers, inks, cover = _colours_and_cover(images)  # cover: (n, S, S)
    side, rows = images.shape[1], (cover**2).sum(2)  # (n, S)
    layouts = _layouts(side)
    outside = np.stack([rows.sum(1) - sum(rows[:, band].sum(1) for band in bands) for _, _, bands in layouts])
    best, chosen = np.full(len(images), np.inf), [(layouts[0], 0)] * len(images)
    for which in outside.sum(1).argsort(kind="stable"):
        layout, active = layouts[which], np.flatnonzero(outside[which] < best)
        if not len(active):
            continue
        error = rows[active].sum(1, keepdims=True) + sum(
            _line_errors(_letter_errors(cover[active], layout.points, band.start), layout.points)
            for band in layout.bands
        )  # (n, f)
        for i, fonts in zip(active, error, strict=True):
            if fonts.min() < best[i]:
                best[i], chosen[i] = fonts.min(), (layout, int(fonts.argmin()))
    specs = []
    for i, (layout, font) in enumerate(chosen):
        widths = _letters(layout.points).widths[font]
        errors = [_letter_errors(cover[i : i + 1], layout.points, band.start)[0, :, font] for band in layout.bands]
        specs.append(WordsSpec(tuple(_spell_out(e, widths) for e in errors), *_FONTS[font], inks[i], papers[i]))
    return specs


class _Layout(NamedTuple):
    """Where so many lines of letters of a size stand: the rows of each line."""

    lines: int
    points: int
    bands: list[slice]


@lru_cache(maxsize=8)
def _layouts(side: int) -> list[_Layout]:
    layouts = []
    for points in sizes_of_letters(side):
        height = _letters(points).shape[0]
        for lines in range(1, MAX_LINES + 1):
            if lines * line_step(points) <= side:
                tops = [base - _ascent(points) for base in bases(lines, points, side)]
                layouts.append(_Layout(lines, points, [slice(top, top + height) for top in tops]))
    return layouts


def _colours_and_cover(images: np.ndarray) -> tuple[list[str], list[str], np.ndarray]:
    """(n, S, S, 3) -> papers, inks, and the share of each pixel that is ink: (n, S, S) float32.

    The paper is the colour nearest to the rim, where no letter stands; the ink the one of the other kind (dark or
    light) whose mixtures with the paper are nearest to the pixels.
    """
    pixels = images.astype(np.float32)
    rim = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)  # (n, 4 S, 3)
    names, values = list(COLOURS), np.array(list(COLOURS.values()), np.float32)
    papers = [names[i] for i in ((np.median(rim, axis=1)[:, None] - values) ** 2).sum(-1).argmin(1)]
    inks, covers = [], []
    for picture, paper in zip(pixels, papers, strict=True):
        ground, tried = np.array(COLOURS[paper], np.float32), list(LIGHT if paper in DARK else DARK)
        ways = np.array([COLOURS[name] for name in tried], np.float32) - ground  # (inks, 3)
        cover = np.clip((picture - ground) @ ways.T / (ways**2).sum(1), 0, 1)  # (S, S, inks)
        rest = (picture - ground)[..., None, :] - cover[..., None] * ways
        best = int((rest**2).sum((0, 1, 3)).argmin())
        inks.append(tried[best])
        covers.append(cover[..., best])
    return papers, inks, np.stack(covers)


def _letter_errors(cover: np.ndarray, points: int, top: int) -> np.ndarray:
    """What each letter in place of paper adds to the squared error, by where its cell begins, in the line whose first
    row is `top`: (n, S, f, g)."""
    letters = _letters(points)
    height, width = letters.shape
    side = cover.shape[1]
    band = np.pad(cover, ((0, 0), (height, height), (0, width)))[:, top + height : top + 2 * height]  # (n, H, S + W)
    windows = np.lib.stride_tricks.sliding_window_view(band, width, axis=2)[:, :, :side]  # (n, H, S, W)
    windows = windows.transpose(0, 2, 1, 3).reshape(-1, height * width)
    overlap = (windows @ letters.table).reshape(len(cover), side, *letters.energy.shape)
    return letters.energy - 2 * overlap


def _line_errors(errors: np.ndarray, points: int) -> np.ndarray:
    """(n, S, f, g) -> (n, f): the least that a line of letters, side by side, adds to the error.

    The number of letters is not bounded here, as it is where they are spelled out: it could matter for noise only.
    """
    widths = _letters(points).widths  # (f, g)
    n, side, fonts, letters = errors.shape
    font, letter = np.indices(widths.shape)
    ends = np.full((n, side + 1, fonts), np.inf, np.float32)  # of the best line that ends there
    for end in range(int(widths.min()), side + 1):
        starts = np.maximum(end - widths, 0)
        total = errors[:, starts, font, letter] + np.minimum(ends[:, starts, font], 0)  # (n, f, g)
        ends[:, end] = np.where(widths <= end, total, np.inf).min(axis=2)
    return ends.min(axis=1)


def _spell_out(errors: np.ndarray, widths: np.ndarray) -> str:
    """The best line of one font: errors (S, g) by where a cell begins, widths (g,) -> its letters."""
    side = len(errors)
    ends = {0: dict.fromkeys(range(side), (0.0, ""))}  # of lines of k letters: where they end -> error and letters
    for k in range(1, MAX_LETTERS + 1):
        ends[k] = {}
        for start, (error, word) in ends[k - 1].items():
            for letter in np.flatnonzero(start + widths <= side):
                end, total = start + int(widths[letter]), error + float(errors[start, letter])
                if total < ends[k].get(end, (np.inf, ""))[0]:
                    ends[k][end] = total, word + ALPHABET[letter]
    return min(found for k in range(1, MAX_LETTERS + 1) for found in ends[k].values())[1]


@lru_cache(maxsize=32)  # ten sizes, for pictures of a few sizes
def _letters(points: int) -> _Letters:
    glyphs = [[glyph(family, style, points, letter) for letter in ALPHABET] for family, style in _FONTS]
    width = max(cell.ink.shape[1] for font in glyphs for cell in font)
    height = _ascent(points) + max(cell.ink.shape[0] - cell.top for font in glyphs for cell in font)
    cells = np.zeros((len(_FONTS), len(ALPHABET), height, width), np.float32)
    for i, font in enumerate(glyphs):
        for j, cell in enumerate(font):
            top = _ascent(points) - cell.top
            cells[i, j, top : top + cell.ink.shape[0], : cell.ink.shape[1]] = cell.ink / np.float32(255)
    widths = np.array([[cell.ink.shape[1] for cell in font] for font in glyphs])
    table = np.ascontiguousarray(cells.reshape(len(_FONTS) * len(ALPHABET), -1).T)
    return _Letters(table, (cells**2).sum((2, 3)), widths, (height, width))


@lru_cache(maxsize=32)
def _ascent(points: int) -> int:
    """Pixels above the base line of the tallest letter."""
    return max(glyph(family, style, points, letter).top for family, style in _FONTS for letter in ALPHABET)
