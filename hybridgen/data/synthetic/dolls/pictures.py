"""The figures of the dolls dataset: what a spec is, how it is drawn, and which specs are drawn at random.

Pixels and random figures only: words about a figure are in `language`, exact scores in `scoring`, chat records in the
package's `__init__`. The right hand (`hand1`) is the figure's own, so it is on the left of the picture.

Shapes: n figures, 6 slots of layers, S = 32 pixels. Layers are drawn by people (assets/ATTRIBUTION.md), over one
plain colour:

    background < cloak < base < body < head < hand1 < hand2          a later layer covers an earlier one
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.data.synthetic.sizes import resized

SIZE = 32
LAYER_SLOTS = ("cloak", "base", "body", "head", "hand1", "hand2")  # in drawing order
SLOTS = (*LAYER_SLOTS, "background")
SPLITS = ("train", "held_out")

# How often a slot is empty, chosen so that no constant answer does well (`majority_baselines`).
ABSENT = {"cloak": 0.5, "body": 0.12, "head": 0.35, "hand1": 0.16, "hand2": 0.34}
HELD_OUT_BODIES = 2  # of 18, for each base: 11 % of the pairs
CLOAK_PIXELS = 8  # a random figure shows at least so much of its cloak (a naga's coils can cover all but one pixel)

_ASSETS = Path(__file__).parents[1] / "assets"


class DollSpec(NamedTuple):
    """One figure: the index of each slot's layer, None for an empty slot (never `base`), and the background's name."""

    cloak: int | None
    base: int
    body: int | None
    head: int | None
    hand1: int | None
    hand2: int | None
    background: str


class Layer(NamedTuple):
    """What a layer shows: `phrase` in captions, `kind` and `colour` ("" where it has none) in answers."""

    phrase: str
    kind: str
    colour: str


class Pixels(NamedTuple):
    """One slot's layers and, last, an empty one (so index -1 is "nothing"): float32 in 0..255 and 0..1."""

    ink: np.ndarray  # (layers + 1, S, S, 3) colour times opacity
    clear: np.ndarray  # (layers + 1, S, S, 1) 1 - opacity: what of the pixels below shows through


@cache
def layers() -> dict[str, list[Layer]]:
    """The layers of each slot, in index order."""
    slots = _description()["slots"]
    return {slot: [Layer(item["phrase"], item["kind"], item["colour"]) for item in slots[slot]] for slot in LAYER_SLOTS}


def phrases() -> list[str]:
    """What all layers are called in captions, slot after slot."""
    return [layer.phrase for slot in LAYER_SLOTS for layer in layers()[slot]]


@cache
def backgrounds() -> dict[str, tuple[int, int, int]]:
    """Name -> RGB colour of the plain backgrounds."""
    return {name: tuple(rgb) for name, rgb in _description()["backgrounds"].items()}


@cache
def pixels() -> dict[str, Pixels]:
    """The layers' pixels, ready for compositing."""
    with np.load(_ASSETS / "dolls_layers.npz") as stored:
        return {slot: _premultiply(stored[slot]) for slot in LAYER_SLOTS}


def encode(specs: list[DollSpec]) -> np.ndarray:
    """Specs as rows of integers: (n, 7) int64 in the order of `SLOTS`, -1 for an empty slot.

    Raises ValueError for a base of None, an index with no layer, or an unknown background.
    """
    names = list(backgrounds())
    rows = np.empty((len(specs), len(SLOTS)), np.int64)
    for row, spec in zip(rows, specs, strict=True):
        if spec.background not in names:
            raise ValueError(f"unknown background {spec.background!r}: it is one of {', '.join(names)}")
        row[:-1] = [-1 if index is None else index for index in spec[:-1]]
        row[-1] = names.index(spec.background)
    for column, slot in enumerate(LAYER_SLOTS):
        count, lowest = len(layers()[slot]), 0 if slot == "base" else -1
        wrong = [int(i) for i in rows[:, column] if not lowest <= i < count]
        if wrong:
            raise ValueError(
                f"{slot} {wrong[0]} does not exist: it is 0 to {count - 1}" + (", or None" if lowest else "")
            )
    return rows


def decode(rows: np.ndarray) -> list[DollSpec]:
    """Inverse of `encode`."""
    names = list(backgrounds())
    return [DollSpec(*(None if i < 0 else i for i in row[:-1]), names[row[-1]]) for row in rows.tolist()]


def render_batch(specs: list[DollSpec], size: int = SIZE) -> np.ndarray:
    """Draw n figures: (n, size, size, 3) uint8 (`sizes`)."""
    return resized(render_rows(encode(specs)), size)


def render(spec: DollSpec, size: int = SIZE) -> Image.Image:
    """Draw one figure: an RGB picture of `size` pixels a side."""
    return Image.fromarray(render_batch([spec], size)[0])


