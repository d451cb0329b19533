"""GenEval's rule gives the verdicts of its own `evaluate_images.py`, written here a second time, in another way."""

import itertools

import numpy as np
import pytest

from hybridgen.core.geneval import COLOURS, RELATIONS, Found, faults, relations


def reference_relations(box, other):
    """As the reference computes it: numpy, corner pairs, threshold 0.1 of both sides."""
    boxes = np.array([box, other], float).reshape(2, 2, 2)
    centre, centre_other = boxes.mean(axis=1)
    side, side_other = np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centre - centre_other
    beyond = np.maximum(np.abs(offset) - 0.1 * (side + side_other), 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    tests = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in tests.items() if holds}


def test_relations_are_the_references():
    rng = np.random.default_rng(0)
    met = set()
    for _ in range(3000):
        corners = rng.integers(0, 20, (2, 2, 2))
        box, other = (tuple(map(float, [*pair.min(0), *pair.max(0) + 1])) for pair in corners)
        expected = reference_relations(box, other)
        assert relations(box, other) == expected
        met.add(frozenset(expected))
    assert len(met) == 9  # none, four, and four diagonals


def test_left_and_above_are_those_of_a_picture():
    here = (0, 0, 10, 10)
    assert relations(here, (30, 0, 40, 10)) == {"left of"}
    assert relations(here, (0, 30, 10, 40)) == {"above"}
    assert relations((30, 30, 40, 40), here) == {"right of", "below"}
    assert relations(here, (1, 1, 11, 11)) == set()


def reference_verdict(objects, asked, colours):
    """The reference's loop: AND over include, the surest `count` only, then OR over exclude."""
    correct, groups = True, []
    for each in asked["include"]:
        found = objects.get(each["class"], [])[: each["count"]]
        matched = len(found) >= each["count"]
        if matched and "color" in each and [colours[one] for one in found].count(each["color"]) < each["count"]:
            matched = False
        if matched and "position" in each:
            relation, target = each["position"]
            others = groups[target]
            matched = others is not None and all(
                relation in reference_relations(one.box, other.box) for one in found for other in others
            )
        correct &= matched
        groups.append(found if matched else None)
    for each in asked.get("exclude", []):
        correct &= len(objects.get(each["class"], [])) < each["count"]
    return correct


def test_verdicts_are_the_references_on_random_finds():
    rng = np.random.default_rng(1)
    names, rights = ("dog", "car", "cup"), 0
    for number in range(4000):
        objects, colours = {}, {}
        for i in range(rng.integers(1, 6)):
            left, top, wide, high = map(float, rng.integers(1, 12, 4))
            one = Found(names[rng.integers(3)], 1 - i / 10, (left, top, left + wide, top + high))
            objects.setdefault(one.name, []).append(one)
            colours[one] = COLOURS[rng.integers(2)]
        first, second = names[number % 3], names[(number + 1) % 3]
        asked = [
            {"include": [{"class": first, "count": 2}], "exclude": [{"class": first, "count": 3}]},
            {"include": [{"class": first, "count": 1, "color": COLOURS[0]}, {"class": second, "count": 1}]},
            {
                "include": [
                    {"class": first, "count": 1},
                    {"class": second, "count": 1, "position": [RELATIONS[number % 4], 0]},
                ]
            },
        ][number // 4 % 3]
        said = faults(objects, asked, lambda name, some, of=colours: [of[one] for one in some])
        assert (not said) == reference_verdict(objects, asked, colours)
        rights += not said
    assert 400 < rights < 2000  # both verdicts are common


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"include": [{"class": "cup", "count": 1}]}, "expected 1 of cup, found 0"),
        ({"include": [{"class": "dog", "count": 3}]}, "expected 3 of dog, found 2"),
        ({"include": [{"class": "dog", "count": 1, "color": "red"}]}, "expected 1 red of dog, found blue"),
        ({"include": [], "exclude": [{"class": "dog", "count": 2}]}, "fewer than 2 of dog, found 2"),
        (
            {"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]},
            "there is nothing for dog to be above",
        ),
        (
            {"include": [{"class": "car", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]},
            "expected dog above car, found it left of",
        ),
    ],
)
def test_what_is_wrong_is_said(asked, sentence):
    dogs = [Found("dog", 0.9, (0, 0, 5, 5)), Found("dog", 0.8, (10, 10, 15, 15))]
    objects = {"dog": dogs, "car": [Found("car", 0.9, (20, 0, 25, 5))]}
    said = faults(objects, asked, lambda name, some: ["blue" for _ in some])
    assert sentence in "; ".join(said)


def test_colours_are_judged_on_the_surest_alone():
    """As in the reference: a second, red dog does not help."""
    dogs = [Found("dog", 0.9, (0, 0, 5, 5)), Found("dog", 0.8, (10, 10, 15, 15))]
    colours = dict(zip(dogs, ("blue", "red"), strict=True))
    asked = {"include": [{"class": "dog", "count": 1, "color": "red"}]}
    for order, right in itertools.product((dogs, dogs[::-1]), (True,)):
        said = faults({"dog": order}, asked, lambda name, some: [colours[one] for one in some])
        assert (not said) == (right and order[0] is dogs[1])
