"""Whether two evaluations of the same items differ.

Two models that were asked the same are compared item by item, which tells more than two intervals beside each other: an
item that is hard for both says nothing. Where each item is right or wrong and stands alone, that is McNemar's test
(Psychometrika 12, 1947), exact; else the paired bootstrap.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from hybridgen.evaluation.intervals import bootstrap_mean

LEVEL = 0.05  # what chance does more seldom than this is said to be a difference
FEWEST = 6  # things that stand alone: of fewer, chance puts all on one side more often than LEVEL (2 / 2^5)


@dataclass(frozen=True)
class Difference:
    """How much higher the second of two evaluations of the same items is.

    Args:
        mean: of the items' differences.
        low, high: ends of its 95 % interval, by the paired bootstrap; None of a single item.
        p: how often chance alone would do as much, by McNemar's exact test; None where it does not apply.
        n: items.
        groups: of them, those that stand alone; of fewer than `FEWEST`, a bootstrap shows nothing.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    groups: int

    @property
    def is_shown(self) -> bool:
        """Whether the data say that there is a difference at all."""
        if self.p is not None:
            return self.p < LEVEL
        return self.groups >= FEWEST and not self.low <= 0 <= self.high


def compare_items(
    first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Difference:
    """The difference between two evaluations of the same items.

    Args:
        first, second: a value for each item.
        groups: items of one group are not independent, such as questions about one picture, and are drawn again
            together; None = each stands alone.

    Raises:
        ValueError: there are none, or not equally many.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} items cannot be compared; give equally many, at least one")
    first, second = (np.asarray(values, dtype=np.float64) for values in (first, second))
    found = bootstrap_mean(second - first, seed=seed, groups=groups)
    count = found.get("groups", len(first))
    is_alone = count == len(first) and np.isin([first, second], (0, 1)).all()
    p = mcnemar(first, second) if is_alone else None
    return Difference(found["value"], found["low"], found["high"], p, len(first), count)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The exact two-sided p of McNemar's test: of the items that only one got right, were they as often the one's as
    the other's? Values are 0 or 1."""
    gained, lost = int(((first == 0) & (second == 1)).sum()), int(((first == 1) & (second == 0)).sum())
    n, fewer = gained + lost, min(gained, lost)
    ways = total = 1  # of choosing k of n, for k = 0, and all of these up to `fewer`: whole numbers of any length
    for k in range(1, fewer + 1):
        ways = ways * (n - k + 1) // k
        total += ways
    return min(1.0, 2 * total / 2**n)
