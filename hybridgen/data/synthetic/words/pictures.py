"""The pictures of the words dataset: one to three short lines of small letters, drawn from the fonts of matplotlib.

Pixels and facts only: words about a picture are in `language`, exact scores in `scoring`, chat records in the package's
`__init__`. Every letter stands in a cell of whole pixels that no other letter touches, in one of a few sizes, so that
the same letter is the same pixels wherever it stands: a small codec needs few codes, and `scoring` finds the letters
exactly. FreeType fits the letters to the pixels (hinting), which keeps ten pixels legible.

Training also draws letters that are no word (`draw_spec`), so that spelling is learnt and not a list of words. The
words of the split `held_out` are never drawn in training, also not by chance.

Source of the words: SCOWL 2020.12.07, sizes 10 and 20, up to eight letters (assets/ATTRIBUTION.md).
"""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFont

SIZE = 64
SMALLEST = 32  # pixels a side: below, the letters of five are no letters any more
SPLITS = ("train", "held_out")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
MAX_LETTERS, MAX_LINES = 8, 3

FAMILIES = ("sans", "serif", "mono", "roman")
STYLES = ("plain", "bold", "italic")
_FILES = {  # in the order of `STYLES`
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    "roman": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
}
DARK = {
    "black": (16, 16, 16),
    "red": (176, 16, 32),
    "blue": (24, 48, 192),
    "green": (0, 92, 40),
    "purple": (112, 24, 144),
}
LIGHT = {"white": (250, 250, 250), "yellow": (255, 222, 64), "pink": (255, 200, 216)}
COLOURS = DARK | LIGHT  # ink and paper: one dark, the other light; their contrast is 4.5 at least, as WCAG 2 asks

_POINTS = (26, 22, 18, 15, 13, 11, 10, 9, 8, 7, 6, 5)  # sizes of letters on 64 pixels: the largest that fits
_MARGIN = 2  # pixels of 64
_STEP, _BASE = 1.15, 0.86  # from line to line, and from the top of a line to its base, in sizes of letters
_LINES = {1: 0.72, 2: 0.2, 3: 0.08}  # how often a picture has so many
_LETTERS = {1: 0.03, 2: 0.05, 3: 0.15, 4: 0.2, 5: 0.27, 6: 0.14, 7: 0.09, 8: 0.07}  # how often a lone word has so many
_LINE_LETTERS = 5  # the most in a word among several
_NO_WORD, _NO_WORD_LETTERS = 0.4, 6  # share of training's words that are random letters, and the most that these have

_FILE = Path(__file__).parents[1] / "assets" / "words.txt"


class WordsSpec(NamedTuple):
    """What a picture shows: its lines from top to bottom, one word each, in small letters.

    In a spec that says what is wanted, `family`, `style`, `ink` or `paper` may be None: left open.
    """

    lines: tuple[str, ...]
    family: str | None
    style: str | None
    ink: str | None
    paper: str | None


class Glyph(NamedTuple):
    """A letter of a font in its cell: (height, width) uint8, 255 where it is all ink; `top` is above the base line."""

    ink: np.ndarray
    top: int


class Layout(NamedTuple):
    """Where the lines stand: the size of the letters, and the base line of each line, in pixels."""

    points: int
    bases: tuple[int, ...]


@cache
def vocabulary() -> tuple[str, ...]:
    """The 7,400 words that pictures show, in alphabetical order."""
    return tuple(_FILE.read_text(encoding="ascii").split())


@cache
def words_of_split(split: str) -> tuple[str, ...]:
    """The words of a split: a tenth of those of three letters or more is held out, by a hash of the word."""
    return tuple(word for word in vocabulary() if _is_held_out(word) == (split == "held_out"))


