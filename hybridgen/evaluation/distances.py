"""How far drawn pictures are from true ones, as the field measures it, on features (n, d) that someone else computed.

    frechet(drawn, true)            Frechet distance of two Gaussians (Heusel et al. 2017); on Inception's pool3: FID
    kernel_distance(..., KID)       squared MMD with the kernel (x.y / d + 1)^3, unbiased (Binkowski et al. 2018)
    kernel_distance(..., CMMD)      1000 times squared MMD with a Gaussian kernel of sigma 10 between normed CLIP
                                    embeddings; biased, as the public code computes it (Jayasumana et al. 2024)
    inside(points, of)              precision and recall by balls around the k-th neighbours (Kynkaanniemi et al. 2019)

Numbers depend on how many pictures are compared: a Frechet distance of few pictures is too large, so compare only
numbers of equal n, which stands beside every value. KID is commonly the mean over random subsets; the unbiased
estimator over all pictures is what that mean tends to, and needs no seed.

Intervals are by the delete-a-group jackknife over drawn pictures (Efron 1982; Shao and Tu 1995): 20 groups are left
out in turn. A bootstrap draws pictures twice, which these distances take for closeness. The true pictures are taken as
given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = 20
NEIGHBOURS = 3
_T95 = 2.093  # the 97.5 % point of Student's t with GROUPS - 1 degrees of freedom
_ROWS = 2048  # of a kernel matrix or of distances computed at once


@dataclass(frozen=True)
class Kernel:
    """A kernel and the estimator that goes with its name.

    Args:
        function: (n, d), (m, d) -> (n, m).
        unbiased: whether a point's closeness to itself is left out.
        scale: of the squared MMD.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    unbiased: bool
    scale: float = 1.0


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    return torch.exp(-squares / (2 * 10**2))


KID = Kernel(_cubic, unbiased=True)
CMMD = Kernel(_gaussian, unbiased=False, scale=1000.0)


def frechet(drawn: Tensor, true: Tensor) -> dict:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of features (n, d) and (m, d), with its interval.

    With S1 = A'A and S2 = B'B, the trace of (S1 S2)^(1/2) is the sum of the singular values of A B': no root of a
    matrix that is not symmetric, whose rounding others must clip, is ever taken. Covariances divide by n - 1.

    Raises:
        ValueError: fewer than two pictures on a side, or another number of features, or features that are no numbers.
    """
    drawn, true = _checked(drawn, true)
    mean, factor = _gaussian_of(true)

    def distance(kept: Tensor) -> float:
        own_mean, own_factor = _gaussian_of(kept)
        common = torch.linalg.svdvals(own_factor @ factor.T).sum()
        spread = (own_factor**2).sum() + (factor**2).sum() - 2 * common
        return float(((own_mean - mean) ** 2).sum() + spread)

    def without(group: int) -> float:
        return distance(drawn[torch.arange(len(drawn)) % GROUPS != group])

    return _with_interval(distance(drawn), without, len(drawn))


def _gaussian_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and A of at most d rows with A'A the covariance."""
    mean = features.mean(0)
    rows = (features - mean) / math.sqrt(max(len(features) - 1, 1))
    return mean, torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows


def kernel_distance(drawn: Tensor, true: Tensor, kernel: Kernel) -> dict:
    """Squared maximum mean discrepancy of features (n, d) and (m, d) with its interval.

    Sums over pairs of groups are enough for every value that leaves a group out.

    Raises:
        ValueError: as `frechet`.
    """
    drawn, true = _checked(drawn, true)
    groups = [drawn[torch.arange(len(drawn)) % GROUPS == group] for group in range(GROUPS)]
    sizes = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    within = torch.stack([torch.stack([_sum(kernel, a, b) for b in groups]) for a in groups])  # (groups, groups)
    own = torch.stack([_sum_of_selves(kernel, group) for group in groups])
    across = torch.stack([_sum(kernel, group, true) for group in groups])
    of_true = _mean(kernel, _sum(kernel, true, true), _sum_of_selves(kernel, true), len(true))

    def distance(kept: Tensor) -> float:
        n = float(sizes @ kept)
        of_drawn = _mean(kernel, kept @ within @ kept, own @ kept, n)
        return float(kernel.scale * (of_drawn + of_true - 2 * (across @ kept) / (n * len(true))))

    everyone = torch.ones(GROUPS, dtype=torch.float64)
    without = everyone - torch.eye(GROUPS, dtype=torch.float64)
    return _with_interval(distance(everyone), lambda group: distance(without[group]), len(drawn))


def _sum(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    parts = [kernel.function(rows, y).sum() for rows in x.split(_ROWS) if len(rows)]
    return torch.stack(parts).sum() if parts and len(y) else torch.zeros((), dtype=x.dtype)


def _sum_of_selves(kernel: Kernel, x: Tensor) -> Tensor:
    parts = [kernel.function(rows, rows).diagonal().sum() for rows in x.split(_ROWS) if len(rows)]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=x.dtype)


def _mean(kernel: Kernel, total: Tensor, of_selves: Tensor, n: float) -> Tensor:
    return (total - of_selves) / (n * (n - 1)) if kernel.unbiased else total / n**2


def inside(points: Tensor, of: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Which points (n, d) lie in a ball around any of `of` (m, d) that reaches to its k-th neighbour there: (n,) bool.

    Drawn points inside of true balls are the precision, true points inside of drawn balls the recall.

    Raises:
        ValueError: as `frechet`, or `of` has no k-th neighbours.
    """
    points, of = _checked(points, of)
    if len(of) <= neighbours:
        raise ValueError(f"{len(of)} pictures have no {neighbours} neighbours each: give {neighbours + 1} or more")
    radii = torch.cat([torch.cdist(rows, of).kthvalue(neighbours + 1, dim=1).values for rows in of.split(_ROWS)])
    return torch.cat([(torch.cdist(rows, of) <= radii).any(dim=1) for rows in points.split(_ROWS)])


def _checked(drawn: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    for what, features in (("drawn", drawn), ("true", true)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"features of {what} pictures have the shape {tuple(features.shape)}; give (n, d) with n of at least 2"
            )
        if not torch.isfinite(features).all():
            raise ValueError(f"features of {what} pictures are not all finite: the extractor is at fault")
    if drawn.shape[1] != true.shape[1]:
        raise ValueError(f"{drawn.shape[1]} features of drawn pictures cannot be compared with {true.shape[1]} of true")
    return drawn.double(), true.double()


def _with_interval(value: float, without: Callable[[int], float], n: int) -> dict:
    """A value and its 95 % interval from the values without each group; none of fewer than 2 pictures a group."""
    low = high = None
    if n >= 2 * GROUPS:
        values = [without(group) for group in range(GROUPS)]
        mean = sum(values) / GROUPS
        error = math.sqrt((GROUPS - 1) / GROUPS * sum((one - mean) ** 2 for one in values))
        low, high = value - _T95 * error, value + _T95 * error
    return {"value": value, "n": n, "low": low, "high": high, "unit": ""}
