"""Exact match and ANLS, against the values of the official script."""

import pytest

from hybridgen.evaluation.answers.exact import anls, exact_match


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("Wizard  hat.", ["crown", "wizard hat"], True),
        ("cafe\u0301", ["caf\u00e9"], True),  # one letter and its accent apart, or together
        ("a dog", ["dog"], False),
        ("", ["nothing"], False),
    ],
)
def test_exact_match_is_after_normalisation(answer, accepted, right):
    assert exact_match(answer, accepted) is right


@pytest.mark.parametrize(
    ("answer", "accepted", "value"),
    [  # by the official script (infographicsvqa_eval.py)
        ("hello", ["hello"], 1.0),
        ("Hello ", [" hello"], 1.0),
        ("hallo", ["hello"], 0.8),
        ("help", ["hello", "helps"], 0.8),
        ("ab", ["ac"], 0.5),  # at the threshold: the paper's formula says 0
        ("abc", ["xyz"], 0.0),
        ("abcd", ["abxy z"], 0.0),
        ("", ["a"], 0.0),
    ],
)
def test_anls_as_by_the_official_script(answer, accepted, value):
    assert anls(answer, accepted) == pytest.approx(value, abs=1e-12)
