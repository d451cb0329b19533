"""Sets any diffusers scheduler to a number of steps and tabulates its levels; a scheduler that does not fit is refused
with a reason.

Schedulers differ in what they call a sample (EulerDiscrete's is not the x_t of training; `scale_model_input` makes it
that) and in the numbers they call timesteps. The model is always given its own process' timestep. A scheduler holds the
state of a loop, so each call works on a copy. The loop itself is in `denoise`.

Shapes: S steps.
"""

import copy
import inspect
from dataclasses import dataclass

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Generator, Tensor

from hybridgen.core.noise import NoiseProcess
from hybridgen.core.values import number, whole_number
from hybridgen.core.versions import version_of

# what diffusers raises for a scheduler that is used in a way it was not written for
LIBRARY_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError)

_FLOW_PREDICTION_TYPES = {"flow_prediction": "velocity", "epsilon": "epsilon", "sample": "sample"}
_WAY_OUT = {
    "flow": "take a flow-matching one: FlowMatchEulerDiscreteScheduler(), or DPMSolverMultistepScheduler and "
    "UniPCMultistepScheduler with use_flow_sigmas=True, prediction_type='flow_prediction'",
    "cosine": "take one with beta_schedule='squaredcos_cap_v2', as DDIMScheduler or DPMSolverMultistepScheduler",
    "linear": "take one with beta_schedule='linear', as DDIMScheduler or DPMSolverMultistepScheduler",
}


@dataclass(frozen=True)
class Schedule:
    """A scheduler set to a number of steps, as tables over the steps.

    Args:
        scheduler: a copy, with the state of this one call.
        timesteps: (S,) as the model is given them.
        alpha, sigma: (S,) how x_t mixes clean image and noise.
        prediction_type: the kind of prediction that the scheduler takes.
        takes_generator: whether its step draws noise from generators.
        first: the number of the step to begin with; above 0, from a known image with the noise of that step.
    """

    scheduler: object
    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    prediction_type: str
    takes_generator: bool
    first: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)


def check_scheduler(scheduler, diffusion_config) -> None:
    """Raises ValueError, with the way out, when a scheduler samples another process than the model was trained on."""
    process = NoiseProcess.of(diffusion_config)
    name, way_out = type(scheduler).__name__, _WAY_OUT[process.schedule]
    trained = (
        f"the model was trained with noise_schedule {process.schedule!r} on {process.num_train_timesteps} timesteps"
    )
    if not hasattr(scheduler, "step"):
        raise ValueError(f"{name} takes no steps, so it does not sample; {way_out}")
    if _is_flow(scheduler) != (process.schedule == "flow"):
        kind = "flow matching" if _is_flow(scheduler) else "a DDPM process"
        raise ValueError(f"{name} samples {kind}, but {trained}; {way_out}")
    if (counted := scheduler.config.get("num_train_timesteps")) != process.num_train_timesteps:
        raise ValueError(f"{name} counts {counted or 'no'} timesteps, but {trained}; {way_out}")
    if scheduler.config.get("use_dynamic_shifting"):
        raise ValueError(
            f"{name} has use_dynamic_shifting, which needs a rule that no config states; set shift instead"
        )
    if process.schedule == "flow":
        if not hasattr(scheduler, "sigmas"):
            raise ValueError(f"{name} has no table of noise levels, so it does not sample flow matching; {way_out}")
        if _prediction_type(scheduler) is None:
            raise ValueError(
                f"{name} has prediction_type {scheduler.config.prediction_type!r}, unknown to flow matching; {way_out}"
            )
        return
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{name} has no table of alphas, so it does not sample a DDPM process; {way_out}")
    alpha, _ = process.coefficients(torch.arange(process.num_train_timesteps))
    if (scheduler.alphas_cumprod.sqrt() - alpha).abs().max() > 1e-3:
        raise ValueError(f"{name} has other betas than training had: {trained}; {way_out}")


def scheduler_named(name: str, diffusion_config):
    """The scheduler of diffusers whose class has this name, for a model's noise process.

    Raises:
        ValueError: diffusers has none of this name, or it cannot sample that process.
    """
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(
            f"diffusers has no scheduler {name!r}; name a class such as DDPMScheduler, DDIMScheduler or "
            "FlowMatchEulerDiscreteScheduler"
        )
    process = NoiseProcess.of(diffusion_config)
    usual = process.default_scheduler(diffusion_config.prediction_type)
    known = inspect.signature(kind.__init__).parameters
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if process.schedule == "flow" else {}
    scheduler = kind.from_config(usual.config, **{key: value for key, value in flow.items() if key in known})
    prepare(scheduler, min(10, process.num_train_timesteps), diffusion_config)
    return scheduler


def _is_flow(scheduler) -> bool:
    config = scheduler.config
    if config.get("use_flow_sigmas"):
        return True
    return not hasattr(scheduler, "alphas_cumprod") and config.get("prediction_type") in (None, "flow_prediction")


def _prediction_type(scheduler) -> str | None:
    if _is_flow(scheduler):
        return _FLOW_PREDICTION_TYPES.get(scheduler.config.get("prediction_type", "flow_prediction"))
    return scheduler.config.prediction_type


def with_shift(scheduler, shift: float):
    """A new scheduler whose noise levels are s -> shift s / (1 + (shift - 1) s): above 1, more steps in noise. At 1,
    one that cannot be shifted passes as it is.

    Raises:
        ValueError: shift is not above 0, or the scheduler does not sample flow matching.
    """
    shift = number("shift", shift, above=True, meaning="1 = none, more = more steps in the noise")
    config = scheduler.config
    name = next((name for name in ("shift", "flow_shift") if name in config), None)
    if name is None or not _is_flow(scheduler):
        if shift == 1:
            return copy.deepcopy(scheduler)
        raise ValueError(
            f"shift moves the noise levels of flow matching, but {type(scheduler).__name__} has none; leave it out, or "
            "say 1 where the checkpoint has a shift of its own"
        )
    static = {"use_dynamic_shifting": False} if config.get("use_dynamic_shifting") else {}
    return type(scheduler).from_config(config, **{name: shift}, **static)


