"""Exact scores for drawn scenes: which shapes does a picture show, and are they what its prompt asks for?

No network judges here and nothing is learned. A picture is explained shape by shape: the shape, colour, size and place
that explain most are found and taken away, until nothing that looks like a shape is left (`find_things`). What was
found is judged by GenEval's rule (`core.geneval`).

1. The background is the mean colour of the picture's rim, where no scene has a thing.
2. Coarsely, at 16 x 16: every shape in five sizes at every second pixel, in every colour.
3. Finely, at 32 x 32 around the best of these: every shape in every size at every half pixel, in every colour.

A shape is covered pixels T (0 to 1) times (colour - background) d. Taking it away from what is left of the picture, r,
lowers the squared error by 2 sum(T r.d) - |d|^2 sum(T^2): its gain. The gain over |d|^2 sum(T^2), which is 1 where the
shape is there exactly and negative where nothing is, is how sure the find is. Finely, the largest gain is the best;
coarsely, the largest product of gain and sureness (at most 1), as the gain alone prefers one large shape over four
small ones that it half covers.

Shapes: n pictures, m templates of P pixels, k = 10 colours.
"""

import itertools
from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.core.geneval import COLOURS, TAGS, Found, faults, relations
from hybridgen.data.synthetic.questions import Tally, tally
from hybridgen.data.synthetic.shapes.language import OBJECT, caption, prompt
from hybridgen.data.synthetic.shapes.pictures import (
    BACKGROUNDS,
    RGB,
    SHAPES,
    SIZE,
    UNITS,
    ShapesSpec,
    Thing,
    box_of,
    coverage,
)
from hybridgen.data.synthetic.sizes import resized

SURE = 0.5  # finds that are less sure than that are no shapes
MOST = 8  # things that are looked for in a picture: twice as many as a scene has

_CHUNK = 32  # pictures at a time, which bounds the memory for their candidates
_LEFT = 0.15  # a coarse find that is less sure ends the search
_NEAR = 60  # grey levels between a colour and the background, at least: below, nothing shows
_WINDOW = 24  # pixels a side of what is looked at finely
_COARSE_SIZES = (9, 12, 14, 17, 20)  # pixels at 32 x 32
_FINE_SIZES = tuple(range(8, 22))
_SHIFTS = np.arange(-3, 4) / 2  # pixels from the coarse place


class Sighting(NamedTuple):
    """A thing in a picture, and how sure that is (1: pixel for pixel)."""

    thing: Thing
    score: float


# ---- verdicts


def score_pictures(images: np.ndarray, specs: list[ShapesSpec]) -> dict[str, Tally]:
    """How many pictures show what was asked: (n, S, S, 3) uint8 against n specs.

    Returns a tally {"right", "n", "share"} for each category of GenEval that the specs have, for all "pictures", and
    "exact": those that show nothing besides (GenEval's rule allows more, but for counting).

    Raises ValueError when the counts differ or the images have another shape or type.
    """
    verdicts = judge_pictures(images, specs)
    tags = {
        tag: [verdict[tag] for verdict in verdicts if tag in verdict]
        for tag in TAGS
        if any(tag in verdict for verdict in verdicts)
    }
    tags |= {name: [verdict[name] for verdict in verdicts] for name in ("pictures", "exact")}
    return {name: tally(sum(rights), len(rights)) for name, rights in tags.items()}


def judge_pictures(images: np.ndarray, specs: list[ShapesSpec]) -> list[dict[str, bool]]:
    """As `score_pictures`, picture by picture: {the spec's category, "pictures" and "exact": whether it is right}.

    Of a scene its category's prompt is judged (`language.prompt`), of a spec without places (`parse_caption`) all that
    it says.
    """
    if len(images) != len(specs):
        raise ValueError(
            f"{len(images)} pictures cannot be compared with {len(specs)} specs: pass one spec for each picture"
        )
    found = nearest_specs(images)
    return [_judge(seen, asked_of(spec)) for seen, spec in zip(found, specs, strict=True)]


