"""How sure a number is: the Wilson score interval of "right of n", and the bootstrap for what is no share.

The usual "plus or minus two standard errors" says that 50 of 50 is 100 % for certain; Wilson's interval (J. Am. Stat.
Assoc. 22, 1927) says 92.9 to 100 %, and stays in [0, 1].

It is for independent trials. Questions about one picture are none, nor are the seven parts of a picture or four samples
of a prompt: 1,792 parts of 256 pictures tell less than 1,792 pictures would, and not less than 256. So what is not
independent stands in a *group*, and a share counts as many trials as its groups are worth (`effective_trials`).

The bootstrap (Efron, Ann. Stat. 7, 1979; its percentile interval) draws the items anew many times, with a fixed seed,
and looks at how the value varies; of groups, it draws whole ones. It knows only what is among the items: of few of
them, or of equal ones, it says too little, and of one nothing.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from hybridgen.data.synthetic.questions import Tally

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(right: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Lowest and highest share that `right` of `n` leaves plausible; (0, 1) where nothing was counted. Neither need be
    whole: of trials that are not independent, fewer count.

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


def with_interval(tally: Tally, groups: Sequence[tuple[int, int]] | None = None) -> Tally:
    """A tally {"right", "n", "share"} with the ends of its interval, "low" and "high", added; and the number of
    "groups", where these hold several trials each.

    Args:
        groups: (right, n) of each group of trials that are not independent; None = each trial stands alone.
    """
    right, n = int(tally["right"]), int(tally["n"])
    counts = np.array([] if groups is None else groups, float).reshape(-1, 2)
    counts = counts[counts[:, 1] > 0]
    if groups is None or len(counts) == n:
        low, high = wilson(right, n)
        return {**tally, "low": low, "high": high}
    trials = effective_trials(counts)
    low, high = wilson(right / n * trials, trials)
    return {**tally, "low": low, "high": high, "groups": len(counts)}


def effective_trials(groups: np.ndarray) -> float:
    """How many independent trials would tell as much of a share as these groups do: (m, 2), right and n of each.

    1. How much more the groups vary than independent trials in their place would: the design effect (Kish, Survey
       Sampling, 1965; the variance of a ratio of sums).
    2. Beside what was seen stand one trial more that is right and one that is wrong, as parts of groups that are all
       right and all wrong: so, where all is right, nothing is known of how faults come, and they are taken to come by
       whole groups; a few faults begin to tell.
    3. Trials divided by that effect, which is at least 1 and at most that of groups in which all trials are equal.

    In 4,000 simulations each of 2 to 553 groups of 4 to 20 trials, of shares from 0.5 to 0.998 that vary between the
    groups not at all, a little or much, Wilson's interval on this number covered the truth in 93 % and more; on all
    trials in as few as 55 %, by the bootstrap over groups in as few as 73 %. Where all trials of a group are equal, it
    is Wilson's over the groups, which for few of them and a share near 1 covers 87 % and more.
    """
    right, n = groups.T
    count, total, size = len(n), n.sum(), (n**2).sum() / n.sum()  # size: of a group, as a trial finds it
    share = (right.sum() + 1) / (total + 2)
    spread = ((right - share * n) ** 2).sum() + size * ((1 - share) ** 2 + share**2)
    effect = spread / ((total + 2) * share * (1 - share))
    effect *= (count / (count - 1) if count > 1 else math.inf) * (total - 1) / total  # both variances are of samples
    return float(total / min(max(effect, 1.0), size))


def score_by_groups(score: Callable[[list[int]], dict[str, Tally]], groups: Sequence[Hashable]) -> dict[str, Tally]:
    """Tallies with intervals of items that are not independent within their groups.

    Args:
        score: places of items -> their tallies.
        groups: of each item; such as its picture.
    """
    places: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    each = [score(some) for some in places.values()]
    return {
        name: with_interval(tally, [(one[name]["right"], one[name]["n"]) for one in each if name in one])
        for name, tally in score(list(range(len(groups)))).items()
    }


def mean_of_shares(tallies: Sequence[dict], unit: str = "%") -> dict[str, float | int | str]:
    """The mean of several shares, each of as much weight, in percent, as a value with its 95 % interval.

    The ends follow from those of the shares' own intervals (Wilson's, where they have none yet) by the rule of Zou and
    Donner for sums (Stat. Med. 27, 2008): unlike a bootstrap's, they say something where every picture is right, too.

    Raises:
        ValueError: there is no share.
    """
    if not tallies:
        raise ValueError("a mean of no shares has no value; give at least one")
    with_ends = [tally if "low" in tally else with_interval(tally) for tally in tallies]
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


def sums_by_group(items: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """(n, k) numbers, the group of each of n items -> (m, k) sums over groups, in the order in which these first
    come."""
    known: dict[Hashable, int] = {}
    places = [known.setdefault(group, len(known)) for group in groups]
    sums = np.zeros((len(known), *items.shape[1:]), items.dtype)
    np.add.at(sums, places, items)
    return sums


def bootstrap(
    items: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    unit: str = "",
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, float | int | str | None]:
    """A value that is a function of sums over items, with its 95 % interval: {"value", "n", "low", "high", "unit"}, and
    the number of "groups" where these hold several items.

    Means, ratios of two sums and F1 are such values. Of a single item or group there is no interval: its ends are None.

    Args:
        items: (n, k) numbers.
        statistic: (R, k) sums over the items -> (R,) values.
        groups: of each item; those of one are not independent, and are drawn anew together. None = each stands alone.

    Raises:
        ValueError: there is no item.
    """
    items = np.asarray(items, float)
    drawn = items if groups is None else sums_by_group(items, groups)
    count = len(drawn)
    if count == 0:
        raise ValueError("a value of no item has no interval; give at least one")
    value, low, high = float(statistic(items.sum(0, keepdims=True))[0]), None, None
    if count > 1:
        rng, at_once = np.random.default_rng(seed), max(1, _AT_ONCE // count)
        sums = [
            rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, RESAMPLES - start)) @ drawn
            for start in range(0, RESAMPLES, at_once)
        ]
        low, high = (float(end) for end in np.quantile(statistic(np.concatenate(sums)), (0.025, 0.975)))
    found = {"value": value, "n": len(items), "low": low, "high": high, "unit": unit}
    return found if count == len(items) else found | {"groups": count}


def bootstrap_mean(
    values: list[float] | np.ndarray, unit: str = "", seed: int = 0, groups: Sequence[Hashable] | None = None
) -> dict:
    """The mean of some values with its interval; see `bootstrap`."""
    values = np.asarray(values, float)
    return bootstrap(np.stack([values, np.ones_like(values)], axis=-1), mean_of_sums, unit, seed, groups)
