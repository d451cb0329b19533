"""Denoising: noise -> a finished image, by any scheduler of diffusers, against a prefix computed once.

    prepare          scheduler + steps -> Schedule (what to tell the model, how x_t mixes, what the scheduler wants)
    image_predictor  model + prefix    -> a function (x_t, step) -> guided prediction
    denoise          that function     -> x_0
    draw_latents     all of these, from noise that each image draws for itself
    commit_image     x_0               -> read clean (timestep 0) into the prefix, for what follows

The facts a newcomer gets wrong: schedulers differ in what they call a sample (EulerDiscrete's is not the x_t of
training; `scale_model_input` makes it that) and in the numbers they call timesteps; the model is always told its own
process' timestep, and predicts its own kind, which `noise.convert` turns into what the scheduler wants.

Shapes: I images, R rows (I, or 2 I with guidance), S steps, T tokens of one image, C x h x w a latent.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Generator, Tensor

from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.noise import NoiseProcess, convert
from hybridgen.paths.patches import patch_positions, patchify, unpatchify
from hybridgen.sampling.guidance import Scale, guide
from hybridgen.sampling.prefix import Prefix, backbone, extend
from hybridgen.sampling.seeds import draw_noise

Predict = Callable[[Tensor, int], Tensor]  # x_t (I, C, h, w) and the number of the step -> prediction of the same shape
OnStep = Callable[[int, Tensor], Tensor]  # step and latents -> latents to go on with

_FLOW_WANTS = {"flow_prediction": "velocity", "epsilon": "epsilon", "sample": "sample"}
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
        scheduler: a copy of its own, with the state of this one call.
        timesteps: (S,) what the model is told.
        alpha, sigma: (S,) how x_t mixes clean image and noise.
        wanted: the kind of prediction that the scheduler takes.
        generator: whether its step draws noise from generators.
    """

    scheduler: object
    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    wanted: str
    generator: bool

    def __len__(self) -> int:
        return len(self.timesteps)


def check_scheduler(scheduler, diffusion_config) -> None:
    """Raises ValueError, with the way out, when a scheduler samples another process than the model was trained on."""
    process = NoiseProcess.of(diffusion_config)
    name, way_out = type(scheduler).__name__, _WAY_OUT[process.schedule]
    trained = (
        f"the model was trained with noise_schedule {process.schedule!r} on {process.num_train_timesteps} timesteps"
    )
    if _is_flow(scheduler) != (process.schedule == "flow"):
        kind = "flow matching" if _is_flow(scheduler) else "a DDPM process"
        raise ValueError(f"{name} samples {kind}, but {trained}; {way_out}")
    if scheduler.config.num_train_timesteps != process.num_train_timesteps:
        raise ValueError(f"{name} counts {scheduler.config.num_train_timesteps} timesteps, but {trained}; {way_out}")
    if scheduler.config.get("use_dynamic_shifting"):
        raise ValueError(
            f"{name} has use_dynamic_shifting, which needs a rule that no config states; set shift instead"
        )
    if process.schedule == "flow":
        if _wanted(scheduler) is None:
            raise ValueError(
                f"{name} has prediction_type {scheduler.config.prediction_type!r}, unknown to flow matching; {way_out}"
            )
        return
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{name} has no table of alphas, so it does not sample a DDPM process; {way_out}")
    alpha, _ = process.coefficients(torch.arange(process.num_train_timesteps))
    if (scheduler.alphas_cumprod.sqrt() - alpha).abs().max() > 1e-3:
        raise ValueError(f"{name} has other betas than training had: {trained}; {way_out}")


def _is_flow(scheduler) -> bool:
    config = scheduler.config
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return not hasattr(scheduler, "alphas_cumprod") and "prediction_type" not in config


def _wanted(scheduler) -> str | None:
    if _is_flow(scheduler):
        return _FLOW_WANTS.get(scheduler.config.get("prediction_type", "flow_prediction"))
    return scheduler.config.prediction_type