def prepare(
    scheduler,
    num_inference_steps: int,
    diffusion_config,
    device: torch.device | str = "cpu",
    shift: float | None = None,
    strength: float = 1.0,
) -> Schedule:
    """A scheduler, copied and set to its steps.

    1. The grid of noise levels (`_set_steps`).
    2. alpha and sigma come from the scheduler's sigmas where it has them (its timesteps may be rounded).
    3. The model is given 1000 s for flow matching, the scheduler's timestep for DDPM (a fraction where that is one).

    Args:
        shift: of the noise levels (`with_shift`); None = the scheduler's own.
        strength: the share of the steps that are taken, the last of them (SDEdit, arXiv 2108.01073).

    Raises:
        ValueError: see `check_scheduler`; or it has not that many steps, or does not take the prediction it asks for.
    """
    scheduler = copy.deepcopy(scheduler) if shift is None else with_shift(scheduler, shift)
    check_scheduler(scheduler, diffusion_config)
    is_flow, max_timesteps = _is_flow(scheduler), diffusion_config.num_train_timesteps
    num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
    if num_inference_steps > max_timesteps:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; the process has {max_timesteps} timesteps, take fewer"
        )
    _set_steps(scheduler, num_inference_steps, diffusion_config, device)
    first = (num_inference_steps - steps_taken(num_inference_steps, strength)) * getattr(scheduler, "order", 1)
    first = min(first, len(scheduler.timesteps) - 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps.float()
    if is_flow:
        sigma = scheduler.sigmas[: len(timesteps)].float().to(device)
        alpha, timesteps = 1 - sigma, sigma * max_timesteps
    elif hasattr(scheduler, "sigmas"):
        ratio = scheduler.sigmas[: len(timesteps)].float().to(device)  # sigma / alpha
        alpha = (1 + ratio**2).rsqrt()
        sigma = ratio * alpha
    else:
        abar = scheduler.alphas_cumprod.to(device)[scheduler.timesteps]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    _try_a_step(scheduler, takes_generator, first)
    return Schedule(scheduler, timesteps, alpha, sigma, _prediction_type(scheduler), takes_generator, first)


def steps_taken(num_inference_steps: int, strength: float) -> int:
    """How many of the steps a strength takes, at least one."""
    return max(1, round(num_inference_steps * strength))


def _set_steps(scheduler, steps: int, diffusion_config, device: torch.device | str) -> None:
    """Set the grid of noise levels: the scheduler's own, but for flow-matching Euler and Heun.

    These take 1, 1 - 1/S, ..., 1/S (as Flux' pipeline hands it), so that no step is spent between 1/1000 and 0. Heun's
    own grid asks for the velocity at 1/1000, which a model that predicts x_0 gets by dividing by that number: its error
    is amplified a hundredfold. If the model predicts noise, the grid starts at 1 - 1/T (T = num_train_timesteps): at 1,
    x_0 cannot be recovered from the noise.
    """
    max_timesteps = diffusion_config.num_train_timesteps
    largest_sigma = 1 - 1 / max_timesteps if diffusion_config.prediction_type == "epsilon" else 1.0
    try:
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            scheduler.set_timesteps(sigmas=torch.linspace(largest_sigma, 1 / steps, steps).tolist(), device=device)
            return
        if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
            scheduler.sigma_max, scheduler.sigma_min = largest_sigma, 1 / steps
        scheduler.set_timesteps(steps, device=device)
    except LIBRARY_ERRORS as error:
        raise ValueError(
            f"{type(scheduler).__name__} cannot be set to {steps} steps ({in_a_line(error)}); take another number of "
            f"steps or {_WAY_OUT[diffusion_config.noise_schedule].removeprefix('take ')}"
        ) from error


def state_of(scheduler) -> tuple:
    """What a scheduler is and holds, to be compared: equal where none of it was changed or exchanged."""

    def comparable(value):
        plain = isinstance(value, int | float | str | None)
        return value if plain else (id(value), version_of(value) if isinstance(value, Tensor) else 0)

    return scheduler, type(scheduler), *((name, comparable(value)) for name, value in vars(scheduler).items())


def in_a_line(error: Exception) -> str:
    """An error of another library, as a part of a sentence."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _try_a_step(scheduler, takes_generator: bool, first: int) -> None:
    """Schedulers refuse a prediction_type only when they step; so one number takes a step, before any long work."""
    trial, timestep = copy.deepcopy(scheduler), scheduler.timesteps[first]
    pixel = torch.zeros(1, 1, 1, 1, device=timestep.device)
    options = {"generator": Generator()} if takes_generator else {}
    try:
        if hasattr(trial, "scale_model_input"):
            trial.scale_model_input(pixel, timestep)
        trial.step(pixel, timestep, pixel, **options)
    except (ValueError, NotImplementedError) as error:
        kind = scheduler.config.get("prediction_type")
        raise ValueError(
            f"{type(scheduler).__name__} does not work with prediction_type {kind!r}; give it "
            "prediction_type='epsilon', into which the model's predictions are converted"
        ) from error
    except LIBRARY_ERRORS as error:
        name = type(scheduler).__name__
        raise ValueError(f"{name} cannot take a step here ({in_a_line(error)}); take another scheduler") from error