def draw_spec(
    rng: np.random.Generator, held_out: bool = False, oversampling: Mapping[str, float] | None = None
) -> WordsSpec:
    """A random picture. Of `held_out`, all words are held out; else none is, and many are random letters.

    Args:
        oversampling: how much more often than the others of its kind a family, a style or a colour is chosen.
    """
    count = int(rng.choice(list(_LINES), p=list(_LINES.values())))
    lines = tuple(_some_word(rng, held_out, MAX_LETTERS if count == 1 else _LINE_LETTERS) for _ in range(count))
    family, style = _choose(rng, FAMILIES, oversampling), _choose(rng, STYLES, oversampling)
    dark, light = _choose(rng, tuple(DARK), oversampling), _choose(rng, tuple(LIGHT), oversampling)
    ink, paper = (dark, light) if rng.random() < 0.6 else (light, dark)
    return WordsSpec(lines, family, style, ink, paper)


def similar_word(word: str, rng: np.random.Generator) -> str:
    """Another word of as many letters, of the same split, as alike as one of a few; for no word, no word."""
    others = _by_length("held_out" if _is_held_out(word) else "train").get(len(word), ())
    if word not in others or len(others) < 2:
        return _change_letter(word, rng)
    some = [others[i] for i in rng.integers(len(others), size=6) if others[i] != word]
    return max(some, key=lambda other: sum(map(str.__eq__, other, word)), default=others[others[0] == word])


def render(spec: WordsSpec, size: int = SIZE) -> Image.Image:
    """Draw the words: an RGB picture of `size` pixels a side. Raises ValueError for what cannot be drawn."""
    check_spec(spec)
    check_size(size)
    coverage = np.zeros((size, size), np.uint8)
    layout = layout_of(spec, size)
    for line, base in zip(spec.lines, layout.bases, strict=True):
        letters = [glyph(spec.family, spec.style, layout.points, letter) for letter in line]
        x = (size - sum(letter.ink.shape[1] for letter in letters)) // 2
        for letter in letters:
            height, width = letter.ink.shape
            coverage[base - letter.top : base - letter.top + height, x : x + width] = letter.ink
            x += width
    share = coverage[..., None].astype(np.float32) / 255
    ink, paper = (np.array(COLOURS[name], np.float32) for name in (spec.ink, spec.paper))
    return Image.fromarray(np.rint(paper + share * (ink - paper)).astype(np.uint8))


def render_batch(specs: Sequence[WordsSpec], size: int = SIZE) -> np.ndarray:
    """Draw n pictures: (n, size, size, 3) uint8."""
    check_size(size)
    images = [np.asarray(render(spec, size)) for spec in specs]
    return np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)


def check_spec(spec: WordsSpec) -> None:
    """Raises ValueError for a spec that cannot be drawn, saying why."""
    if not 1 <= len(spec.lines) <= MAX_LINES:
        raise ValueError(f"a picture has 1 to {MAX_LINES} words, one a line, not {len(spec.lines)}: {spec.lines}")
    for line in spec.lines:
        if not 1 <= len(line) <= MAX_LETTERS or not set(line) <= set(ALPHABET):
            raise ValueError(f"{line!r} cannot be drawn: a word has 1 to {MAX_LETTERS} of the small letters a to z")
    for what, value, known in (("family", spec.family, FAMILIES), ("style", spec.style, STYLES)):
        if value not in known:
            raise ValueError(f"unknown {what} of fonts {value!r}: it is one of {', '.join(known)}")
    for what, value in (("ink", spec.ink), ("paper", spec.paper)):
        if value not in COLOURS:
            raise ValueError(f"unknown colour of the {what} {value!r}: it is one of {', '.join(COLOURS)}")
    if (spec.ink in DARK) == (spec.paper in DARK):
        raise ValueError(
            f"{spec.ink} on {spec.paper} cannot be read: of ink and paper one is dark ({', '.join(DARK)}), the other "
            f"light ({', '.join(LIGHT)})"
        )


def check_size(size: int) -> None:
    """Raises ValueError for pictures too small for their letters."""
    if size < SMALLEST:
        raise ValueError(f"words of {size} pixels a side cannot be read: choose {SMALLEST} or more")


def layout_of(spec: WordsSpec, size: int) -> Layout:
    """The largest letters with which all lines fit; the lines are centred."""
    room = size - 2 * round(_MARGIN * size / SIZE)
    for points in sizes_of_letters(size):
        width = max(sum(glyph(spec.family, spec.style, points, a).ink.shape[1] for a in line) for line in spec.lines)
        if width <= room and len(spec.lines) * line_step(points) <= room:
            break
    return Layout(points, bases(len(spec.lines), points, size))


