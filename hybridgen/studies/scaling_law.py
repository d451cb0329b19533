"""The scaling law L = E + A / N^alpha + B / D^beta: fitted, with intervals, and what follows from it.

N is the number of weights, D of training tokens, L a held-out loss. As in Chinchilla's third approach (arXiv
2203.15556, appendix D.3) the law is fitted by the Huber loss (delta 0.001) of log residuals, from many starts; what
goes wrong there (arXiv 2404.10102) does not here: no start ends early, as every one is carried on until it moves no
more, and intervals come from refitting.

All starts, and all refits of the bootstrap, are solved together by one Levenberg-Marquardt loop over their batch.
scipy solves one at a time, 20 ms each, which are minutes for what takes seconds here; a test holds both equal.

Numbers of points n, of solutions solved at once S. A solution is (log E, log A', log B', alpha, beta), where A' and B'
are the terms' sizes in the middle of the ladder: A' = A exp(-alpha mean(log N)). Centred so, the five are nearly
independent; of A and alpha as they stand, each makes up for the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

DELTA = 1e-3  # of the Huber loss; below it a log residual counts squared, above it by its size
STEPS = 600  # of the solver, at most
NUMBERS = ("E", "A", "alpha", "B", "beta")
# of a solution: where the solver lets it go no further, the points do not tell it (`Law.at_bounds`)
LEAST = np.array([-25.0, -25.0, -25.0, 0.01, 0.01])
MOST = np.array([10.0, 10.0, 10.0, 4.0, 4.0])
EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)  # of the starts, for alpha and for beta
TIED = 0.999  # correlation of log N and log D from which on nothing tells them apart


class Point(NamedTuple):
    """One run of a ladder: weights, training tokens, held-out loss, and training FLOPs."""

    parameters: float
    tokens: float
    loss: float
    flops: float


@dataclass(frozen=True)
class Law:
    """A fitted law: the loss of a model of N weights after D training tokens, and the best of both for a budget.

    Args:
        cost, cost_exponent: FLOPs of a run, cost * N^cost_exponent * D: 6 and 1 by the rule of thumb, but counted here.
        spread: mean of the absolute log residuals: how far the points lie from the law.
        at_bounds: those of `NUMBERS` that stand where the solver lets them go no further: an exponent of 0.01 makes of
            its term a constant, beside which E and A cannot be told; an E of 1e-11 says that no floor was seen.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    cost: float = 6.0
    cost_exponent: float = 1.0
    spread: float = 0.0
    at_bounds: tuple[str, ...] = ()

    def loss(self, parameters, tokens):
        return self.E + self.A * np.power(parameters, -self.alpha) + self.B * np.power(tokens, -self.beta)

    # With C = cost N^p D, the loss of a budget is lowest where
    # N^(alpha + p beta) = alpha A / (p beta B) (C / cost)^beta

    @property
    def size_exponent(self) -> float:
        """a of N* ~ C^a."""
        return self.beta / (self.alpha + self.cost_exponent * self.beta)

    @property
    def token_exponent(self) -> float:
        """b of D* ~ C^b."""
        return 1 - self.cost_exponent * self.size_exponent

    def best_size(self, flops: float) -> tuple[float, float]:
        """(N*, D*): the weights and the tokens that give the lowest loss for so many FLOPs."""
        return tuple(map(_exp, self._log_best(math.log(flops))))

    def best_loss(self, flops: float) -> float:
        """The lowest loss that so many FLOPs buy."""
        return self.E + _exp(self._log_excess(math.log(flops)))

    def flops_for(self, loss: float) -> float:
        """The FLOPs whose best loss it is; infinite where the law never gets there.

        The best loss falls as E + K / C^gamma, and K is what is above E at one FLOP.
        """
        if loss <= self.E:
            return math.inf
        gamma = self.alpha * self.size_exponent
        return _exp((self._log_excess(0.0) - math.log(loss - self.E)) / gamma)

    def _log_best(self, log_flops: float) -> tuple[float, float]:
        """log N* and log D*. In logarithms, as laws of a poor ladder's refits have terms of 1e-11 and exponents of
        0.01, whose best sizes no float holds."""
        p, budget = self.cost_exponent, log_flops - math.log(self.cost)
        log_ratio = math.log(self.alpha / (p * self.beta)) + math.log(self.A) - math.log(self.B)
        log_size = (log_ratio + self.beta * budget) / (self.alpha + p * self.beta)
        return log_size, budget - p * log_size

    def _log_excess(self, log_flops: float) -> float:
        """log of what the best loss is above E."""
        log_size, log_tokens = self._log_best(log_flops)
        terms = math.log(self.A) - self.alpha * log_size, math.log(self.B) - self.beta * log_tokens
        return max(terms) + math.log1p(math.exp(min(terms) - max(terms)))


