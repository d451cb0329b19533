"""Comparisons over seeds: intervals against scipy's, and sentences that follow the numbers, whatever they are."""

import pytest

from hybridgen.studies.comparisons import T975, Interval, compare, mean_interval, sentences

BETTER = {"wide": {0: 0.90, 1: 0.92, 2: 0.91}, "narrow": {0: 0.80, 1: 0.83, 2: 0.81}}


def test_the_table_of_students_distribution_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for freedom, point in enumerate(T975, start=1):
        assert point == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-4)


@pytest.mark.parametrize("values", [[0.1, 0.3], [1.0, 1.1, 1.3], list(range(20)), list(range(45)), [2.0] * 5])
def test_intervals_are_scipys(values):
    stats = pytest.importorskip("scipy.stats")
    found = mean_interval(values)
    error = stats.sem(values)
    expected = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), error) if error else (2.0, 2.0)
    assert (found.low, found.high) == pytest.approx(expected, rel=2e-4)


def test_one_seed_has_no_interval():
    assert mean_interval([0.5]) == Interval(0.5, None, None)
    (sentence,) = sentences(compare("parts", {"a": {0: 0.5}, "b": {0: 0.9}}, False))
    assert sentence == "parts: a 50.0 %, b 90.0 %; one seed says nothing of chance."


def test_pairs_tell_what_means_cannot():
    """Seeds differ by 30 points, the arms by 2 in each of them: the difference is plain, the means overlap."""
    values = {"a": {0: 0.50, 1: 0.65, 2: 0.80}, "b": {0: 0.521, 1: 0.669, 2: 0.82}}
    compared = compare("parts", values, False)
    assert compared.means["a"].high > compared.means["b"].low
    (difference,) = compared.differences
    assert difference.interval.low > 0
    assert difference.better == "b"


@pytest.mark.parametrize(
    ("expected", "verdict", "end"),
    [
        ("wide", "as the papers", ", as the papers say."),
        ("narrow", "otherwise", ", otherwise than the papers say."),
        (None, "new", ")."),
        ("a third one", "new", ")."),
    ],
)
def test_the_verdict_follows_what_papers_found(expected, verdict, end):
    compared = compare("parts", BETTER, False, expected)
    assert compared.differences[0].verdict == verdict
    (sentence,) = sentences(compared)
    assert sentence.startswith("parts: wide 91.0 %, narrow 81.3 %; wide is better by 9.7 points (95 % interval of 3")
    assert sentence.endswith(end)


def test_less_loss_is_better():
    (as_loss,) = sentences(compare("loss", BETTER, True, "narrow"))
    assert "; narrow is better by 0.0967 (" in as_loss
    assert as_loss.endswith("as the papers say.")


def test_chance_is_said():
    values = {"a": {0: 0.5, 1: 0.6, 2: 0.55}, "b": {0: 0.6, 1: 0.5, 2: 0.56}}
    compared = compare("parts", values, False, "a")
    assert compared.differences[0].verdict == "undecided"
    assert (
        "no difference that can be told from chance (95 % interval of 3 seeds: -24.5 points to +25.2 points)"
        in (sentences(compared)[0])
    )


def test_only_seeds_that_all_arms_have_count():
    values = {"a": {0: 0.5, 1: 0.6, 2: 0.9}, "b": {0: 0.7, 1: 0.8}}
    compared = compare("parts", values, False)
    assert compared.values == {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.7, 1: 0.8}}
    assert compare("parts", {"a": {0: 0.5}, "b": {1: 0.5}}, False) is None


def test_every_arm_stands_beside_the_first():
    values = {"tower": {0: 0.9, 1: 0.91}, "latents": {0: 0.8, 1: 0.81}, "codes": {0: 0.5, 1: 0.51}}
    compared = compare("answers", values, False, "tower")
    assert [(each.arm, each.reference) for each in compared.differences] == [("latents", "tower"), ("codes", "tower")]
    assert len(sentences(compared)) == 2
