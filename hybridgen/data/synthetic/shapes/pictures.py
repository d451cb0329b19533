"""The pictures of the shapes dataset: what a spec is, how it is drawn, and which specs are drawn at random.

Pixels and random scenes only: words are in `language`, exact scores in `scoring`, chat records in the package's
`__init__`. One to four plain shapes stand apart on a plain background, of GenEval's six categories (`TAGS`).

Places and sizes are counted in 64ths of a picture's side, so a scene is the same at every size: drawn at 64 pixels and
pooled to 32, it is what is drawn at 32 (to one level of rounding).
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.core.geneval import COLOURS, OPPOSITE, RELATIONS, TAGS, Box, relations

SIZE = 32
SPLITS = ("train", "held_out")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond", "crescent", "arrow")
UNITS = 64  # to a picture's side
RGB = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 230),
    "purple": (135, 40, 175),
    "pink": (255, 150, 200),
    "brown": (120, 70, 30),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (128, 128, 128), "black": (0, 0, 0), "cyan": (110, 200, 215)}

# How often training shows each category; the held-out split shows them in turn.
SHARES = {"single_object": 0.1, "two_object": 0.2, "counting": 0.2, "colors": 0.15, "position": 0.2, "color_attr": 0.15}
COUNTS = {1: 0.1, 2: 0.3, 3: 0.3, 4: 0.3}  # of the category `counting`
DIAMETERS = {1: (24, 40), 2: (20, 28), 3: (18, 24), 4: (18, 22)}  # by the number of things; even, in units
MARGIN, GAP = 2, 6  # units between a thing and the edge, and between two things
HELD_OUT_COLOURS = 2  # of 10, for each shape

_FINE = 256  # samples along a picture's side, at least: edges are averages of many


class Thing(NamedTuple):
    """One shape: its name, colour, centre (x to the right, y down) and the longer side of its box, in units. None is
    what words left open (`language.parse_caption`)."""

    shape: str | None
    colour: str | None
    x: int | None = None
    y: int | None = None
    size: int | None = None


class ShapesSpec(NamedTuple):
    """One scene: its category, its things, where the first is seen from the second (category `position` alone), and
    the background's name."""

    tag: str
    things: tuple[Thing, ...]
    relation: str | None
    background: str | None


# ---- drawing


def box_of(thing: Thing) -> Box:
    """The box around a thing, in units."""
    wide, high = (extent * thing.size / 2 for extent in _extents(thing.shape))
    return (thing.x - wide, thing.y - high, thing.x + wide, thing.y + high)


def render(spec: ShapesSpec, size: int = SIZE) -> Image.Image:
    """Draw one scene: an RGB picture of `size` x `size` pixels, its edges smooth.

    Raises:
        ValueError: the spec leaves something open, or names what there is not.
    """
    return Image.fromarray(render_batch([spec], size)[0])


def render_batch(specs: list[ShapesSpec], size: int = SIZE) -> np.ndarray:
    """Draw scenes: (n, size, size, 3) uint8."""
    pictures = np.empty((len(specs), size, size, 3), np.uint8)
    for picture, spec in zip(pictures, specs, strict=True):
        check_scene(spec)
        canvas = np.broadcast_to(np.float32(BACKGROUNDS[spec.background]), picture.shape).copy()
        for thing in spec.things:
            rows, columns, alpha = _cover(thing, size)
            part = canvas[rows, columns]
            part += alpha[..., None] * (np.float32(RGB[thing.colour]) - part)
        picture[:] = np.rint(canvas)
    return pictures


def check_scene(spec: ShapesSpec) -> None:
    """Raises ValueError unless a spec says all that is drawn."""
    for name, value, known in [("background", spec.background, BACKGROUNDS)] + [
        (name, getattr(thing, name), among)
        for thing in spec.things
        for name, among in (("shape", SHAPES), ("colour", COLOURS))
    ]:
        if value is None:
            raise ValueError(f"the spec leaves the {name} open and cannot be drawn: draw_spec draws whole scenes")
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: it is one of {', '.join(known)}")
    if hidden := [thing for thing in spec.things if thing.colour == spec.background]:
        raise ValueError(f"a {hidden[0].colour} {hidden[0].shape} does not show on a {spec.background} background")
    if any(None in thing for thing in spec.things):
        raise ValueError("the spec does not say where its things stand and how large they are: draw_spec places them")