def _exp(value: float) -> float:
    """e to the power of it; infinite where no float holds that."""
    return math.exp(value) if value < 709 else math.inf


def check_points(points: Sequence[Point], what: str) -> None:
    """Raises ValueError for a ladder that cannot tell the law's five numbers."""
    for point in points:
        if not (math.isfinite(point.loss) and point.loss > 0):
            raise ValueError(
                f"{what}: the loss of {point.parameters:,.0f} weights and {point.tokens:,.0f} tokens is {point.loss}; "
                "a law is fitted to finite losses above 0, so leave that run out or train it anew"
            )
    sizes, budgets = {point.parameters for point in points}, {point.tokens for point in points}
    if len(sizes) < 3:
        raise ValueError(f"{what}: the ladder has {_count(len(sizes), 'size')}; E, A and alpha take at least 3")
    if len(budgets) < 3:
        raise ValueError(
            f"{what}: the ladder has {_count(len(budgets), 'budget of tokens', 'budgets of tokens')}; E, B and beta "
            "take at least 3"
        )
    if len(points) < 6:
        raise ValueError(f"{what}: the ladder has {len(points)} runs; the law's five numbers take at least 6")
    correlation = np.corrcoef(*np.log([[point.parameters, point.tokens] for point in points]).T)[0, 1]
    if abs(correlation) > TIED:
        raise ValueError(
            f"{what}: tokens follow from the size in every run (correlation of their logarithms {correlation:.4f}), so "
            "nothing tells their shares apart; give a size several budgets"
        )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def fit(points: Sequence[Point], what: str = "the ladder", delta: float = DELTA) -> Law:
    """The law of these points, the best of many starts.

    Raises:
        ValueError: the points cannot tell it (`check_points`), in one sentence.
    """
    check_points(points, what)
    centred, middle, log_loss = _centred(points)
    starts = _starts(centred, log_loss)
    solutions, costs = _solve(starts, centred, np.broadcast_to(log_loss, (len(starts), len(log_loss))), delta)
    best = solutions[costs.argmin()]
    residuals = _log_law(best[None], centred)[0][0] - log_loss
    return _law(best, middle, *_cost(points), spread=float(np.abs(residuals).mean()))


def bootstrap(points: Sequence[Point], law: Law, count: int, seed: int = 0, delta: float = DELTA) -> list[Law]:
    """`count` laws, each fitted to what the ladder might have given as well: the law's own losses, off by residuals
    that are drawn from all of its residuals.

    Runs are not drawn with replacement: a ladder of a dozen runs would lose one of its three sizes in many draws. A fit
    by absolute values passes through five points, whose residuals say nothing and are left out; the others get signs by
    chance, and each draw a size of its own (that of n - 5 normal residuals), as the size of so few is not known well.
    95 % intervals then hold the truth in 88 to 98 % of synthetic ladders of 12 and 20 runs (95 to 100 % of those of 9);
    with the residuals as they are in 80 to 93 %.
    """
    centred, middle, log_loss = _centred(points)
    own = _solution(law, middle)
    fitted = _log_law(own[None], centred)[0][0]
    n, rng = len(log_loss), np.random.default_rng(seed)
    residuals = np.sort(np.abs(log_loss - fitted))[5:]
    drawn = rng.choice(residuals, (count, n)) * rng.choice([-1.0, 1.0], (count, n))
    drawn *= np.sqrt((n - 5) / rng.chisquare(n - 5, count))[:, None]
    solutions, _ = _solve(np.tile(own, (count, 1)), centred, fitted + drawn, delta)  # no other start ever ended lower
    return [_law(solution, middle, law.cost, law.cost_exponent) for solution in solutions]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrapped values, of which some may be infinite."""
    ordered, tail = np.sort(np.asarray(values, dtype=float)), (1 - level) / 2
    last = len(ordered) - 1
    return float(ordered[round(tail * last)]), float(ordered[round((1 - tail) * last)])


def parity(first: Law, second: Law, flops: float) -> float:
    """How many FLOPs the second recipe needs for the loss that the first one reaches with `flops`, over `flops`; each
    at its own best size. Below 1, the second is the cheaper one; infinite where it never gets there."""
    return second.flops_for(first.best_loss(flops)) / flops


# ------------------------------------------------------------------------------------------------------ the solver


def _centred(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log N and log D about their means (2, n), those means (2,), and log L (n,)."""
    logs = np.log([[point.parameters, point.tokens] for point in points]).T
    middle = logs.mean(1)
    return logs - middle[:, None], middle, np.log([point.loss for point in points])