def asked_of(spec: ShapesSpec) -> ShapesSpec:
    """What a picture is judged by: a scene's prompt, or all that a spec without places says."""
    return prompt(spec) if any(thing.size is not None for thing in spec.things) else spec


def _judge(seen: ShapesSpec, asked: ShapesSpec) -> dict[str, bool]:
    same_ground = asked.background in (None, seen.background)
    exact = same_ground and len(seen.things) == len(asked.things) and _can_be(seen, asked)
    names = [thing.shape for thing in asked.things]
    if None in names or (asked.tag != "counting" and len(set(names)) < len(names)):
        # what GenEval does not ask: a thing that is left open, or one beside another of its kind
        right = exact if asked.tag == "counting" else same_ground and _can_be(seen, asked)
    else:
        objects: dict[str, list[Found]] = {}
        colours = {}
        for thing in seen.things:
            box = box_of(thing)
            objects.setdefault(thing.shape, []).append(Found(thing.shape, 1.0, box))
            colours[box] = thing.colour
        line = geneval_line(asked)
        right = same_ground and not faults(objects, line, lambda name, some: [colours[each.box] for each in some])
    return {asked.tag: right, "pictures": right, "exact": exact}


def _can_be(seen: ShapesSpec, asked: ShapesSpec) -> bool:
    """Whether some of the things seen are, one for one, those asked for."""
    for some in itertools.permutations(seen.things, len(asked.things)):
        fits = all(
            want.shape in (None, thing.shape) and want.colour in (None, thing.colour)
            for want, thing in zip(asked.things, some, strict=True)
        )
        if fits and (asked.relation is None or asked.relation in relations(box_of(some[0]), box_of(some[1]))):
            return True
    return False


def geneval_line(asked: ShapesSpec) -> dict:
    """What is asked for, as a line of GenEval's metadata (`evaluation_metadata.jsonl`): tag, include, exclude, prompt.

    The background, which GenEval does not know, is in the prompt alone.
    """
    things = asked.things[:1] if asked.tag == "counting" else asked.things
    include = []
    for thing in things:
        one = {"class": thing.shape or OBJECT, "count": len(asked.things) if asked.tag == "counting" else 1}
        include.append(one | ({"color": thing.colour} if thing.colour else {}))
    if asked.relation:  # GenEval names first what the other is seen from
        include = [include[1], include[0] | {"position": [asked.relation, 0]}]
    line = {"tag": asked.tag, "include": include}
    if asked.tag == "counting":
        line["exclude"] = [{"class": include[0]["class"], "count": len(asked.things) + 1}]
    return {**line, "prompt": caption(asked)}


def majority_pictures(specs: list[ShapesSpec]) -> dict[str, float]:
    """What always drawing the commonest prompt of a category would score: shares by the names of `score_pictures`."""
    prompts: dict[str, list[str]] = {}
    for spec in specs:
        prompts.setdefault(spec.tag, []).append(caption(asked_of(spec)))
    commonest = {tag: Counter(some).most_common(1)[0][1] for tag, some in prompts.items()}
    shares = {tag: commonest[tag] / len(prompts[tag]) for tag in TAGS if tag in prompts}
    overall = sum(commonest.values()) / len(specs)
    return {**shares, "pictures": overall, "exact": overall}


# ---- what a picture shows


def nearest_specs(images: np.ndarray) -> list[ShapesSpec]:
    """What each picture shows: (n, S, S, 3) uint8 -> n specs, the surest things first, of the nearest background.

    The category is the plainest that says it all: `colors` of one thing, `color_attr` of two, else `counting`.
    """
    images = np.asarray(images)
    grounds = list(BACKGROUNDS)
    distance = ((_background(_pooled(images))[:, None] - np.float32(list(BACKGROUNDS.values()))) ** 2).sum(-1)
    specs = []
    for sightings, nearest in zip(find_things(images), distance.argmin(1), strict=True):
        things = tuple(sighting.thing for sighting in sightings if sighting.score >= SURE)
        two = len({thing.shape for thing in things}) == len(things) == 2
        tag = "colors" if len(things) == 1 else "color_attr" if two else "counting"
        specs.append(ShapesSpec(tag, things, None, grounds[nearest]))
    return specs