def sizes_of_letters(size: int) -> list[int]:
    """The sizes that letters have on a picture of `size` pixels, the largest first."""
    return sorted({round(points * size / SIZE) for points in _POINTS}, reverse=True)


def line_step(points: int) -> int:
    """Pixels from one line to the next: no letter is taller."""
    return round(_STEP * points)


def bases(lines: int, points: int, size: int) -> tuple[int, ...]:
    """The base line of each of so many lines."""
    step = line_step(points)
    top = (size - lines * step) // 2
    return tuple(top + i * step + round(_BASE * points) for i in range(lines))


@lru_cache(maxsize=20_000)  # 12 fonts, 26 letters, 10 sizes, for several sizes of pictures
def glyph(family: str, style: str, points: int, letter: str) -> Glyph:
    """A letter in its cell: as wide as the font spaces it and as its ink is, and a sixteenth of its size more, a pixel
    at least where there is room for it."""
    font = _font(family, style, points)
    left, top, right, bottom = font.getbbox(letter, anchor="ls")
    start, end = min(left, 0), max(right, round(font.getlength(letter)))
    gap = max(round(points / 16), 1 if points >= 5 else 0)
    cell = Image.new("L", (end - start + gap, bottom - top))
    ink, _ = font.getmask2(letter, mode="L", anchor="ls")
    cell.paste(Image.frombytes("L", ink.size, bytes(ink)), (left - start, 0))
    return Glyph(np.asarray(cell), -top)


@lru_cache(maxsize=500)
def _font(family: str, style: str, points: int) -> ImageFont.FreeTypeFont:
    file = _fonts_folder() / f"{_FILES[family][STYLES.index(style)]}.ttf"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing, a font that the package matplotlib ships: install matplotlib from PyPI"
        )
    return ImageFont.truetype(file, points, layout_engine=ImageFont.Layout.BASIC)


@cache
def _fonts_folder() -> Path:
    """Where matplotlib has its fonts; matplotlib itself, which takes long, is not imported."""
    package = importlib.util.find_spec("matplotlib").submodule_search_locations[0]
    return Path(package, "mpl-data", "fonts", "ttf")


def _some_word(rng: np.random.Generator, held_out: bool, most: int) -> str:
    by_length = _by_length("held_out" if held_out else "train")
    no_word = not held_out and rng.random() < _NO_WORD
    lengths = [n for n in _LETTERS if n <= most and (n <= _NO_WORD_LETTERS if no_word else n in by_length)]
    chances = np.array([_LETTERS[n] for n in lengths])
    length = int(rng.choice(lengths, p=chances / chances.sum()))
    if not no_word:
        return by_length[length][rng.integers(len(by_length[length]))]
    while _is_held_out(letters := "".join(ALPHABET[i] for i in rng.integers(len(ALPHABET), size=length))):
        pass
    return letters


def _change_letter(word: str, rng: np.random.Generator) -> str:
    """The word with one letter changed, so that it is not of `held_out`."""
    while True:
        at, letter = int(rng.integers(len(word))), ALPHABET[rng.integers(len(ALPHABET))]
        changed = word[:at] + letter + word[at + 1 :]
        if changed != word and not _is_held_out(changed):
            return changed


def _choose(rng: np.random.Generator, names: tuple[str, ...], oversampling: Mapping[str, float] | None) -> str:
    chances = np.array([(oversampling or {}).get(name, 1.0) for name in names], float)
    return names[rng.choice(len(names), p=chances / chances.sum())]


@cache
def _by_length(split: str) -> dict[int, list[str]]:
    words = {}
    for word in words_of_split(split):
        words.setdefault(len(word), []).append(word)
    return words


@cache
def _held_out_words() -> frozenset[str]:
    def is_chosen(word: str) -> bool:
        return hashlib.sha256(word.encode()).digest()[0] < 26  # of 256

    return frozenset(word for word in vocabulary() if len(word) >= 3 and is_chosen(word))


def _is_held_out(word: str) -> bool:
    return word in _held_out_words()