def _cover(thing: Thing, size: int) -> tuple[slice, slice, np.ndarray]:
    """The pixels that a thing may touch (rows, columns), and how much of each it covers: 0 to 1."""
    reach, starts = thing.size / 2, []
    for centre in (thing.x, thing.y):
        starts.append(int(np.floor((centre - reach) * size / UNITS)))
    pixels = int(np.ceil(thing.size * size / UNITS)) + 1
    offset = [centre * size / UNITS - start for centre, start in zip((thing.x, thing.y), starts, strict=True)]
    alpha = coverage(thing.shape, thing.size * size / UNITS, *offset, pixels, max(4, _FINE // size))
    (left, top), keep = starts, [slice(max(-start, 0), size - start) for start in starts]
    return (
        slice(max(top, 0), top + pixels),
        slice(max(left, 0), left + pixels),
        alpha[keep[1], keep[0]],
    )


@lru_cache(maxsize=4096)
def coverage(shape: str, diameter: float, x: float, y: float, pixels: int, fine: int) -> np.ndarray:
    """How much of each of `pixels` x `pixels` pixels a shape covers whose centre is at (x, y): float32, 0 to 1.

    Args:
        diameter, x, y: in pixels; pixel i reaches from i to i + 1.
        fine: samples along a pixel's side.
    """
    steps = (np.arange(pixels * fine) + 0.5) / fine
    inside = np.zeros((len(steps), len(steps)), bool)
    across, down = (steps - x) * 2 / diameter, (steps - y) * 2 / diameter
    for loop in _loops(shape):
        inside ^= _inside(loop, across, down)
    alpha = inside.reshape(pixels, fine, pixels, fine).mean(axis=(1, 3), dtype=np.float32)
    alpha.flags.writeable = False
    return alpha


def _inside(loop: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Which points of a grid lie inside a polygon, by the crossings of its edges to the left: (down, across) bool."""
    x1, y1 = loop[:, 0], loop[:, 1]
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    inside = np.zeros((len(down), len(across)), bool)
    for row, y in enumerate(down):
        crossed = (y1 <= y) != (y2 <= y)
        at = x1[crossed] + (y - y1[crossed]) * (x2[crossed] - x1[crossed]) / (y2[crossed] - y1[crossed])
        inside[row] = np.searchsorted(np.sort(at), across) % 2 == 1
    return inside


# ---- outlines


@cache
def _extents(shape: str) -> tuple[float, float]:
    """Half the width and half the height of a shape's box, of which the longer is 1."""
    wide, high = np.concatenate(_loops(shape)).max(axis=0).tolist()
    return wide, high


@cache
def _loops(shape: str) -> tuple[np.ndarray, ...]:
    """A shape's closed lines, (corners, 2), in a box from -1 to 1 whose longer side it fills, x to the right, y down.

    A point is inside the shape where it is inside an odd number of lines.
    """
    loops = [np.asarray(loop, float) for loop in _drawn(shape)]
    corners = np.concatenate(loops)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return tuple((loop - (low + high) / 2) * 2 / (high - low).max() for loop in loops)


def _drawn(shape: str) -> list:
    """The lines of a shape, in any box."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    circle = np.stack([np.sin(turn), -np.cos(turn)], axis=1)
    if shape == "circle":
        return [circle]
    if shape == "ring":
        return [circle, circle * 0.55]
    if shape == "crescent":  # what a circle leaves of another: its outer arc, and back along the inner one
        at = np.linspace(0.28 * np.pi, 1.72 * np.pi, 72)
        outer = np.stack([np.cos(at), np.sin(at)], axis=1)
        tip = outer[0]
        centre, radius = 0.62, np.hypot(tip[0] - 0.62, tip[1])
        angle = np.arctan2(tip[1], tip[0] - centre)
        back = np.linspace(2 * np.pi - angle, angle, 72)
        return [np.concatenate([outer, np.stack([centre + radius * np.cos(back), radius * np.sin(back)], axis=1)])]
    if shape == "star":
        at, radius = np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.42, 1.0)
        return [np.stack([np.sin(at), -np.cos(at)], axis=1) * radius[:, None]]
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return [np.stack([x, y], axis=1)]
    return [_CORNERS[shape]]


_ARM = 1 / 3
_CORNERS = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.3), (-1, 0.3)],
}  # fmt: skip


# ---- the split


@cache
def held_out() -> dict[str, frozenset]:
    """What training never shows, by kind, though it shows every part of it apart:

        colour       (shape, colour), two colours of each shape
        background   (shape, background), one background of each shape
        count        (shape, 2 to 4), one number of each shape
        pair         two shapes together, for each shape one other
        relation     (shape, relation, shape) of any other two shapes, one of the four relations; with its mirror image

    By hash, so that they stay the same wherever and whenever they are computed.
    """
    pairs = frozenset(
        frozenset((shape, _lowest([other for other in SHAPES if other != shape], shape)[0])) for shape in SHAPES
    )
    together = [pair for pair in itertools.combinations(SHAPES, 2) if frozenset(pair) not in pairs]
    places = [(a, relation, b) for a, b in together for relation in _lowest(RELATIONS, a, b)[:1]]
    return {
        "colour": frozenset((s, colour) for s in SHAPES for colour in _lowest(COLOURS, s)[:HELD_OUT_COLOURS]),
        "background": frozenset((s, _lowest(tuple(BACKGROUNDS), s)[0]) for s in SHAPES),
        "count": frozenset((s, int(_lowest("234", s)[0])) for s in SHAPES),
        "pair": pairs,
        "relation": frozenset(places) | frozenset((b, OPPOSITE[relation], a) for a, relation, b in places),
    }


def _lowest(names, *of: str) -> list[str]:
    """`names`, those first whose hash together with `of` is lowest; two names hash as the other way round."""
    return sorted(names, key=lambda name: hashlib.sha256("|".join(sorted((*of, name))).encode()).digest())


KIND_OF_TAG = {  # what the held-out split combines anew in each category; all else of its scenes training shows, too
    "single_object": "background",
    "two_object": "pair",
    "counting": "count",
    "colors": "colour",
    "position": "relation",
    "color_attr": "colour",
}


def held_out_parts(spec: ShapesSpec) -> dict[str, int]:
    """How many held-out combinations of each kind a spec names."""
    kinds, things = held_out(), spec.things
    return {
        "colour": sum((thing.shape, thing.colour) in kinds["colour"] for thing in things),
        "background": sum((thing.shape, spec.background) in kinds["background"] for thing in things),
        "count": int((things[0].shape, len(things)) in kinds["count"] and spec.tag == "counting"),
        "pair": int(frozenset(thing.shape for thing in things) in kinds["pair"]),
        "relation": int((things[0].shape, spec.relation, things[-1].shape) in kinds["relation"]),
    }


# ---- random scenes


def draw_spec(
    rng: np.random.Generator,
    unseen: bool = False,
    tag: str | None = None,
    oversampling: Mapping[str, float] | None = None,
) -> ShapesSpec:
    """Draw a random scene of the category `tag` (None: at random, by `SHARES`).

    `oversampling` makes shapes or colours likelier than others, by name: {"crescent": 2}; of 1 where none is said.

    With `unseen` every combination of the category's kind (`KIND_OF_TAG`) is a held-out one, and nothing else is;
    without it nothing is (`held_out`).
    """
    tag = tag or TAGS[rng.choice(len(TAGS), p=[SHARES[name] for name in TAGS])]
    kind = KIND_OF_TAG[tag]
    while True:
        spec = _draw_things(rng, tag, oversampling or {})
        parts = held_out_parts(spec)
        wanted = len(spec.things) if unseen and kind in ("colour", "background") else int(unseen)
        if parts.pop(kind) == wanted and not any(parts.values()):
            break
    return _placed(rng, spec, lambda held: held == {spec.relation} if spec.relation else not _is_held_out(spec, held))


def complete(asked: ShapesSpec, rng: np.random.Generator) -> ShapesSpec:
    """A scene that shows what a spec says (`language.parse_caption`), and anything in place of what it leaves open."""
    things = list(asked.things)
    grounds = tuple(name for name in BACKGROUNDS if all(name != thing.colour for thing in things))
    background = asked.background or _choose(rng, grounds, {})
    for i, thing in enumerate(things):
        if asked.tag == "counting" and i:
            things[i] = things[0]
            continue
        others = {other.shape for other in things}
        shape = thing.shape or _choose(rng, tuple(name for name in SHAPES if name not in others), {})
        visible = tuple(name for name in COLOURS if name != background)
        things[i] = Thing(shape, thing.colour or _choose(rng, visible, {}))
    whole = asked._replace(things=tuple(things), background=background)
    return _placed(rng, whole, lambda held: asked.relation is None or held == {asked.relation})


def _placed(rng: np.random.Generator, spec: ShapesSpec, fits: Callable[[set[str]], bool]) -> ShapesSpec:
    """Give the things of a spec random places and sizes; of two things `fits` judges their relations."""
    while True:
        for layout in _layouts(rng, len(spec.things)):
            things = tuple(
                thing._replace(x=x, y=y, size=size) for thing, (x, y, size) in zip(spec.things, layout, strict=True)
            )
            if len(things) != 2 or fits(relations(box_of(things[0]), box_of(things[1]))):
                return spec._replace(things=things)


def _is_held_out(spec: ShapesSpec, held: set[str]) -> bool:
    """Whether two things have a held-out relation to each other."""
    first, second = (thing.shape for thing in spec.things)
    return not held_out()["relation"].isdisjoint((first, relation, second) for relation in held)


def _draw_things(rng: np.random.Generator, tag: str, weights: Mapping[str, float]) -> ShapesSpec:
    """A scene of that category whose things have no place yet."""
    background = _choose(rng, tuple(BACKGROUNDS), {})
    visible = tuple(colour for colour in COLOURS if colour != background)
    first = _choose(rng, SHAPES, weights)
    colour = _choose(rng, visible, weights)
    if tag in ("single_object", "colors"):
        things = [Thing(first, colour)]
    elif tag == "counting":
        things = [Thing(first, colour)] * int(rng.choice(list(COUNTS), p=list(COUNTS.values())))
    else:
        second = _choose(rng, tuple(shape for shape in SHAPES if shape != first), weights)
        others = tuple(name for name in visible if name != colour or tag != "color_attr")
        things = [Thing(first, colour), Thing(second, _choose(rng, others, weights))]
    relation = _choose(rng, RELATIONS, {}) if tag == "position" else None
    return ShapesSpec(tag, tuple(things), relation, background)


def _choose(rng: np.random.Generator, names: tuple[str, ...], weights: Mapping[str, float]) -> str:
    if weights.keys().isdisjoint(names):
        return names[rng.integers(len(names))]
    chances = np.array([weights.get(name, 1.0) for name in names])
    return names[rng.choice(len(names), p=chances / chances.sum())]


def _layouts(rng: np.random.Generator, count: int, tries: int = 64) -> list:
    """Random places for `count` things, each [x, y, size] in units: those of `tries` in which no two are too near."""
    low, high = DIAMETERS[count]
    size = 2 * rng.integers(low // 2, high // 2 + 1, size=(tries, count))
    nearest = size // 2 + MARGIN  # to an edge that a centre may come
    x, y = (nearest + (rng.random((tries, count)) * (UNITS - 2 * nearest + 1)).astype(int) for _ in "xy")
    apart = np.ones(tries, bool)
    for one, other in itertools.combinations(range(count), 2):
        room = (size[:, one] + size[:, other]) / 2 + GAP
        apart &= (abs(x[:, one] - x[:, other]) >= room) | (abs(y[:, one] - y[:, other]) >= room)
    return np.stack([x, y, size], axis=-1)[apart].tolist()
