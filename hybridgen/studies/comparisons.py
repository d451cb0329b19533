"""Two or more ways of doing one thing, compared seed by seed: means, paired differences with intervals, and what came
out as a sentence.

A pair has the same seed, so the same data in the same order and, where shapes agree, the same first weights; what is
left between its two is the difference that is asked about, and chance. The interval is Student's, of the differences
over seeds: it holds the chance of training. The held-out pictures are the same in all runs, so that theirs is not in
it; each score's own interval says that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % points of Student's distribution for 1, 2, ... degrees of freedom; a test holds them against scipy's
T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip
Z975 = 1.95996


@dataclass(frozen=True)
class Interval:
    """A mean over seeds; None for its ends where one seed cannot say."""

    mean: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class ArmDifference:
    """One arm less the first one, seed by seed.

    Args:
        better: the arm that is better by it, None where the interval holds 0.
        expected: the arm that others found better, None where they did not compare these two.
    """

    arm: str
    reference: str
    over_seeds: tuple[float, ...]
    interval: Interval
    better: str | None
    expected: str | None

    @property
    def verdict(self) -> str:
        """`as the papers`, `otherwise`, `undecided`, or `new` where no paper is named."""
        if self.better is None:
            return "undecided"
        return "new" if self.expected is None else "as the papers" if self.better == self.expected else "otherwise"


@dataclass(frozen=True)
class ArmComparison:
    """One measure of all arms.

    Args:
        values: arm -> seed -> value; only seeds that every arm has count.
    """

    measure: str
    is_loss: bool
    values: dict[str, dict[int, float]]
    means: dict[str, Interval]
    differences: list[ArmDifference]


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean and its 95 % interval by Student's distribution."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None, None)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    quantile = T975[n - 2] if n - 2 < len(T975) else Z975 * (1 + (Z975**2 + 1) / (4 * (n - 1)))
    return Interval(mean, mean - quantile * spread, mean + quantile * spread)


def compare(
    measure: str, values: dict[str, dict[int, float]], is_loss: bool, expected: str | None = None
) -> ArmComparison | None:
    """All arms against the first one. None where no seed has all of them.

    Args:
        values: arm -> seed -> value.
        is_loss: less is better.
        expected: the arm that others found better than the others.
    """
    seeds = sorted(set.intersection(*(set(of_arm) for of_arm in values.values())))
    if not seeds:
        return None
    paired = {arm: {seed: of_arm[seed] for seed in seeds} for arm, of_arm in values.items()}
    reference, *others = paired
    differences = []
    for arm in others:
        over_seeds = tuple(paired[arm][seed] - paired[reference][seed] for seed in seeds)
        interval = mean_interval(over_seeds)
        sign = -interval.sign if is_loss else interval.sign
        better = {1: arm, -1: reference, 0: None}[sign]
        papers = expected if expected in (arm, reference) else None
        differences.append(ArmDifference(arm, reference, over_seeds, interval, better, papers))
    means = {arm: mean_interval(list(of_arm.values())) for arm, of_arm in paired.items()}
    return ArmComparison(measure, is_loss, paired, means, differences)


def sentences(comparison: ArmComparison) -> list[str]:
    """What came out, a sentence for each arm beside the first."""
    return [_sentence(comparison, difference) for difference in comparison.differences]


def _sentence(comparison: ArmComparison, difference: ArmDifference) -> str:
    shown = loss_number if comparison.is_loss else share_number
    seeds = len(difference.over_seeds)
    both = ", ".join(f"{arm} {shown(comparison.means[arm].mean)}" for arm in (difference.reference, difference.arm))
    start = f"{comparison.measure}: {both}"
    interval = difference.interval
    if interval.low is None or interval.high is None:
        return f"{start}; one seed says nothing of chance."
    size = abs(interval.mean)
    low, high = sorted((abs(interval.low), abs(interval.high)))
    of_seeds = f"95 % interval of {seeds} seeds"
    if difference.better is None:
        ends = f"{_signed(interval.low, comparison.is_loss)} to {_signed(interval.high, comparison.is_loss)}"
        return f"{start}; no difference that can be told from chance ({of_seeds}: {ends})."
    by = f"{_amount(size, comparison.is_loss)} ({of_seeds}: {_bare(low, comparison.is_loss)} to "
    by += f"{_bare(high, comparison.is_loss)})"
    then = {"as the papers": ", as the papers say", "otherwise": ", otherwise than the papers say", "new": ""}
    return f"{start}; {difference.better} is better by {by}{then[difference.verdict]}."


def share_number(value: float) -> str:
    return f"{100 * value:.1f} %"


def loss_number(value: float) -> str:
    return f"{value:.4g}"


def _bare(value: float, is_loss: bool) -> str:
    return f"{value:.3g}" if is_loss else f"{100 * value:.1f}"


def _amount(value: float, is_loss: bool) -> str:
    return f"{value:.3g}" if is_loss else f"{100 * value:.1f} points"


def _signed(value: float, is_loss: bool) -> str:
    return f"{value:+.3g}" if is_loss else f"{100 * value:+.1f} points"
