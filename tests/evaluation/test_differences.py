"""Two evaluations of the same items: the tests against scipy, and what groups of items change."""

import numpy as np
import pytest

from hybridgen.evaluation.differences import compare_items, mcnemar
from hybridgen.evaluation.intervals import wilson


def test_mcnemar_is_the_binomial_test_of_the_discordant():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n in (1, 7, 40, 300, 20_000):
        first, second = rng.integers(0, 2, (2, n))
        gained, lost = ((first == 0) & (second == 1)).sum(), ((first == 1) & (second == 0)).sum()
        expected = stats.binomtest(int(min(gained, lost)), int(gained + lost)).pvalue if gained + lost else 1.0
        assert mcnemar(first, second) == pytest.approx(expected, abs=1e-12)


def test_a_difference_of_paired_items_is_seen_where_two_intervals_overlap():
    """40 of 100 against 50 of 100: the same items and ten more."""
    first = np.r_[np.ones(40), np.zeros(60)]
    second = np.r_[np.ones(50), np.zeros(50)]
    found = compare_items(first, second)
    assert (found.mean, found.n) == (pytest.approx(0.1), 100)
    assert found.p == pytest.approx(2 / 2**10)
    assert found.is_shown
    assert wilson(40, 100)[1] > wilson(50, 100)[0]
    shuffled = np.random.default_rng(0).permutation(second)
    assert not compare_items(first, shuffled).is_shown
    assert not compare_items(first, first).is_shown


def test_the_bootstrap_of_a_difference_is_the_plain_one():
    """Against drawing items again one by one; ends agree within a tenth of the width."""
    rng = np.random.default_rng(2)
    first, second = rng.random((2, 80))
    found = compare_items(first, second)
    rng = np.random.default_rng(5)
    drawn = [(second - first)[rng.integers(0, 80, 80)].mean() for _ in range(2000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.p is None
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_items_of_one_group_count_as_one():
    """Ten questions about each picture, all answered alike: the interval is that of the pictures."""
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 2, (2, 30)).astype(float)
    pictures = compare_items(first, second, groups=[f"p{i}" for i in range(30)])
    grouped = compare_items(first.repeat(10), second.repeat(10), groups=[i // 10 for i in range(300)])
    alone = compare_items(first.repeat(10), second.repeat(10))
    assert grouped.mean == pytest.approx(pictures.mean)
    assert (grouped.low, grouped.high) == (pytest.approx(pictures.low), pytest.approx(pictures.high))
    assert alone.high - alone.low < 0.5 * (grouped.high - grouped.low)
    assert pictures.p is not None
    assert grouped.p is None


@pytest.mark.parametrize(("groups", "is_shown"), [(2, False), (5, False), (6, True)])
def test_of_a_few_pictures_that_all_got_better_nothing_is_shown(groups, is_shown):
    """Five on one side are what chance does in 2 of 32 cases."""
    first, second = np.zeros(2 * groups), np.ones(2 * groups)
    assert compare_items(first, second, groups=[i // 2 for i in range(2 * groups)]).is_shown is is_shown
    assert compare_items(first[:groups] + 0.25, second[:groups] - 0.25).is_shown is is_shown


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 0.0])])
def test_what_cannot_be_paired_is_refused(first, second):
    with pytest.raises(ValueError, match="items cannot be compared"):
        compare_items(first, second)
