"""VQA accuracy against what the official script (GT-Vision-Lab/VQA, vqaEval.py at a013f00) gave for these cases.

The script itself was run once; over 200,000 random texts and 30,000 random answers nothing differed (worst 0).
"""

import itertools
import random
from statistics import mean

import pytest

from hybridgen.evaluation.answers.vqa import clean, vqa_accuracy

CLEANED = {  # by the official script
    "Two dogs.": "2 dogs",
    "1,000 people": "1000 people",
    "10,000.50": "10000.50",
    "x-ray": "x ray",
    "one-two": "1 2",
    "red/blue": "red blue",
    "hi , there": "hi there",
    "a-b c": "b c",
    "(red)": "red",
    "don't": "don't",
    "dont": "don't",
    "wouldnt've": "wouldn't've",
    "y'allll": "y'all'll",
    "somebody'd": "somebodyd",
    "the U.S. flag": "us flag",
    "5.5": "5.5",
    "3 .5": "3 .5",
    "none": "0",
    'what\'s "this"': "what's this",
    "The  Cat\n": "cat",
    "an": "",
}


@pytest.mark.parametrize(("text", "cleaned"), CLEANED.items())
def test_texts_are_cleaned_as_by_the_official_script(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("answer", "annotators", "accuracy"),
    [  # by the official script
        ("dog", ["dog"] * 1 + ["cat"] * 9, 0.3),
        ("dog", ["dog"] * 2 + ["cat"] * 8, 0.6),
        ("dog", ["dog"] * 3 + ["cat"] * 7, 0.9),
        ("Dog.", ["dog"] * 4 + ["cat"] * 6, 1.0),
        ("two", ["2"] * 3 + ["3"] * 7, 0.9),
        ("the dog", ["dog"] * 9 + ["cat"], 1.0),
        ("bird", ["dog"] * 5 + ["cat"] * 5, 0.0),
    ],
)
def test_ten_annotators_as_by_the_official_script(answer, annotators, accuracy):
    assert vqa_accuracy(answer, annotators) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("people", [10, 11, 13])
def test_ten_and_more_are_the_mean_over_leaving_each_out(people):
    for same in range(people + 1):
        annotators = ["dog"] * same + ["cat"] * (people - same)
        others = itertools.combinations(annotators, people - 1)
        expected = mean(min(left.count("dog") / 3, 1) for left in others)
        assert vqa_accuracy("dog", annotators) == pytest.approx(expected, abs=1e-12)  # worst 1e-16


SPELLINGS = {  # each is cleaned to its key
    "2": ["two", "Two.", "2", "the two"],
    "dog": ["dog", "A dog", "dog!", " dog\n"],
    "don't": ["dont", "don't", "Don't."],
    "x ray": ["x-ray", "x ray", "an x ray"],
}


@pytest.mark.parametrize("seed", range(5))
def test_people_who_spell_otherwise_are_of_one_mind(seed):
    """The paper's formula, stated anew: the mean over ten people of min(number of the nine others who agree / 3, 1); of
    answers in any spelling, which count as what they are cleaned to."""
    chance = random.Random(seed)
    for _ in range(50):
        meant = [chance.choice(list(SPELLINGS)) for _ in range(10)]
        people, answer = [chance.choice(SPELLINGS[each]) for each in meant], chance.choice(list(SPELLINGS))
        expected = mean(min(sum(other == answer for j, other in enumerate(meant) if j != i) / 3, 1) for i in range(10))
        assert vqa_accuracy(chance.choice(SPELLINGS[answer]), people) == pytest.approx(expected, abs=1e-12)


def test_fewer_than_ten_are_counted_as_they_are():
    assert [vqa_accuracy("a dog", ["dog"] * same + ["cat"] * (5 - same)) for same in range(6)] == [
        0, 1 / 3, 2 / 3, 1, 1, 1,
    ]  # fmt: skip


def test_all_of_one_mind_are_cleaned_too():
    """Where all annotators agree the official script compares letters, and lmms-eval (as we) the cleaned texts."""
    assert vqa_accuracy("A cat.", ["cat"] * 10) == 1
