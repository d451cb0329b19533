"""How sure a share is: the Wilson score interval of "right of n".

For counts of independent trials. The usual "plus or minus two standard errors" says that 50 of 50 is 100 % for certain;
Wilson's interval (J. Am. Stat. Assoc. 22, 1927) says 92.9 to 100 %, and stays in [0, 1]. The seven slots of one picture
are not quite independent, so an interval over slots is a little too narrow; over pictures or over questions of one
category it is right.
"""

import math

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
