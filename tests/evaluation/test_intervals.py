"""The intervals against their defining properties, published values, counting, and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from hybridgen.evaluation import intervals
from hybridgen.evaluation.intervals import Z95, bootstrap, bootstrap_mean, wilson, with_interval


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


def test_wilson_is_scipys():
    worst = 0.0
    for n in (1, 2, 3, 10, 57, 1000):
        for right in {0, 1, n // 3, n // 2, n - 1, n}:
            interval = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
            worst = max(worst, *np.abs(np.subtract(wilson(right, n), (interval.low, interval.high))))
    assert worst < 1e-12  # measured 2e-16


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def test_bootstrap_is_scipys_percentile_interval():
    """Of a mean and of a ratio, in the interval's own width: other random draws, so not the same to the digit."""
    rng = np.random.default_rng(1)
    for n in (20, 300):
        items = np.stack([rng.gamma(2.0, 1.0, n), rng.integers(1, 9, n)], axis=-1)
        for mine, statistic in (
            (bootstrap_mean(items[:, 0]), lambda a, b, axis: a.mean(axis)),
            (bootstrap(items, ratio), lambda a, b, axis: a.sum(axis) / b.sum(axis)),
        ):
            theirs = stats.bootstrap(
                (items[:, 0], items[:, 1]), statistic, paired=True, vectorized=True, method="percentile",
                n_resamples=20000, rng=np.random.default_rng(2),
            ).confidence_interval  # fmt: skip
            width = theirs.high - theirs.low
            assert abs(mine["low"] - theirs.low) < 0.1 * width  # measured 0.03
            assert abs(mine["high"] - theirs.high) < 0.1 * width
            assert mine["low"] < mine["value"] < mine["high"]
            assert mine["n"] == n


def test_bootstrap_is_the_same_every_time_whatever_is_drawn_at_once(monkeypatch):
    values = np.random.default_rng(0).random(50)
    once = bootstrap_mean(values, "x")
    assert once == bootstrap_mean(values, "x")
    assert once != bootstrap_mean(values, "x", seed=1)
    monkeypatch.setattr(intervals, "_AT_ONCE", 7 * 50)
    assert once == bootstrap_mean(values, "x")


def test_bootstrap_of_one_item_says_nothing_and_of_none_is_refused():
    assert bootstrap_mean([3.0], "bits") == {"value": 3.0, "n": 1, "low": None, "high": None, "unit": "bits"}
    with pytest.raises(ValueError, match="a value of no item"):
        bootstrap_mean([])