def detect(picture: Image.Image) -> list[Found]:
    """The shapes in a picture as a detector's finds, boxes in its pixels: what GenEval's suite can be tested with."""
    (sightings,) = find_things(_of_picture(picture))
    return [
        Found(thing.shape, score, tuple(side * picture.width / UNITS for side in box_of(thing)))
        for thing, score in sightings
    ]


def colours_of(picture: Image.Image, objects: list[Found]) -> list[str]:
    """The colours of objects that `detect` found, in order."""
    (sightings,) = find_things(_of_picture(picture))
    colours = {found: thing.colour for found, (thing, _) in zip(detect(picture), sightings, strict=True)}
    return [colours[each] for each in objects]


detect.colours = colours_of  # as `evaluation.suites.geneval` wants it of a detector


def _of_picture(picture: Image.Image) -> np.ndarray:
    if picture.width != picture.height:
        raise ValueError(f"shapes are found in square pictures, and this one is {picture.width} x {picture.height}")
    return np.asarray(picture.convert("RGB"))[None]


def find_things(images: np.ndarray) -> list[list[Sighting]]:
    """All things in each picture, the surest first: (n, S, S, 3) uint8 -> n lists.

    S is 32, a whole multiple, or a part: everything is judged at 32 x 32. 500 pictures take a few seconds on one core.
    """
    images = np.asarray(images)
    found = []
    for start in range(0, len(images), _CHUNK):
        found += _explain(_pooled(images[start : start + _CHUNK]))
    return [sorted(sightings, key=lambda sighting: -sighting.score) for sightings in found]


def _pooled(images: np.ndarray) -> np.ndarray:
    """(n, S, S, 3) uint8 -> (n, 32, 32, 3) float32."""
    return resized(images, SIZE).astype(np.float32)


def _background(pictures: np.ndarray) -> np.ndarray:
    """The mean colour of each picture's rim, less what is far from its median: (n, 32, 32, 3) -> (n, 3)."""
    rim = np.ones((SIZE, SIZE), bool)
    rim[1:-1, 1:-1] = False
    pixels = pictures[:, rim]  # (n, 124, 3)
    near = (np.abs(pixels - np.median(pixels, axis=1, keepdims=True)).max(-1, keepdims=True) <= 100).astype(np.float32)
    return (pixels * near).sum(1) / np.maximum(near.sum(1), 1)


def _explain(pictures: np.ndarray) -> list[list[Sighting]]:
    """(n, 32, 32, 3) float32 -> the things of each picture, in the order in which they are found."""
    background = _background(pictures)
    rest = (pictures - background[:, None, None]).transpose(0, 3, 1, 2).copy()  # (n, 3, 32, 32)
    colours = np.float32([RGB[name] for name in COLOURS]) - background[:, None]  # (n, k, 3)
    found: list[list[Sighting]] = [[] for _ in pictures]
    active = np.arange(len(pictures))
    for _ in range(MOST):
        places, sure = _coarse_places(rest[active], colours[active])
        active, places = active[sure > _LEFT], places[sure > _LEFT]
        if not len(active):
            break
        for i, sighting in zip(active, _take_away(rest, colours, active, places), strict=True):
            found[i].append(sighting)
    return found