def _law(solution: np.ndarray, middle: np.ndarray, cost: float, cost_exponent: float, spread: float = 0.0) -> Law:
    constant, size, tokens, alpha, beta = map(float, solution)
    A, B = math.exp(size + alpha * middle[0]), math.exp(tokens + beta * middle[1])
    at = dict(zip(("E", "A", "B", "alpha", "beta"), (solution <= LEAST) | (solution >= MOST), strict=True))
    at_bounds = tuple(name for name in NUMBERS if at[name])
    return Law(math.exp(constant), A, alpha, B, beta, cost, cost_exponent, spread, at_bounds)


def _solution(law: Law, middle: np.ndarray) -> np.ndarray:
    size, tokens = math.log(law.A) - law.alpha * middle[0], math.log(law.B) - law.beta * middle[1]
    return np.clip([math.log(law.E), size, tokens, law.alpha, law.beta], LEAST, MOST)


def _cost(points: Sequence[Point]) -> tuple[float, float]:
    """(cost, p) of FLOPs = cost N^p D, by least squares of the logarithms: attention and heads cost beside the weights,
    so that p is a little off 1."""
    x = np.log([point.parameters for point in points])
    y = np.log([point.flops / point.tokens for point in points])
    p, constant = np.polyfit(x, y, 1)
    return float(math.exp(constant)), float(p)


def _starts(centred: np.ndarray, log_loss: np.ndarray, exponents: Sequence[float] = EXPONENTS) -> np.ndarray:
    """(S, 5) a start for each pair of exponents: with them given, E, A' and B' follow by least squares of the relative
    residuals; what comes out negative starts small."""
    losses, starts = np.exp(log_loss), []
    for alpha in exponents:
        for beta in exponents:
            terms = np.stack([np.ones_like(losses), np.exp(-alpha * centred[0]), np.exp(-beta * centred[1])], 1)
            sizes = np.linalg.lstsq(terms / losses[:, None], np.ones_like(losses), rcond=None)[0]
            starts.append([*np.log(np.maximum(sizes, 0.01 * losses.min())), alpha, beta])
    return np.array(starts)


def _log_law(solutions: np.ndarray, centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solutions (S, 5) -> log of the law at the points (S, n), and each term's share of it (3, S, n)."""
    constant, size, tokens, alpha, beta = solutions.T[:, :, None]
    terms = np.stack([constant + 0 * centred[0], size - alpha * centred[0], tokens - beta * centred[1]])  # 3, S, n
    largest = terms.max(0)
    exponentials = np.exp(terms - largest)
    total = exponentials.sum(0)
    return largest + np.log(total), exponentials / total


def _huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(1)


def _solve(
    starts: np.ndarray, centred: np.ndarray, log_losses: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt on S problems at once, each residual weighed as the Huber loss weighs it at that moment; a
    step that does not lower the loss is not taken, and the next one is shorter.

    Args:
        starts: (S, 5).
        log_losses: (S, n).

    Returns:
        solutions (S, 5) and their Huber losses (S,).
    """
    solutions, damping = np.clip(starts, LEAST, MOST), np.full(len(starts), 1e-2)
    values, shares = _log_law(solutions, centred)
    residuals = values - log_losses
    costs = _huber(residuals, delta)
    for _ in range(STEPS):
        slopes = np.stack([*shares, -shares[1] * centred[0], -shares[2] * centred[1]], 2)  # S, n, 5
        weights = np.minimum(1, delta / np.maximum(np.abs(residuals), 1e-300))
        weighed = slopes * weights[:, :, None]
        hessian = np.einsum("sni,snj->sij", weighed, slopes)
        gradient = np.einsum("sni,sn->si", weighed, residuals)
        diagonal = np.maximum(np.einsum("sii->si", hessian), 1e-12) * damping[:, None]
        steps = np.linalg.solve(hessian + diagonal[:, :, None] * np.eye(5), -gradient[:, :, None])[:, :, 0]
        tried = np.clip(solutions + steps, LEAST, MOST)
        values, tried_shares = _log_law(tried, centred)
        tried_residuals = values - log_losses
        tried_costs = _huber(tried_residuals, delta)
        better = tried_costs < costs
        at_rest = np.where(better, costs - tried_costs <= 1e-10 * costs, damping > 1e8)
        solutions = np.where(better[:, None], tried, solutions)
        residuals = np.where(better[:, None], tried_residuals, residuals)
        shares = np.where(better[None, :, None], tried_shares, shares)
        costs = np.where(better, tried_costs, costs)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e12)
        if at_rest.all():
            break
    return solutions, costs
