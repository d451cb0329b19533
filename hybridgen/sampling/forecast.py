"""Forecasts of predictions between denoising steps, in place of computing all of them.

From one step to the next a prediction changes little, and nearly along a straight line: the one of a step between two
that are computed is read off the line through the last two (the first order of TaylorSeer, arXiv 2503.06923; TeaCache,
arXiv 2411.19108, keeps the last alone). Which steps are computed is a matter of their number, never of what is drawn:
so a picture does not depend on those beside it.
"""

from torch import Tensor


class Forecast:
    """The predictions of one batch.

    Args:
        every: from one step that is computed to the next; 1 = all are.
        steps: of the schedule. The first two are computed, and the last.
    """

    def __init__(self, every: int, steps: int):
        self.every, self.steps = every, steps
        self._known: list[tuple[int, Tensor]] = []  # steps that were computed last, at most two
        self._kind: object = None

    def at(self, step: int, kind: object) -> Tensor | None:
        """The prediction of a step; None = it is to be computed.

        Args:
            kind: that it is of; the line begins anew with each change (where guidance begins or ends).
        """
        if kind != self._kind:
            self._known, self._kind = [], kind
        if len(self._known) < 2 or step == self.steps - 1 or step - self._known[-1][0] >= self.every:
            return None
        (earlier, before), (last, now) = self._known
        return now + (now - before) * ((step - last) / (last - earlier))

    def add(self, step: int, prediction: Tensor) -> None:
        """It was computed."""
        if self.every > 1:
            self._known = [*self._known[-1:], (step, prediction)]
