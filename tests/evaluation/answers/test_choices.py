"""Which choice a free answer picks. Where MMMU's parser finds one without chance, it is the same, but for the article
"A" and texts."""

import pytest

from hybridgen.evaluation.answers.choices import parse_choice

CHOICES = ["a dog", "cat", "big cat", "the red car"]
PICKED = {
    "B": 1, "(B)": 1, "B.": 1, "B. cat": 1, "**D**": 3, "Answer: B": 1, "The answer is C.": 2,
    "the correct option is (D)": 3, "I think it is D": 3, "C because it is big": 2, "Answer:\nB": 1,
    "The answer is (A) a dog": 0, "A": 0, "A.": 0,  # to here as MMMU's parser
    "b": 1, "(c)": 2, "B) cat": 1, "[A]": 0, "the answer is b": 1, "The answer is a": 0,
    "option B: cat": 1, '"C"': 2, "D: the red car": 3, "B\n\nExplanation: A is wrong": 1,
    "a dog": 0, "A dog": 0, "The answer is a dog": 0, "it is a dog": 0, "The Red Car.": 3,
    "a small cat": 1, "A big cat is here": 2, "a dog? no, a cat": 1,
    "dunno": None, "": None, "E": None, "answer is not clear": None, "Cats": None, "A bird": None,
}  # fmt: skip


@pytest.mark.parametrize(("answer", "number"), PICKED.items())
def test_picked(answer, number):
    assert parse_choice(answer, CHOICES) == number


def test_letters_go_as_far_as_there_are_choices():
    assert parse_choice("C", ["yes", "no"]) is None
    assert parse_choice("I", [f"choice number {number}" for number in range(9)]) == 8
