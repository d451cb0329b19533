"""The interval against its defining property, against published values, and against counting."""

import math

import numpy as np
import pytest

from hybridgen.evaluation.intervals import Z95, wilson, with_interval


@pytest.mark.parametrize(("right", "n"), [(1, 10), (7, 10), (98, 100), (1399, 1400), (3, 1000)])
def test_ends_are_where_the_score_test_just_accepts(right, n):
    """Wilson's interval is the set of p with |share - p| <= z sqrt(p (1 - p) / n): equality at both ends (worst
    1e-15)."""
    share = right / n
    for p in wilson(right, n):
        assert abs(abs(share - p) - Z95 * math.sqrt(p * (1 - p) / n)) < 1e-12


def test_published_values():
    """Newcombe, Stat. Med. 17 (1998), table I, method 3."""
    for (right, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(right, n) == pytest.approx(expected, abs=5e-5)


def test_certainty_is_never_claimed():
    assert wilson(50, 50) == (pytest.approx(0.9287, abs=5e-5), 1.0)
    assert wilson(0, 50) == (0.0, pytest.approx(1 - 0.9287, abs=5e-5))
    assert wilson(0, 0) == (0.0, 1.0)


def test_covers_the_true_share_about_95_times_in_100():
    n, p = 200, 0.9
    right = np.random.default_rng(0).binomial(n, p, size=2000)
    covered = np.mean([low <= p <= high for low, high in (wilson(int(r), n) for r in right)])
    assert 0.93 < covered < 0.97  # measured 0.947


def test_refuses_what_is_no_share():
    with pytest.raises(ValueError, match="5 right of 4"):
        wilson(5, 4)


def test_with_interval_keeps_the_tally():
    scored = with_interval({"right": 7, "n": 10, "share": 0.7})
    assert (scored["right"], scored["n"], scored["share"]) == (7, 10, 0.7)
    assert scored["low"] < 0.7 < scored["high"]
