"""Numbers that are not finite, told in one sentence instead of drawn as a black picture.

They come of weights that a training broke, or of a precision that does not hold what the model computes (float16). The
loops only note them on the device at each step, and read that once, at the end: a read at every step would make the
device wait.
"""

import torch
from torch import Tensor


class FiniteSteps:
    """Counts the steps before the first whose numbers are not finite."""

    def __init__(self, device: torch.device):
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._steps = torch.zeros((), dtype=torch.long, device=device)
        self._added = 0

    def add(self, values: Tensor) -> None:
        self._added += 1
        self._finite = self._finite & values.isfinite().all()
        self._steps = self._steps + self._finite

    def check(self, what: str, steps: int) -> None:
        """
        Args:
            what: they are steps of, such as "the vq path".
            steps: of how many.

        Raises:
            ValueError: one of those that were added was not finite.
        """
        if (finite := int(self._steps)) < self._added:
            raise ValueError(_sentence(what, f"step {finite + 1} of {steps}", "guide less if guidance_scale is huge, "))


def read_tokens(chosen: Tensor, logits: Tensor, number: int) -> list[int]:
    """Tokens (R,) that were chosen by logits (R, V), on the host; both read at once.

    Args:
        number: of the token in the text, from 1.

    Raises:
        ValueError: the logits are not finite (those of suppressed tokens may be -inf).
    """
    tokens = torch.where(logits.amax(-1).isfinite(), chosen, -1).tolist()
    if -1 in tokens:
        raise ValueError(_sentence("the text", f"token {number}"))
    return tokens


def _sentence(what: str, which: str, other_cause: str = "") -> str:
    return (
        f"{what} came to numbers that are not finite at {which}; load the model in float32 or bfloat16 if it is in "
        f"float16, {other_cause}else its weights are broken: take a checkpoint from before"
    )