def render_rows(rows: np.ndarray) -> np.ndarray:
    """Draw encoded specs (`encode`): (n, 7) integers -> (n, S, S, 3) uint8; 100 figures in about 6 ms on one core."""
    colours = np.array(list(backgrounds().values()), np.float32)
    canvas = np.repeat(colours[rows[:, -1], None, None], SIZE, axis=1).repeat(SIZE, axis=2)  # (n, S, S, 3)
    for column, slot in enumerate(LAYER_SLOTS):
        layer = pixels()[slot]
        canvas *= layer.clear[rows[:, column]]
        canvas += layer.ink[rows[:, column]]
    return np.rint(canvas).astype(np.uint8)


@cache
def held_out_pairs() -> frozenset[tuple[int, int]]:
    """The (base, body) pairs that training never shows: for each base the bodies whose names hash lowest with its own.

    By hash, so that they stay the same wherever and whenever they are computed; by base, so that every base is held
    out equally often and both parts of every pair are seen in training, apart.
    """
    pairs = set()
    for base, creature in enumerate(layers()["base"]):
        digests = [hashlib.sha256(f"{creature.phrase}|{body.phrase}".encode()).digest() for body in layers()["body"]]
        lowest = sorted(range(len(digests)), key=digests.__getitem__)[:HELD_OUT_BODIES]
        pairs.update((base, body) for body in lowest)
    return frozenset(pairs)


def draw_spec(
    rng: np.random.Generator, held_out: bool = False, oversampling: Mapping[str, float] | None = None
) -> DollSpec:
    """Draw a random figure: each part uniform in its slot, a slot empty with the probability in `ABSENT`.

    `oversampling` makes parts likelier than the others of their slot, by phrase: {"dwarf": 2.5}; of 1 where none is
    said.

    With `held_out` the (base, body) pair is one of `held_out_pairs()`, each as likely, without it never. Figures that
    cannot be told apart by looking are drawn again (`is_legible`), so every question about a drawn figure has its
    answer in the picture.
    """
    while True:
        spec = DollSpec(
            **{slot: _part(rng, slot, oversampling or {}) for slot in LAYER_SLOTS},
            background=list(backgrounds())[rng.integers(len(backgrounds()))],
        )
        if held_out:
            base, body = sorted(held_out_pairs())[rng.integers(len(held_out_pairs()))]
            spec = spec._replace(base=base, body=body)
        elif (spec.base, spec.body) in held_out_pairs():
            continue
        if is_legible(spec):
            return spec


def is_legible(spec: DollSpec) -> bool:
    """Whether the picture shows all that the spec says.

    Two things do not show: a cloak behind a naga's coils (fewer than `CLOAK_PIXELS` coloured pixels), and whether a
    figure is a man or a dwarf when a black hood or a pumpkin covers hair and beard (the same picture, pixel for
    pixel). Any other two figures that differ in one slot differ in at least 4 visible pixels (man and dwarf under a
    hood; 8 or more elsewhere), counted over all combinations.
    """
    if (
        spec.head is not None
        and (layers()["base"][spec.base].kind, layers()["head"][spec.head].phrase) in _INDISTINGUISHABLE
    ):
        return False
    if spec.cloak is None:
        return True
    cloak = pixels()["cloak"]
    coloured = cloak.ink[spec.cloak].max(-1, keepdims=True) > 0  # not its black outline
    shown = (cloak.clear[spec.cloak] == 0) & coloured
    for slot in LAYER_SLOTS[1:]:
        index = getattr(spec, slot)
        if index is not None:
            shown = shown & (pixels()[slot].clear[index] > 0)
    return int(shown.sum()) >= CLOAK_PIXELS


_INDISTINGUISHABLE = {(base, head) for base in ("man", "dwarf") for head in ("black hood", "pumpkin head")}


def _part(rng: np.random.Generator, slot: str, oversampling: Mapping[str, float]) -> int | None:
    if slot in ABSENT and rng.random() < ABSENT[slot]:
        return None
    weights = np.array([oversampling.get(layer.phrase, 1.0) for layer in layers()[slot]])
    if (weights == 1).all():
        return int(rng.integers(len(weights)))
    return int(rng.choice(len(weights), p=weights / weights.sum()))


@cache
def _description() -> dict:
    return json.loads((_ASSETS / "dolls_layers.json").read_text(encoding="utf-8"))


def _premultiply(rgba: np.ndarray) -> Pixels:
    """(layers, S, S, 4) uint8 -> `Pixels` with the empty layer added."""
    rgba = np.concatenate([rgba, np.zeros_like(rgba[:1])]).astype(np.float32)
    opacity = rgba[..., 3:] / 255
    return Pixels(ink=rgba[..., :3] * opacity, clear=1 - opacity)
