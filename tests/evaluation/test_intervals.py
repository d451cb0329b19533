"""The intervals against their defining properties, published values, counting, and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation import intervals
from hybridgen.evaluation.intervals import (
    Z95,
    bootstrap,
    bootstrap_mean,
    effective_trials,
    mean_of_shares,
    score_by_groups,
    wilson,
    with_interval,
)


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


# ---------------------------------------------------------------------------------------------------- groups


def grouped(rights: np.ndarray, sizes: np.ndarray | int) -> dict:
    counts = np.stack(np.broadcast_arrays(rights, sizes), axis=-1)
    return with_interval(tally(*counts.sum(0)), counts.tolist())


def test_trials_that_stand_alone_are_counted_as_ever():
    rights = np.arange(40) < 31
    assert grouped(rights, 1) == with_interval(tally(31, 40)) == with_interval(tally(31, 40), None)
    assert effective_trials(np.stack([rights, np.ones(40)], axis=-1)) == pytest.approx(40, abs=1e-9)


def test_copies_of_a_trial_tell_nothing_more():
    """k copies of each of m trials are worth m: Wilson's interval of the m (exactly), and the share does not move."""
    for k in (2, 7):
        for right in (0, 1, 20, 39, 40):
            found = grouped(k * (np.arange(40) < right), k)
            assert (found["low"], found["high"]) == pytest.approx(wilson(right, 40), abs=1e-12)
            assert (found["right"], found["n"], found["share"]) == (k * right, k * 40, right / 40)
            assert found["groups"] == 40


def test_groups_are_worth_more_than_one_trial_and_less_than_all_of_theirs():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 100)
    for rights in (rng.binomial(sizes, 0.8), rng.binomial(sizes, rng.beta(4, 1, 100)), sizes, 0 * sizes):
        found, alone = grouped(rights, sizes), wilson(int(rights.sum()), int(sizes.sum()))
        assert found["low"] <= alone[0] <= found["share"] <= alone[1] <= found["high"]
        trials = effective_trials(np.stack([rights, sizes], axis=-1))
        assert sizes.sum() ** 2 / (sizes**2).sum() - 1e-9 <= trials <= sizes.sum()
    one = grouped(np.array([3]), 7)  # a single picture tells no more than one trial
    assert one["groups"] == 1
    assert (one["low"], one["high"]) == pytest.approx(wilson(3 / 7, 1))


def test_groups_without_trials_do_not_count():
    assert grouped(np.array([3, 0, 2]), np.array([4, 0, 4]))["groups"] == 2
    assert grouped(np.array([0, 0]), 0) == with_interval(tally(0, 0))


@pytest.mark.parametrize(("groups", "size", "share"), [(24, 5, 0.9), (64, 4, 0.98), (256, 7, 0.98)])
@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_covers_the_true_share_however_alike_the_trials_of_a_group_are(groups, size, share, alike):
    """Of 500 simulations; measured 93.8 to 98.8 %, Wilson's over all trials where they are alike 50 to 92 %."""
    rng = np.random.default_rng(0)
    if alike in (0, 1):
        shares = np.full((500, groups), share) if alike == 0 else rng.random((500, groups)) < share
    else:
        weight = (1 - alike) / alike
        shares = rng.beta(share * weight, (1 - share) * weight, (500, groups))
    found = [grouped(rights, size) for rights in rng.binomial(size, shares)]
    assert np.mean([one["low"] <= share <= one["high"] for one in found]) > 0.93
    if alike:
        naive = [wilson(one["right"], one["n"]) for one in found]
        assert np.mean([low <= share <= high for low, high in naive]) < 0.93


def test_scores_by_groups_are_those_of_all_items():
    rights, names = [1, 1, 0, 1, 0, 1], ["a", "a", "b", "a", "b", "b"]

    def score(places: list[int]) -> dict:
        kinds = dict.fromkeys(names[i] for i in places)
        some = {name: [rights[i] for i in places if names[i] == name] for name in kinds}
        return {name: tally(sum(of_one), len(of_one)) for name, of_one in some.items()}

    found = score_by_groups(score, ["x", "x", "x", "y", "y", "z"])
    assert found == {
        "a": with_interval(tally(3, 3), [(2, 2), (1, 1)]), "b": with_interval(tally(1, 3), [(0, 1), (0, 1), (1, 1)]),
    }  # fmt: skip
    assert found["a"]["groups"] == 2
    assert "groups" not in found["b"]


def test_a_mean_of_shares_keeps_their_intervals():
    wide = with_interval(tally(120, 160), [(4, 4)] * 30 + [(0, 4)] * 10)
    assert mean_of_shares([wide])["low"] == pytest.approx(100 * wide["low"])
    assert mean_of_shares([tally(120, 160)])["low"] > 100 * wide["low"]


def test_the_bootstrap_draws_whole_groups():
    """Copies of items in one group are no more than the items."""
    values = np.random.default_rng(0).random(30)
    copies, groups = np.repeat(values, 4), np.repeat(np.arange(30), 4)
    once, found = bootstrap_mean(values), bootstrap_mean(copies, groups=groups.tolist())
    assert (found["value"], found["low"], found["high"]) == pytest.approx((once["value"], once["low"], once["high"]))
    assert (found["n"], found["groups"]) == (120, 30)
    assert bootstrap_mean(values, groups=range(30)) == once
    assert bootstrap_mean(values, groups=[0] * 30)["low"] is None
