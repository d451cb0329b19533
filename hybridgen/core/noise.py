"""The noise convention, stated once: how a clean image and noise mix at a timestep, and what a head may predict of it.

    x_t = alpha_t x_0 + sigma_t noise                       one line for every schedule

    flow     alpha = 1 - s, sigma = s, timestep = 1000 s    s in [0, 1]; velocity = noise - x_0
    cosine   alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t) t = 0 .. 999; v_prediction = alpha noise - sigma x_0
    linear   the same with DDPM's linear betas              (Salimans & Ho 2022)

The DDPM tables are those of diffusers' `DDPMScheduler` (`squaredcos_cap_v2`, `linear`), flow matching is that of
`FlowMatchEulerDiscreteScheduler`. Pure functions: nothing here draws a random number. A clean image is read at timestep
0. Every conversion between predictions goes through x_0 and noise, which two of (x_t, prediction) determine.
"""

from dataclasses import dataclass

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

_BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


@dataclass(frozen=True)
class NoiseProcess:
    """A schedule: timesteps -> (alpha, sigma). Make one with `NoiseProcess.of(diffusion_config)`."""

    schedule: str
    num_train_timesteps: int = 1000

    @classmethod
    def of(cls, config) -> "NoiseProcess":
        return cls(config.noise_schedule, config.num_train_timesteps)

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(I,) timesteps -> alpha and sigma (I,), float32. Flow takes real timesteps, DDPM schedules whole ones."""
        if self.schedule == "flow":
            s = timesteps.float() / self.num_train_timesteps
            return 1 - s, s
        abar = _alphas_cumprod(self.schedule, self.num_train_timesteps).to(timesteps.device)[timesteps.long()]
        return abar.sqrt(), (1 - abar).sqrt()

    def timesteps(self, s: Tensor) -> Tensor:
        """Noise levels s in [0, 1] -> timesteps of this schedule: real for flow, whole 0 .. T - 1 for DDPM."""
        if self.schedule == "flow":
            return s * self.num_train_timesteps
        return (s * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)

    def default_scheduler(self, prediction_type: str):
        """The diffusers scheduler that samples this process by default."""
        if self.schedule == "flow":
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_train_timesteps)
        return _ddpm(self.schedule, self.num_train_timesteps, prediction_type)


def _ddpm(schedule: str, steps: int, prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=steps, beta_schedule=_BETAS[schedule], prediction_type=prediction_type, clip_sample=False
    )


_tables: dict[tuple[str, int], Tensor] = {}


def _alphas_cumprod(schedule: str, steps: int) -> Tensor:
    if (schedule, steps) not in _tables:
        _tables[schedule, steps] = _ddpm(schedule, steps, "epsilon").alphas_cumprod
    return _tables[schedule, steps]


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t of images (..., C, H, W); alpha and sigma broadcast."""
    return alpha * clean + sigma * noise


def target(prediction_type: str, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The target of a head of this prediction type."""
    if prediction_type == "velocity":
        return noise - clean
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    return alpha * noise - sigma * clean  # v_prediction


def clean_and_noise(
    prediction_type: str, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """(x_0, noise) that a prediction at x_t implies. Coefficients that divide are bounded below by 1e-6."""
    tiny = 1e-6
    if prediction_type == "sample":
        return prediction, (noisy - alpha * prediction) / sigma.clamp(min=tiny)
    if prediction_type == "epsilon":
        return (noisy - sigma * prediction) / alpha.clamp(min=tiny), prediction
    if prediction_type == "velocity":
        return noisy - sigma * prediction, noisy + alpha * prediction  # alpha + sigma = 1
    return alpha * noisy - sigma * prediction, sigma * noisy + alpha * prediction  # alpha^2 + sigma^2 = 1


def convert(
    prediction_type: str, wanted: str, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """A prediction of one kind as another kind, at x_t."""
    if prediction_type == wanted:
        return prediction
    clean, noise = clean_and_noise(prediction_type, prediction, noisy, alpha, sigma)
    return target(wanted, clean, noise, alpha, sigma)
