"""Denoising: noise -> a finished image, by any scheduler of diffusers, against a prefix computed once.

    prepare          scheduler + steps -> Schedule (`schedules`)
    image_predictor  model + prefix    -> a function (x_t, step) -> guided prediction
    denoise          that function     -> x_0
    draw_latents     all of these, from noise that each image draws for itself
    commit_image     x_0               -> read clean (timestep 0) into the prefix, for what follows

The model makes the kind of prediction that it was trained for, whatever the scheduler; `noise.convert` turns it into
the kind that the scheduler takes.

Shapes: I images, R rows (I, or 2 I with guidance), S steps, T tokens of one image, C x h x w a latent.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from hybridgen.core.noise import NoiseProcess, convert
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.finite import FiniteSteps
from hybridgen.sampling.guidance import Guidance, Guide, Scale
from hybridgen.sampling.prefix import Prefix, extend
from hybridgen.sampling.schedules import LIBRARY_ERRORS, Schedule, check_scheduler, in_a_line, prepare
from hybridgen.sampling.seeds import draw_noise

__all__ = ["Schedule", "check_scheduler", "commit_image", "denoise", "draw_latents", "image_predictor", "prepare"]

Predict = Callable[[Tensor, int], Tensor]  # x_t (I, C, h, w) and the number of the step -> prediction of the same shape
OnStep = Callable[[int, Tensor], Tensor]  # step and latents -> latents to go on with
Stop = Callable[[], bool]  # asked after each step: whether the loop is to end there


@torch.no_grad()
def denoise(
    predict: Predict,
    noise: Tensor,
    schedule: Schedule,
    prediction_type: str,
    generators: list[Generator] | None = None,
    on_step: OnStep | None = None,
    stop: Stop | None = None,
) -> Tensor:
    """Standard normal noise (I, C, h, w) -> clean latents of the same shape.

    Args:
        predict: the model's prediction from x_t at a step; any function will do.
        prediction_type: its kind.
        generators: one per image, for schedulers that draw noise at a step.
        on_step: called with the latents after each step; the loop goes on with those that it returns.
        stop: ends the loop early, with the latents as they are then.
    """
    latents = noise
    for latents in denoise_steps(predict, noise, schedule, prediction_type, generators, on_step):  # noqa: B007
        if stop is not None and stop():
            break
    return latents


@torch.no_grad()
def denoise_steps(
    predict: Predict,
    noise: Tensor,
    schedule: Schedule,
    prediction_type: str,
    generators: list[Generator] | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """`denoise` step by step: the latents after each. To stop, stop iterating."""
    scheduler = schedule.scheduler
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    options = {"generator": generators} if schedule.takes_generator else {}
    for step, timestep in enumerate(scheduler.timesteps):
        noisy = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        prediction = predict(noisy, step)
        coefficients = schedule.alpha[step], schedule.sigma[step]
        prediction = convert(prediction_type, schedule.prediction_type, prediction, noisy, *coefficients)
        latents = scheduler.step(prediction, timestep, latents, **options, return_dict=False)[0]
        if on_step is not None:
            latents = on_step(step, latents)
        yield latents


def check_schedule_draws(schedule: Schedule, prediction_type: str) -> None:
    """Let a schedule draw a few known numbers from a model with an error of one per cent, before long work.

    Raises:
        ValueError: it does not come near them: a scheduler that goes the other way, that ends in noise, or that
            enlarges a small error of the model.
    """
    name, steps = type(schedule.scheduler).__name__, len(schedule)
    generator, device = Generator().manual_seed(0), schedule.alpha.device
    draw = lambda *size: torch.randn(*size, generator=generator).to(device)  # noqa: E731
    known, errors = draw(1, 1, 8, 8).clamp(-1, 1), draw(steps, 1, 1, 8, 8) / 100

    def predict(noisy: Tensor, step: int) -> Tensor:
        mix = schedule.alpha[step], schedule.sigma[step]
        return convert("sample", prediction_type, known + errors[step], noisy, *mix)

    trial = replace(schedule, scheduler=copy.deepcopy(schedule.scheduler))
    try:
        off = (denoise(predict, draw(1, 1, 8, 8), trial, prediction_type, [Generator()]) - known).pow(2).mean().sqrt()
    except LIBRARY_ERRORS as error:
        raise ValueError(
            f"{name} cannot draw in {steps} evaluations ({in_a_line(error)}); take another scheduler"
        ) from error
    if not off < 0.05:
        raise ValueError(
            f"{name} in {steps} evaluations draws another picture than the model predicts (a trial with a known one "
            f"ended {off:.2g} away from it); take more steps or another scheduler"
        )


@torch.no_grad()
def image_predictor(
    model: HybridGenForConditionalGeneration,
    prefix: Prefix,
    images: int,
    size: tuple[int, int],
    timesteps: Tensor,
    guidance: Guidance | Scale = 1.0,
    decoder: Decoder | None = None,
) -> Predict:
    """The model's predictions for noisy images that come next in a prefix, guided where it has several rows per image.

    All that does not depend on x_t is computed here, once: masks, positions, and the embedding of every timestep. A
    call computes the images' own tokens, in the rows that count at its step, and leaves the prefix as it was.

    Args:
        images: I; the prefix has I rows, or 2 I or 3 I as `guidance` orders them.
        size: height and width of a latent.
        timesteps: (S,) as the model is given them, one per step.
        decoder: the model's, in another precision; None = in its own.

    Raises:
        ValueError: at the last step, if a prediction was not finite.
    """
    config, inner = model.config.diffusion_config, model.model
    decoder = Decoder(model) if decoder is None else decoder
    blocks = image_blocks(model, config.tokens(*size), timesteps.device)
    vectors = inner.timestep_embedder(timesteps)  # S, H
    prefix.cache.reserve(len(blocks))
    guide = Guide(guidance, images, len(timesteps))
    guided = unguided = prefix.rows // images, decoder.continue_from(prefix, blocks, diffusion=True)
    if prefix.rows > images:
        unguided = 1, decoder.continue_from(prefix.leading_rows(images), blocks, diffusion=True)
    kind, in_velocity = config.prediction_type, guide.guidance.method == "zero_star" and config.noise_schedule == "flow"
    if in_velocity:
        alpha, sigma = NoiseProcess.of(config).coefficients(timesteps)  # S
    finite = FiniteSteps(timesteps.device)

    def guided_prediction(noisy: Tensor, step: int) -> Tensor:
        copies, forward = guided if guide.is_on(step) else unguided
        vector = vectors[step][None]  # shared: a batch of I equal rows would round differently for each I
        embeds, skips = inner.embed_images(noisy, vector)  # I, T, H
        states = forward(embeds.repeat(copies, 1, 1), commit=False)  # R, T, H
        skips = [skip.repeat(copies, 1, 1, 1) for skip in skips]
        prediction = inner.predict_images(states, vector, skips, size).float()  # R, C, h, w
        if not in_velocity:
            return guide(prediction, step)
        at = alpha[step], sigma[step]
        prediction = convert(kind, "velocity", prediction, noisy.repeat(copies, 1, 1, 1), *at)
        return convert("velocity", kind, guide(prediction, step), noisy, *at)

    @torch.no_grad()
    def predict(noisy: Tensor, step: int) -> Tensor:
        prediction = guided_prediction(noisy, step)
        finite.add(prediction)
        if step == len(timesteps) - 1:
            finite.check("the diffusion path", len(timesteps))
        return prediction

    return predict


@torch.no_grad()
def draw_latents(
    model: HybridGenForConditionalGeneration,
    prefix: Prefix,
    scheduler,
    num_inference_steps: int,
    size: tuple[int, int],
    generators: list[Generator],
    guidance: Guidance | Scale = 1.0,
    on_step: OnStep | None = None,
    noise: Tensor | None = None,
    shift: float | None = None,
    decoder: Decoder | None = None,
    stop: Stop | None = None,
) -> Tensor:
    """Clean latents (I, C, h, w) of the images that come next in the rows of a prefix.

    Args:
        size: height and width of a latent.
        generators: one per image; their number is I. The prefix has I, 2 I or 3 I rows, as `guidance` orders them.
        noise: to start from, of the latents' shape; None = drawn from the generators.
        shift: see `prepare`.
        decoder: the model's, in another precision; None = in its own.
        stop: see `denoise`.
    """
    config, device = model.config.diffusion_config, prefix.positions.device
    schedule = prepare(scheduler, num_inference_steps, config, device, shift)
    if noise is None:
        noise = draw_noise(generators, (config.in_channels, *size), device)
    predict = image_predictor(model, prefix, len(generators), size, schedule.timesteps, guidance, decoder)
    noise = noise.to(device, torch.float32)
    return denoise(predict, noise, schedule, config.prediction_type, generators, on_step, stop)


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
    blocks = image_blocks(model, config.diffusion_config.tokens(*latents.shape[-2:]), latents.device)
    ids = torch.full_like(blocks, config.diffusion_token_id)
    ids = torch.cat([ids, ids.new_tensor([config.end_image_token_id])])
    blocks = torch.cat([blocks, blocks.new_tensor([len(blocks)])])
    return extend(model, prefix, ids, blocks, latents=latents, timesteps=latents.new_zeros(len(latents)))
