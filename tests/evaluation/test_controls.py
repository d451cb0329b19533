"""The controls against answerers whose behaviour is known, and pictures that never stand for themselves."""

import itertools

import numpy as np
import pytest
from PIL import Image

from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.controls import (
    GRAY,
    answer_with_controls,
    blank_of,
    most_frequent,
    other_pictures,
)
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.work import Work
from tests.processors import picture

TRUTH = ["red", "red", "red", "blue", "green", "red"]


def plain(colour: str, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def score(answers: list[str]) -> dict[str, dict]:
    right = sum(answer == wanted for answer, wanted in zip(answers, TRUTH, strict=True))
    return {"all": with_interval(tally(right, len(TRUTH)))}


class Answerer:
    """Stands in for a model and remembers what it was shown.

    Args:
        says: (picture or None, question) -> answer.
    """

    def __init__(self, says):
        self.says, self.asked = says, {}

    def __call__(self, images: list, questions: list[str], part: str, label: str) -> list[str]:
        self.asked[part] = (images, questions)
        return [self.says(image, question) for image, question in zip(images, questions, strict=True)]


def looks(image, question: str) -> str:
    names = {plain(name).getpixel((0, 0)): name for name in ("red", "blue", "green")}
    return "?" if image is None else names.get(image.getpixel((0, 0)), "gray")


def run(says, pictures: list | None = None, **how):
    answerer = Answerer(says)
    pictures = list(map(plain, TRUTH)) if pictures is None else pictures
    constants = most_frequent(["colour"] * len(TRUTH), [[answer] for answer in TRUTH])
    asked = ["what colour?"] * len(TRUTH)
    return answerer, answer_with_controls(Work(None), "vq", pictures, asked, score, constants, answerer, **how)


def test_who_looks_is_right_and_blind_or_misled_is_not():
    answerer, done = run(looks)
    (result,) = done.tallies.values()
    beside = {name: result[name] for name in ("share", "majority", "blank", "shuffled", "unseen")}
    assert beside == {"share": 1.0, "majority": 4 / 6, "blank": 0.0, "shuffled": 0.0, "unseen": 0.0}
    assert done.answers == TRUTH
    assert done.notes == []
    assert list(answerer.asked) == ["answer-vq", "blank-vq", "shuffled-vq", "unseen-vq"]


def test_who_does_not_look_scores_the_same_everywhere():
    _, done = run(lambda image, question: "red", group="turn-")
    result = done.tallies["all"]
    assert {result[name] for name in ("share", "majority", "blank", "shuffled", "unseen")} == {4 / 6}


def test_an_empty_picture_of_one_size_is_asked_once_a_wording():
    pictures = [plain(colour, 4 if number < 2 else 8) for number, colour in enumerate(TRUTH)]
    answerer, _ = run(looks, pictures)
    images, questions = answerer.asked["blank-vq"]
    assert [image.size for image in images] == [(4, 4), (8, 8)]
    assert {image.getpixel((0, 0)) for image in images} == {GRAY}
    assert len(answerer.asked["unseen-vq"][1]) == len(set(questions)) == 1


def test_without_another_picture_there_is_no_shuffling_and_it_is_said():
    _, done = run(looks, [plain("red") for _ in TRUTH])
    assert "shuffled" not in done.tallies["all"]
    assert done.notes == ["shuffled pictures are left out: there is no other picture to show"]


def test_questions_without_pictures_have_no_controls_but_the_majority():
    answerer, done = run(looks, [None] * len(TRUTH))
    assert {"blank", "shuffled", "unseen"} & set(done.tallies["all"]) == set()
    assert done.tallies["all"]["majority"] == 4 / 6
    assert list(answerer.asked) == ["answer-vq"]


@pytest.mark.parametrize("seed", range(20))
def test_a_picture_never_stands_for_itself(seed):
    """Also where it stands many times, as another object: each is shown as often as it would be."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 255, rng.integers(2, 12))
    shown = [Image.new("RGB", (4, 4), (int(colours[i]), 0, 0)) for i in rng.integers(0, len(colours), 30)]
    kinds = {image.getpixel((0, 0)) for image in shown}
    others = other_pictures(shown)
    if len(kinds) == 1:
        assert others is None
        return
    pairs = {(mine.getpixel((0, 0)), other.getpixel((0, 0))) for mine, other in zip(shown, others, strict=True)}
    assert all(mine != other for mine, other in pairs)
    assert len(pairs) == len(kinds) == len({other for _, other in pairs})  # each in the place of exactly one other
    again = other_pictures(shown)
    assert [image.getpixel((0, 0)) for image in again] == [image.getpixel((0, 0)) for image in others]


def test_several_pictures_have_none_in_common_with_those_that_stand_for_them():
    pictures = [picture(seed=seed) for seed in range(8)]
    sets = [(pictures[0], pictures[1]), (pictures[1], pictures[2]), (pictures[3], pictures[4]), pictures[5], None,
            (pictures[5], pictures[6], pictures[7]), (pictures[4], pictures[6])]  # fmt: skip
    others = other_pictures(sets)
    for mine, other in zip(sets, others, strict=True):
        mine, other = (of if isinstance(of, tuple) else (of,) for of in (mine, other))
        if mine == (None,):
            assert other == (None,)
            continue
        assert not {id(one) for one in mine} & {id(one) for one in other}
        assert len(other) == len(mine) or len(mine) in (1, 3)
    assert other_pictures([(pictures[0], pictures[1]), (pictures[1], pictures[2])]) is None


def test_blank_pictures_keep_their_sizes():
    blank = blank_of((plain("red", 4), plain("blue", 6)))
    assert [image.size for image in blank] == [(4, 4), (6, 6)]
    assert blank_of(None) is None


def test_the_most_frequent_answer_is_the_best_constant_one():
    categories = ["a", "a", "a", "b", "b"]
    accepted = [["x"], ["y", "Z."], ["z"], ["p"], ["p"]]
    assert most_frequent(categories, accepted) == ["z", "z", "z", "p", "p"]
    for constant in itertools.chain(*accepted):  # none is accepted by more
        assert sum(constant in of_one for of_one in accepted[:3]) <= 2
