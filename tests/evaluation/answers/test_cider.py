"""CIDEr-D against pycocoevalcap 1.2: values that it gave, and itself where it is installed (100 MB, so not in CI)."""

import numpy as np
import pytest

from hybridgen.evaluation.answers.cider import cider, words_of

CAPTIONS = ["a man rides a brown horse", "Two dogs' bowls, on the floor.", "it isn't a cat", "a red bus", "horse"]
PEOPLE = [
    ["a man is riding a horse on the beach", "a man rides a brown horse", "person on a horse"],
    ["two dog bowls on a floor", "the dogs' bowls"],
    ["it is not a cat", "this isn't a cat!"],
    ["a blue bus in the street"],
    ["a man on a horse", "two dogs"],
]
SCORES = [3.67376551, 2.37514408, 4.76875666, 0.77038381, 0.65844439]  # by pycocoevalcap, on these words


def test_values_are_those_of_pycocoevalcap():
    assert cider(CAPTIONS, PEOPLE) == pytest.approx(SCORES, abs=1e-8)


def test_equal_to_pycocoevalcap_on_random_captions():
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    rng = np.random.default_rng(0)
    words = ["a", "dog", "cat", "on", "the", "red", "mat", "with", "two", "hats", "sits", "runs", "big", "small"]
    for _ in range(100):
        count = rng.integers(1, 7)
        captions = [" ".join(rng.choice(words, rng.integers(0, 10))) for _ in range(count)]
        people = [
            [" ".join(rng.choice(words, rng.integers(1, 10))) for _ in range(rng.integers(1, 6))] for _ in range(count)
        ]
        reference = scorer.CiderScorer()
        for caption, of_picture in zip(captions, people, strict=True):
            reference += (caption, of_picture)
        assert cider(captions, people) == pytest.approx(reference.compute_score()[1], abs=1e-12)  # worst 7e-16


def test_words_are_without_case_and_punctuation():
    assert words_of("It isn't a dog's X-ray, (really)!") == ["it", "is", "n't", "a", "dog", "'s", "x-ray", "really"]


def test_the_same_words_are_ten_and_no_shared_ones_none():
    people = [["a small dog runs fast"], ["two red cars on sand"]]
    assert cider([one[0] for one in people], people) == pytest.approx([10, 10])
    assert cider(["nothing like that here", "blue"], people) == pytest.approx([0, 0])


def test_one_picture_has_no_rare_words():
    assert cider(["a dog"], [["a dog"]]) == [0.0]