def prepare(scheduler, num_inference_steps: int, diffusion_config, device: torch.device | str = "cpu") -> Schedule:
    """A scheduler, copied and set to its steps.

    1. Flow-matching Euler takes the grid 1, 1 - 1/S, ..., 1/S (as Flux' pipeline hands it), so that no step is spent
       between 1/1000 and 0; from 1 - 1/T on where the model predicts the noise, of which x_0 cannot be had at s = 1.
       Others: their own.
    2. alpha and sigma come from the scheduler's sigmas where it has them (its timesteps may be rounded).
    3. The model is told 1000 s for flow matching, the scheduler's timestep for DDPM (a fraction where that is one).

    Raises:
        ValueError: see `check_scheduler`; or it has not that many steps, or does not take the prediction it asks for.
    """
    check_scheduler(scheduler, diffusion_config)
    scheduler = copy.deepcopy(scheduler)
    is_flow, most = _is_flow(scheduler), diffusion_config.num_train_timesteps
    if not is_flow and num_inference_steps > most:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; the process has {most} timesteps, take fewer")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        top = 1 - 1 / most if diffusion_config.prediction_type == "epsilon" else 1.0
        grid = torch.linspace(top, 1 / num_inference_steps, num_inference_steps).tolist()
        scheduler.set_timesteps(sigmas=grid, device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    timesteps = scheduler.timesteps.float()
    if is_flow:
        sigma = scheduler.sigmas[: len(timesteps)].float().to(device)
        alpha, timesteps = 1 - sigma, sigma * most
    elif hasattr(scheduler, "sigmas"):
        ratio = scheduler.sigmas[: len(timesteps)].float().to(device)  # sigma / alpha
        alpha = (1 + ratio**2).rsqrt()
        sigma = ratio * alpha
    else:
        abar = scheduler.alphas_cumprod.to(device)[scheduler.timesteps]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    _try_a_step(scheduler, takes_generator)
    return Schedule(scheduler, timesteps, alpha, sigma, _wanted(scheduler), takes_generator)


def _try_a_step(scheduler, takes_generator: bool) -> None:
    """Schedulers refuse a prediction_type only when they step; so one number takes a step, before any long work."""
    trial, timestep = copy.deepcopy(scheduler), scheduler.timesteps[0]
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


@torch.no_grad()
def denoise(
    predict: Predict,
    noise: Tensor,
    schedule: Schedule,
    prediction_type: str,
    generators: list[Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Standard normal noise (I, C, h, w) -> clean latents of the same shape.

    Args:
        predict: what the model says of x_t at a step; any function will do.
        prediction_type: the kind of what it says.
        generators: one an image, for schedulers that draw noise at a step.
        on_step: told the latents after each step; what it returns is gone on with.
    """
    scheduler = schedule.scheduler
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    options = {"generator": generators} if schedule.generator else {}
    for step, timestep in enumerate(scheduler.timesteps):
        noisy = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        prediction = predict(noisy, step)
        coefficients = schedule.alpha[step], schedule.sigma[step]
        prediction = convert(prediction_type, schedule.wanted, prediction, noisy, *coefficients)
        latents = scheduler.step(prediction, timestep, latents, **options, return_dict=False)[0]
        if on_step is not None:
            latents = on_step(step, latents)
    return latents


@torch.no_grad()
def image_predictor(
    model: HybridGenForConditionalGeneration,
    prefix: Prefix,
    images: int,
    size: tuple[int, int],
    timesteps: Tensor,
    guidance: Scale = 1.0,
) -> Predict:
    """What the model says of noisy images that come next in a prefix, guided where it has two rows an image.

    All that does not depend on x_t is computed here, once: mask, positions, and the embedding of every timestep. A call
    computes the images' own tokens, and leaves the prefix as it was.

    Args:
        images: I; the prefix has I or 2 I rows, conditional ones first.
        size: height and width of a latent.
        timesteps: (S,) what the model is told at each step.
    """
    config, core = model.config.diffusion_config, model.model
    where = patch_positions(*size, config.patch_size, device=timesteps.device)  # T, 2
    mask = prefix.mask_with(model, image_blocks(model, len(where), timesteps.device))
    position_ids = prefix.positions_of(len(where))
    vectors = core.timestep_embedder(timesteps)  # S, H
    prefix.cache.reserve(len(where))
    copies = prefix.rows // images

    @torch.no_grad()
    def predict(noisy: Tensor, step: int) -> Tensor:
        patches = patchify(noisy, config.patch_size).to(vectors.dtype)  # I, T, D
        embeds = core.patch_embed(patches, where) + vectors[step]  # I, T, H
        with prefix.cache.peeking():
            states = backbone(model, prefix, embeds.repeat(copies, 1, 1), mask, position_ids, diffusion=True)
        patches = core.final_layer(states, vectors[step]).float()  # R, T, D
        return guide(unpatchify(patches, config.patch_size, *size), images, guidance, step)

    return predict


@torch.no_grad()
def draw_latents(
    model: HybridGenForConditionalGeneration,
    prefix: Prefix,
    scheduler,
    num_inference_steps: int,
    size: tuple[int, int],
    generators: list[Generator],
    guidance: Scale = 1.0,
    on_step: OnStep | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Clean latents (I, C, h, w) of the images that come next in the rows of a prefix.

    Args:
        size: height and width of a latent.
        generators: one an image; their number is I. The prefix has I or 2 I rows, conditional ones first.
        noise: to start from, of the latents' shape; None = drawn from the generators.
    """
    config, device = model.config.diffusion_config, prefix.positions.device
    schedule = prepare(scheduler, num_inference_steps, config, device)
    if noise is None:
        noise = draw_noise(generators, (config.in_channels, *size), device)
    predict = image_predictor(model, prefix, len(generators), size, schedule.timesteps, guidance)
    return denoise(predict, noise.to(device, torch.float32), schedule, config.prediction_type, generators, on_step)


def image_blocks(model: HybridGenForConditionalGeneration, tokens: int, device: torch.device) -> Tensor:
    """Blocks (T,) of one image of the diffusion path: one for all its tokens, or one each where it is causal."""
    blocks = torch.arange(tokens, device=device)
    return torch.zeros_like(blocks) if model.config.is_bidirectional("diffusion") else blocks


@torch.no_grad()
def commit_image(model: HybridGenForConditionalGeneration, prefix: Prefix, latents: Tensor) -> Tensor:
    """Read finished images (I, C, h, w) at timestep 0, and the end of the image, into every row of a prefix.

    Returns:
        the backbone's output (R, T + 1, H).
    """
    config = model.config
    latents = latents.repeat(prefix.rows // len(latents), 1, 1, 1)  # R, C, h, w
    p = config.diffusion_config.patch_size
    blocks = image_blocks(model, latents.shape[-2] // p * (latents.shape[-1] // p), latents.device)
    ids = torch.full_like(blocks, config.diffusion_token_id)
    ids = torch.cat([ids, ids.new_tensor([config.end_image_token_id])])
    blocks = torch.cat([blocks, blocks.new_tensor([len(blocks)])])
    return extend(model, prefix, ids, blocks, latents=latents, timesteps=latents.new_zeros(len(latents)))
