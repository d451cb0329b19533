"""Classifier-free guidance (arXiv 2207.12598), the same for denoising and for code logits.

    guided = unconditional + scale * (conditional - unconditional)

Rows come as [conditional; unconditional] along the first dimension. The fact a newcomer gets wrong: `scale` 1 *is* the
conditional prediction, so no unconditional row is computed then; 0 is the unconditional one, below 1 mixes the two. On
the diffusion path it is applied to what the model predicts. Velocity, noise and x_0 are affine in one another at a
given x_t, and the two weights sum to one, so it makes no difference which of them is guided.
"""

from collections.abc import Callable

from torch import Tensor

Scale = float | Tensor | Callable[[int], float | Tensor]  # one, one an image (I,), or either as a function of the step


def is_guided(scale: float) -> bool:
    """Whether unconditional rows are needed at all."""
    return scale != 1


def check_scale(scale: float) -> None:
    """Raises ValueError for a scale that means nothing."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < float("inf"):
        raise ValueError(
            f"guidance_scale is {scale!r}; it must be a number of at least 0 (1 = none, more = closer to the prompt)"
        )


def guide(prediction: Tensor, images: int, scale: Scale, step: int) -> Tensor:
    """Predictions of all rows (R, ...) -> (I, ...): guided where there are two rows an image, untouched where one."""
    if len(prediction) == images:
        return prediction
    conditional, unconditional = prediction.chunk(2)
    scale = scale(step) if callable(scale) else scale
    if isinstance(scale, Tensor) and scale.ndim:
        scale = scale.view(-1, *[1] * (prediction.ndim - 1))
    return unconditional + scale * (conditional - unconditional)
