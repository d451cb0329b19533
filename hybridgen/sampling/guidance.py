"""Guidance: the prediction for a prompt, moved away from the prediction without it; alike for denoising and for codes.

    rows of an image                          guided
    cond                                      cond                                     scale 1: no guidance
    cond, uncond                              uncond + scale * (cond - uncond)         CFG, arXiv 2207.12598
    cond, uncond, uncond_image                uncond_image + image_scale * (uncond - uncond_image)
                                                           + scale * (cond - uncond)   InstructPix2Pix, arXiv 2211.09800

`cond` is prompt and image condition, `uncond` leaves the prompt out (or has the negative one), `uncond_image` the image
too. Rows come as [all cond; all uncond; all uncond_image] along the first dimension.

`scale` 1 *is* the conditional prediction, so no other row is computed then. For plain CFG it makes no
difference whether velocity, noise or x_0 is guided, as these are affine in one another at a given x_t and the weights
sum to one; for the other methods it does. They are applied to what the model predicts, as diffusers does, but for
CFG-Zero*, which is defined on velocities. Logits of codes are known up to a constant only, so the other methods are
given them with mean zero. The names are those of `diffusers.guiders`, and `Guidance.of` takes its guiders.

Shapes: I images, R rows (I, 2 I or 3 I).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridgen.core.devices import sum_dtype
from hybridgen.core.names import check_scale
from hybridgen.core.values import choice, number, whole_number

Scale = float | Tensor | Callable[[int], float | Tensor]  # one, one per image (I,), or either as a function of the step

METHODS = {
    "ClassifierFreeGuidance": "cfg",
    "AdaptiveProjectedGuidance": "apg",
    "ClassifierFreeZeroStarGuidance": "zero_star",
}


@dataclass(frozen=True)
class Guidance:
    """How the rows of an image become one prediction.

    Args:
        scale: 1 = no guidance, more = closer to the prompt, 0 = the unconditional row.
        image_scale: of the image condition; 1 = the two rows are enough.
        guidance_rescale: 0 to 1, how far the standard deviation of the guided prediction is brought back to that of the
            conditional one (arXiv 2305.08891, sec. 3.4).
        start, stop: shares of the steps between which guidance is on (arXiv 2404.07724); elsewhere an image costs one
            row.
        method: `cfg`; `apg`, adaptive projected guidance (arXiv 2410.02416); `zero_star`, CFG-Zero* (arXiv 2503.18886).
        eta: apg: weight of the part of the update that is parallel to the conditional prediction.
        norm_threshold: apg: bound of the update's norm; 0 = none. Of the diffusion path alone, as is the momentum: a
            step of the vq path is another code, and logits of so many codes are far longer than a bound that is usual.
        momentum: apg: of the update over the steps; 0 = none.
        zero_init_steps: zero_star: first steps at which the velocity is taken to be zero.
    """

    scale: Scale = 1.0
    image_scale: Scale = 1.0
    guidance_rescale: float = 0.0
    start: float = 0.0
    stop: float = 1.0
    method: str = "cfg"
    eta: float = 1.0
    norm_threshold: float = 0.0
    momentum: float = 0.0
    zero_init_steps: int = 0

    def __post_init__(self):
        choice("guidance method", self.method, tuple(METHODS.values()))
        checked = {
            "guidance_rescale": number("guidance_rescale", self.guidance_rescale, 0, 1),
            "start": (start := number("guidance start", self.start, 0, 1)),
            "stop": number("guidance stop", self.stop, start, 1),
            "eta": number("guidance eta", self.eta, 0, 1e6),
            "norm_threshold": number("guidance norm_threshold", self.norm_threshold, 0, 1e6),
            "momentum": number("guidance momentum", self.momentum, -1, 1),
            "zero_init_steps": whole_number("zero_init_steps", self.zero_init_steps, 0, meaning="0 for none"),
        }
        for name in ("scale", "image_scale"):
            if not _is_scale_of_images(scale := getattr(self, name)):
                checked[name] = check_scale(f"{'image_' * (name != 'scale')}guidance_scale", scale)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # as plain Python, whatever spelling it came in

    @classmethod
    def of(cls, guider) -> "Guidance":
        """A guider of diffusers as this class; a scale likewise, and a `Guidance` is one already.

        Raises:
            ValueError: it is a guider that does more than mix the rows' predictions, or no guider at all.
        """
        if isinstance(guider, cls):
            return guider
        if not hasattr(guider, "_input_predictions"):
            return cls(guider)
        name, config = type(guider).__name__, guider.config
        if name not in METHODS:
            raise ValueError(f"{name} cannot guide here; use one of {', '.join(METHODS)}, or hybridgen's own Guidance")
        if guider.use_original_formulation and METHODS[name] == "apg":
            raise ValueError(f"{name} with use_original_formulation is not supported; set it to False")
        if config.get("adaptive_projected_guidance_norm_dim") is not None:
            raise ValueError(f"{name} takes its norms over the whole picture here; leave its norm_dim out")
        if not guider._enabled:
            return cls()
        return cls(
            scale=guider.guidance_scale + 1 if guider.use_original_formulation else guider.guidance_scale,
            guidance_rescale=guider.guidance_rescale,
            start=config.start,
            stop=config.stop,
            method=METHODS[name],
            eta=config.get("eta", 1.0),
            norm_threshold=config.get("adaptive_projected_guidance_rescale") or 0.0,
            momentum=config.get("adaptive_projected_guidance_momentum") or 0.0,
            zero_init_steps=config.get("zero_init_steps", 0),
        )

    @property
    def rows(self) -> int:
        """How many rows an image takes: 1 to 3. A scale that is no number may be any."""
        if is_guided(self.image_scale):
            return 3
        return 2 if is_guided(self.scale) else 1

    def check_rows(self, rows: int) -> None:
        """Raises ValueError if it cannot guide an image that takes so many rows."""
        if rows == 3 and self.method != "cfg":
            raise ValueError(f"guidance by {self.method} knows no image_guidance_scale; set it to 1, or guide by cfg")

    def check_path(self, path: str, schedule: str | None) -> None:
        """Raises ValueError if it cannot guide on a path, whose noise schedule is `schedule`."""
        if self.zero_init_steps and (path == "vq" or schedule != "flow"):
            where = "codes" if path == "vq" else f"noise_schedule {schedule!r}"
            raise ValueError(
                f"zero_init_steps is {self.zero_init_steps}, a velocity of zero, which there is in flow matching only "
                f"and not with {where}; set it to 0"
            )
        if path != "vq":
            return
        for name, what, value in (
            ("norm_threshold (adaptive_projected_guidance_rescale)", "bounds a picture's update", self.norm_threshold),
            ("momentum (adaptive_projected_guidance_momentum)", "goes on over a picture's steps", self.momentum),
        ):
            if value:
                raise ValueError(
                    f"{name} is {value}, which {what}, but each step of the vq path is another code; set it to 0"
                )


def is_guided(scale: Scale) -> bool:
    """Whether other rows than the conditional one are needed at all."""
    if isinstance(scale, Tensor):
        return bool((scale != 1).any())
    return scale != 1


def _is_scale_of_images(scale: Scale) -> bool:
    """Whether it is one scale per image, or a function of the step."""
    return callable(scale) or (isinstance(scale, Tensor) and scale.ndim > 0)


class Guide:
    """Guidance over the steps of one batch: a function (predictions of all rows, step) -> predictions of the images.

    Args:
        guidance: or a scale alone.
        images: I.
        steps: of how many; `start` and `stop` are shares of them.
    """

    def __init__(self, guidance: Guidance | Scale, images: int, steps: int = 1):
        self.guidance, self.images = Guidance.of(guidance), images
        self.first, self.end = int(self.guidance.start * steps), int(self.guidance.stop * steps)
        self._running: Tensor | None = None  # APG's average of updates

    def is_on(self, step: int) -> bool:
        """Whether other rows than the conditional ones count at a step."""
        return self.first <= step < self.end and step >= self.guidance.zero_init_steps

    def __call__(self, prediction: Tensor, step: int) -> Tensor:
        """Predictions of all rows (R, ...) -> (I, ...): untouched where there is one row per image."""
        if step < self.guidance.zero_init_steps:
            return torch.zeros_like(prediction[: self.images])
        cond, *others = prediction.split(self.images)
        if not others or not self.is_on(step):
            return cond
        scale = self._at(self.guidance.scale, step, cond)
        guided = getattr(self, f"_{self.guidance.method}")(cond, others[0], scale)
        if len(others) == 2:
            uncond, uncond_image = others
            guided = guided + (self._at(self.guidance.image_scale, step, cond) - 1) * (uncond - uncond_image)
        return self._rescaled(guided, cond) if self.guidance.guidance_rescale else guided

    @staticmethod
    def _at(scale: Scale, step: int, like: Tensor) -> float | Tensor:
        scale = scale(step) if callable(scale) else scale
        if isinstance(scale, Tensor) and scale.ndim:
            return scale.to(like).view(-1, *[1] * (like.ndim - 1))
        return scale

    def _cfg(self, cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
        return uncond + scale * (cond - uncond)

    def _apg(self, cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
        """The update, averaged, shortened, and its part along `cond` weighted by eta."""
        update, dims = cond - uncond, tuple(range(1, cond.ndim))
        if self.guidance.momentum:
            self._running = update if self._running is None else update + self.guidance.momentum * self._running
            update = self._running
        if self.guidance.norm_threshold:
            norm = torch.linalg.vector_norm(update, dim=dims, keepdim=True)
            update = update * (self.guidance.norm_threshold / norm).clamp(max=1)
        wide = sum_dtype(cond.device)
        along = torch.nn.functional.normalize(cond.to(wide), dim=dims)
        parallel = ((update.to(wide) * along).sum(dims, keepdim=True) * along).to(update.dtype)
        return uncond + scale * (update - parallel + self.guidance.eta * parallel)

    def _zero_star(self, cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
        """CFG from the multiple of `uncond` that is nearest to `cond`."""
        dims = tuple(range(1, cond.ndim))
        share = (cond * uncond).sum(dims, keepdim=True) / (uncond.pow(2).sum(dims, keepdim=True) + 1e-8)
        return self._cfg(cond, share * uncond, scale)

    def _rescaled(self, guided: Tensor, cond: Tensor) -> Tensor:
        dims, share = tuple(range(1, cond.ndim)), self.guidance.guidance_rescale
        deviation = guided.std(dims, keepdim=True)
        ratio = cond.std(dims, keepdim=True) / deviation.clamp(min=torch.finfo(deviation.dtype).tiny)  # 0 / 0 is 0
        return share * (guided * ratio) + (1 - share) * guided
