"""Yes and no as they are read, and POPE's five numbers against their definitions."""

import numpy as np
import pytest

from hybridgen.evaluation.answers.yes_no import parse_yes_no, yes_no_scores

READ = {
    "yes": True,
    "Yes.": True,
    "YES, there is": True,
    "Yes, no doubt": True,
    "no": False,
    "No, there isn't": False,
    "There is no dog": False,
    "It is not": False,
    "There isn’t any": False,
    "nope": False,
    "there is a dog": None,
    "well, yes or no": None,
    "I know it": None,
    "maybe. no": None,
    "": None,
}


@pytest.mark.parametrize(("answer", "read"), READ.items())
def test_reading(answer, read):
    assert parse_yes_no(answer) is read


def test_numbers_are_those_of_the_definitions():
    rng = np.random.default_rng(0)
    for n in (1, 7, 200):
        said, truth = rng.choice(["yes", "no", "dunno"], n, p=(0.5, 0.4, 0.1)), rng.random(n) < 0.4
        scores = yes_no_scores(list(said), truth.tolist())
        yes, no = said == "yes", said == "no"
        true_positive = int((yes & truth).sum())
        counts = {name: (scores[name]["right"], scores[name]["n"]) for name in scores if name != "f1"}
        assert counts == {
            "accuracy": (true_positive + int((no & ~truth).sum()), n),
            "precision": (true_positive, int(yes.sum())),
            "recall": (true_positive, int(truth.sum())),
            "yes_ratio": (int(yes.sum()), n),
            "unclear": (int((said == "dunno").sum()), n),
        }
        precision, recall = true_positive / max(yes.sum(), 1), true_positive / max(truth.sum(), 1)
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert scores["f1"]["value"] == pytest.approx(expected, abs=1e-12)
    assert scores["f1"]["low"] < scores["f1"]["value"] < scores["f1"]["high"]


def test_who_always_says_yes_is_found_out():
    scores = yes_no_scores(["Yes"] * 4, [True, False, True, False])
    assert {name: scores[name]["share"] for name in ("accuracy", "precision", "recall", "yes_ratio")} == {
        "accuracy": 0.5, "precision": 0.5, "recall": 1.0, "yes_ratio": 1.0,
    }  # fmt: skip
    assert scores["f1"]["value"] == pytest.approx(2 / 3)


def test_nobody_says_yes():
    scores = yes_no_scores(["no", "no"], [True, True])
    assert (scores["precision"]["share"], scores["precision"]["n"], scores["f1"]["value"]) == (0.0, 0, 0.0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes and no", True),
        ("it may be", None),
        ("I don't know", None),
        ("I don’t really know.", None),
        ("I do not know if there is a dog", None),
        ("Not sure", None),
        ("I'm not entirely certain", None),
        ("No idea", None),
        ("I can't tell", None),
        ("It cannot be said, I could not say", None),
        ("There's no way to know", None),
        ("It is not clear whether it is one", None),
        ("there isn't enough information", None),
        ("No, I don't know it", False),
        ("I don't know, probably not", False),
        ("not sure, but yes", True),
        ("I don't see a dog", False),
        ("I don't think so", False),
        ("the sky is not clear", False),
        ("I can't see one", False),
    ],
)
def test_what_the_docstring_says_of_odd_answers(answer, said):
    assert parse_yes_no(answer) is said


def test_who_does_not_know_is_wrong_and_says_neither_yes_nor_no():
    """As many right answers as a coin would give, were it a no."""
    scores = yes_no_scores(["I don't know"] * 4, [True, False, False, False])
    assert {name: scores[name]["right"] for name in ("accuracy", "precision", "recall", "yes_ratio", "unclear")} == {
        "accuracy": 0, "precision": 0, "recall": 0, "yes_ratio": 0, "unclear": 4,
    }  # fmt: skip
    assert scores["precision"]["n"] == 0


def test_questions_about_one_picture_are_not_independent():
    """The numbers stay, intervals are wider: four equal questions about each picture are one."""
    said, truth = ["yes", "yes", "no", "no", "yes"], [True, False, False, True, True]
    once = yes_no_scores(said, truth)
    copies = [[*each] * 4 for each in (said, truth, range(5))]
    for name, found in yes_no_scores(*copies).items():
        number = "value" if name == "f1" else "share"
        assert (found[number], found["low"], found["high"]) == pytest.approx(
            (once[name][number], once[name]["low"], once[name]["high"])
        )
        assert found["groups"] == found["n"] / 4 == once[name]["n"]
    assert yes_no_scores(said, truth, range(5)) == once


def test_truth_may_be_of_numpy():
    answers, truth = ["yes", "no", "no"], [True, False, True]
    assert yes_no_scores(answers, np.array(truth)) == yes_no_scores(answers, truth)
