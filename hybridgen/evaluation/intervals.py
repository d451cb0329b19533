"""How sure a number is: the Wilson score interval of "right of n", and the bootstrap for what is no share.

For counts of independent trials. The usual "plus or minus two standard errors" says that 50 of 50 is 100 % for certain;
Wilson's interval (J. Am. Stat. Assoc. 22, 1927) says 92.9 to 100 %, and stays in [0, 1]. The seven slots of one picture
are not quite independent, so an interval over slots is a little too narrow; over pictures or over questions of one
category it is right.

The bootstrap (Efron, Ann. Stat. 7, 1979; its percentile interval) draws the items anew many times, with a fixed seed,
and looks at how the value varies. It knows only what is among the items: of few of them, or of equal ones, it says too
little, and of one nothing.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Lowest and highest share that `right` of `n` leaves plausible; (0, 1) where nothing was counted.

    Raises:
        ValueError: `right` is not between 0 and `n`.
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} right of {n} is no share: right must lie between 0 and n")
    if n == 0:
        return 0.0, 1.0
    share = right / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    # at the ends the formula is exact in theory and off by rounding in floating point
    low = 0.0 if right == 0 else (centre - spread) / scale
    high = 1.0 if right == n else (centre + spread) / scale
    return low, high


def with_interval(tally: dict[str, float]) -> dict[str, float]:
    """A tally {"right", "n", "share"} with the ends of its interval, "low" and "high", added."""
    low, high = wilson(int(tally["right"]), int(tally["n"]))
    return {**tally, "low": low, "high": high}


def mean_of_shares(tallies: Sequence[dict], unit: str = "%") -> dict[str, float | int | str]:
    """The mean of several shares, each of as much weight, in percent, as a value with its 95 % interval.

    The ends follow from those of the shares' own intervals by Zou and Donner's rule for sums (Stat. Med. 27, 2008):
    unlike a bootstrap's, they say something where every picture is right, too.

    Raises:
        ValueError: there is no share.
    """
    if not tallies:
        raise ValueError("a mean of no shares has no value; give at least one")
    with_ends = [with_interval(tally) for tally in tallies]
    mean = sum(tally["share"] for tally in with_ends) / len(with_ends)
    below, above = (
        math.sqrt(sum((tally[end] - tally["share"]) ** 2 for tally in with_ends)) / len(with_ends)
        for end in ("low", "high")
    )
    count = sum(int(tally["n"]) for tally in with_ends)
    return {"value": 100 * mean, "n": count, "low": 100 * (mean - below), "high": 100 * (mean + above), "unit": unit}


RESAMPLES = 1000
_AT_ONCE = 2**22  # numbers drawn at a time, which bounds the memory


def mean_of_sums(sums: np.ndarray) -> np.ndarray:
    """A statistic for `bootstrap`: (R, 2) sums of values and of ones -> (R,) means."""
    return sums[:, 0] / sums[:, 1]


def bootstrap(
    items: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], unit: str = "", seed: int = 0
) -> dict[str, float | int | str | None]:
    """A value that is a function of sums over items, with its 95 % interval: {"value", "n", "low", "high", "unit"}.

    Means, ratios of two sums and F1 are such values. Of a single item there is no interval: its ends are None.

    Args:
        items: (n, k) numbers.
        statistic: (R, k) sums over the items -> (R,) values.

    Raises:
        ValueError: there is no item.
    """
    items = np.asarray(items, float)
    count = len(items)
    if count == 0:
        raise ValueError("a value of no item has no interval; give at least one")
    value, low, high = float(statistic(items.sum(0, keepdims=True))[0]), None, None
    if count > 1:
        rng, at_once = np.random.default_rng(seed), max(1, _AT_ONCE // count)
        sums = [
            rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, RESAMPLES - start)) @ items
            for start in range(0, RESAMPLES, at_once)
        ]
        low, high = (float(end) for end in np.quantile(statistic(np.concatenate(sums)), (0.025, 0.975)))
    return {"value": value, "n": count, "low": low, "high": high, "unit": unit}


def bootstrap_mean(values: list[float] | np.ndarray, unit: str = "", seed: int = 0) -> dict:
    """The mean of some values with its interval; see `bootstrap`."""
    values = np.asarray(values, float)
    return bootstrap(np.stack([values, np.ones_like(values)], axis=-1), mean_of_sums, unit, seed)
