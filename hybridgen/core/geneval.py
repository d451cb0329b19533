"""GenEval's rule: do the objects that were found in a picture make what its prompt asks for?

Only the rule, no detector: the `shapes` dataset's scorer and the `geneval` suite both judge by it. After
`evaluate_images.py` of github.com/djghosh13/geneval (MIT licence), whose verdicts it gives for the same detections.

A box is (left, top, right, bottom) in pixels of the picture; above is up, so a smaller y.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Box = tuple[float, float, float, float]

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # the six categories
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NEAR = 0.1  # of both boxes' sides: centres that are nearer than that, along an axis, are level


class Found(NamedTuple):
    """An object that a detector found: its class, how sure the detector is (0 to 1), its box, and, from detectors that
    give one, its mask (a boolean array of the picture's height and width)."""

    name: str
    score: float
    box: Box
    mask: object = None


def relations(box: Box, other: Box) -> set[str]:
    """Where `box` is, seen from `other`: none of `RELATIONS`, one, or two of them (on a diagonal)."""
    offsets, sides = [], []
    for axis in (0, 1):
        offsets.append((box[axis] + box[axis + 2] - other[axis] - other[axis + 2]) / 2)
        sides.append(abs(box[axis + 2] - box[axis]) + abs(other[axis + 2] - other[axis]))
    beyond = [
        math.copysign(max(abs(offset) - NEAR * side, 0), offset) for offset, side in zip(offsets, sides, strict=True)
    ]
    if max(map(abs, beyond)) < 1e-3:
        return set()
    dx, dy = (value / math.hypot(*offsets) for value in beyond)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in held.items() if holds}


def faults(
    objects: dict[str, Sequence[Found]],
    asked: dict,
    colours_of: Callable[[str, Sequence[Found]], list[str]],
) -> list[str]:
    """What is wrong with a picture, a sentence each; none where it is right.

    Args:
        objects: what was found, by class, the surest first. Colours and places are judged on the surest ones only.
        asked: a line of GenEval's metadata: `include`, each with class, count and perhaps color and position =
            [relation, index of another include], and `exclude` (class, count: fewer than that).
        colours_of: the colours of some objects of a class, in order.
    """
    wrong: list[str] = []
    groups: list[Sequence[Found] | None] = []  # the objects that each include matched
    for each in asked.get("include", ()):
        found = list(objects.get(each["class"], ()))[: each["count"]]
        fault = _fault(found, each, groups, colours_of)
        groups.append(None if fault else found)
        wrong += [fault] if fault else []
    for each in asked.get("exclude", ()):
        count = len(objects.get(each["class"], ()))
        if count >= each["count"]:
            wrong.append(f"expected fewer than {each['count']} of {each['class']}, found {count}")
    return wrong


def _fault(found: list[Found], each: dict, groups: list, colours_of: Callable) -> str:
    """What is wrong with the objects found for one include; "" if nothing is."""
    name, count = each["class"], each["count"]
    if len(found) < count:
        return f"expected {count} of {name}, found {len(found)}"
    if "color" in each:
        colours = colours_of(name, found)
        if colours.count(each["color"]) < count:
            return f"expected {count} {each['color']} of {name}, found {', '.join(colours)}"
    if "position" in each:
        relation, target = each["position"]
        if groups[target] is None:
            return f"there is nothing for {name} to be {relation}"
        for mine in found:
            for other in groups[target]:
                held = relations(mine.box, other.box)
                if relation not in held:
                    return f"expected {name} {relation} {other.name}, found it {' and '.join(sorted(held)) or 'level'}"
    return ""
