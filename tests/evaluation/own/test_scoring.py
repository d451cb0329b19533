"""Answers to own data in numbers: each kind's, counted by hand."""

from dataclasses import replace

import pytest

from hybridgen.evaluation.own.records import Asked
from hybridgen.evaluation.own.scoring import constants_of, credits_of, score, values_of


def asked(kind: str, *accepted: str, choices: tuple = (), category: str = "") -> Asked:
    return Asked("own.jsonl:1", "[]", "what?", None, accepted, kind, choices, category)


ASKED = [
    asked("exact", "a dog", "dog", category="animals"),
    asked("exact", "red"),
    asked("yes_no", "Yes."),
    asked("yes_no", "no"),
    asked("multiple_choice", "B", choices=("cat", "dog")),
    asked("multiple_choice", "cat", choices=("cat", "dog")),
    asked("vqa", *["dog"] * 3, *["cat"] * 7),
    asked("anls", "hello"),
    asked("caption", "a small dog runs fast"),
    asked("caption", "two red cars on sand"),
]
ANSWERS = ["Dog.", "blue", "yes, it is", "yes", "a dog", "no idea", "the dog", "hallo", "a small dog runs fast", "sky"]


def test_values():
    assert values_of(ANSWERS, ASKED) == pytest.approx([1, 0, 1, 0, 1, 0, 0.9, 0.8, 10, 0])
    assert credits_of(values_of(ANSWERS, ASKED), ASKED) == pytest.approx([1, 0, 1, 0, 1, 0, 0.9, 0.8, 1, 0])


def test_tallies():
    tallies = score(ANSWERS, ASKED)
    counts = {name: (one["right"], one["n"]) for name, one in tallies.items() if "share" in one}
    assert counts == {
        "exact": (1, 2), "exact of animals": (1, 1), "multiple_choice": (1, 2), "multiple_choice_unclear": (1, 2),
        "yes_no": (1, 2), "yes_no_precision": (1, 2), "yes_no_recall": (1, 1), "yes_no_yes_ratio": (2, 2),
        "yes_no_unclear": (0, 2),
    }  # fmt: skip
    values = {name: (one["value"], one["n"], one["unit"]) for name, one in tallies.items() if "value" in one}
    assert values == {
        "vqa": (pytest.approx(0.9), 1, "VQA accuracy"), "anls": (pytest.approx(0.8), 1, "ANLS"),
        "caption": (pytest.approx(5), 2, "CIDEr"), "yes_no_f1": (pytest.approx(2 / 3), 2, "F1"),
        "all": (pytest.approx(0.57), 10, "mean credit"),
    }  # fmt: skip


def test_where_all_is_right_or_wrong_the_total_is_a_share():
    total = score(["dog", "x"], ASKED[:2])["all"]
    assert (total["right"], total["n"], total["share"]) == (1, 2, 0.5)


def test_questions_of_one_group_are_not_independent():
    """Four copies of each question, about its picture, are no more than the questions: only their count is more."""
    numbered = [replace(one, group=str(i)) for i, one in enumerate(ASKED)]
    once, copies = score(ANSWERS, numbered), score([*ANSWERS] * 4, [*numbered] * 4)
    assert score(ANSWERS, ASKED) == once
    for name, tally in once.items():
        many = copies[name]
        if name.startswith("caption") or name == "all":  # CIDEr counts how many captions have a word
            continue
        number = "share" if "share" in tally else "value"
        assert (many["n"], many[number]) == (4 * tally["n"], pytest.approx(tally[number])), name
        assert many["groups"] == tally["n"]
        assert (many["low"], many["high"]) == (pytest.approx(tally["low"]), pytest.approx(tally["high"])), name


def test_the_majority_answers_as_the_kind_wants():
    constants = constants_of([*ASKED[2:6], asked("multiple_choice", "A", choices=("cat", "owl"))])
    assert constants == ["yes", "yes", "cat", "cat", "cat"]
    assert score(constants, [*ASKED[2:6], asked("multiple_choice", "A", choices=("cat", "owl"))])["all"]["right"] == 3


def test_answers_that_pick_no_choice_are_counted():
    three = [asked("multiple_choice", "B", choices=("cat", "dog"))] * 3
    tallies = score(["dog", "A", "an owl"], three)
    assert {name: (one["right"], one["n"]) for name, one in tallies.items()} == {
        "multiple_choice": (1, 3), "multiple_choice_unclear": (1, 3), "all": (1, 3),
    }  # fmt: skip