def _coarse_places(rest: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place whose best shape gains most: (n, 3, 32, 32), (n, k, 3) -> (n, 2) x and y in pixels, (n,) sureness."""
    templates, places = _coarse_bank()
    small = rest.reshape(len(rest), 3, SIZE // 2, 2, SIZE // 2, 2).mean(axis=(3, 5)).reshape(len(rest), 3, -1)
    best, _, sure = _best(small, templates, colours, cautious=True)
    return places[best], sure


def _take_away(rest: np.ndarray, colours: np.ndarray, which: np.ndarray, places: np.ndarray) -> list[Sighting]:
    """Find the best shape around each place, and take it away from `rest`, in place."""
    templates, described = _fine_bank()
    half, sightings = _WINDOW // 2, []
    padded = np.pad(rest[which], ((0, 0), (0, 0), (half, half), (half, half)))
    windows = np.stack([one[:, y : y + _WINDOW, x : x + _WINDOW] for one, (x, y) in zip(padded, places, strict=True)])
    best, colour, sure = _best(windows.reshape(len(which), 3, -1), templates, colours[which], cautious=False)
    for one, i, (x, y), t, c, score in zip(padded, which, places, best, colour, sure, strict=True):
        template = templates[t].reshape(_WINDOW, _WINDOW)
        one[:, y : y + _WINDOW, x : x + _WINDOW] -= template * colours[i, c][:, None, None]
        rest[i] = one[:, half:-half, half:-half]
        shape, size, dx, dy = described[t]
        scale = UNITS / SIZE
        thing = Thing(shape, COLOURS[c], round((x + dx) * scale), round((y + dy) * scale), round(size * scale))
        sightings.append(Sighting(thing, float(np.clip(score, 0, 1))))
    return sightings


def _best(
    rest: np.ndarray, templates: np.ndarray, colours: np.ndarray, cautious: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What explains most: (n, 3, P), (m, P), (n, k, 3) -> template (n,), colour (n,) and sureness (n,).

    Args:
        cautious: by the product of gain and sureness, not the gain alone.
    """
    contrast, area = (colours**2).sum(-1), (templates**2).sum(-1)  # (n, k), (m,)
    sure = colours @ ((rest @ templates.T) * (2 / area))  # (n, k, m)
    sure /= np.maximum(contrast, 1)[..., None]
    sure -= 1
    worth = sure * area
    worth *= np.where(contrast < _NEAR**2, 0, contrast)[..., None]  # the gain
    if cautious:
        worth *= np.clip(sure, 0, 1)  # above 1: a colour that is too weak, which another one explains better
    colour, template = np.divmod(worth.reshape(len(rest), -1).argmax(axis=1), len(templates))
    return template, colour, sure[np.arange(len(rest)), colour, template]


@cache
def _coarse_bank() -> tuple[np.ndarray, np.ndarray]:
    """Templates at 16 x 16, (m, 256), and the centre of each in pixels of 32 x 32, (m, 2)."""
    templates, places = [], []
    for shape, size in itertools.product(SHAPES, _COARSE_SIZES):
        mask = coverage(shape, size, SIZE, SIZE, 2 * SIZE, 4)
        centres = np.arange(4 + (size - 8) // 4 * 2, SIZE - 3 - (size - 8) // 4 * 2, 2)  # where it is inside
        for x, y in itertools.product(centres, centres):
            part = mask[SIZE - y : 2 * SIZE - y, SIZE - x : 2 * SIZE - x]
            templates.append(part.reshape(SIZE // 2, 2, SIZE // 2, 2).mean(axis=(1, 3)).ravel())
            places.append((x, y))
    return np.stack(templates), np.array(places)


@cache
def _fine_bank() -> tuple[np.ndarray, list[tuple[str, float, float, float]]]:
    """Templates of a window, (m, P), and each one's shape, size and shift from the window's centre in pixels."""
    middle = 1.5 * _WINDOW / 2 + 2  # of a mask that is cut to the window at whole pixels
    templates, described = [], []
    for shape, size, half_x, half_y in itertools.product(SHAPES, _FINE_SIZES, (0, 0.5), (0, 0.5)):
        pixels = int(2 * middle)
        mask = coverage(shape, size, middle + half_x, middle + half_y, pixels, 8)
        across, down = (_SHIFTS[np.isclose(_SHIFTS % 1, half)] for half in (half_x, half_y))
        for dx, dy in itertools.product(across, down):
            left, top = (int(middle - _WINDOW / 2 - (shift - half)) for shift, half in ((dx, half_x), (dy, half_y)))
            templates.append(mask[top : top + _WINDOW, left : left + _WINDOW].ravel())
            described.append((shape, size, float(dx), float(dy)))
    return np.stack(templates), described
