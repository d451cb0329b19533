"""Denoising: noise -> a finished image, by any scheduler of diffusers, against a prefix computed once.

    prepare         scheduler + steps -> Schedule (`schedules`)
    Denoising       noise, Schedule   -> what is to be predicted next; a prediction takes it a step on
    denoise         any predictions   -> x_0
    ImagePredictor  model + prefix    -> guided predictions
    LatentDrawing   all of these, from noise that each image draws for itself, step by step; `draw_latents` is the loop
    commit_image    x_0               -> read clean (timestep 0) into the prefix, for what follows

The model makes the kind of prediction that it was trained for, whatever the scheduler; `noise.convert` turns it into
the kind that the scheduler takes.

Shapes: I images, R rows (I, or 2 I with guidance), S steps, T tokens of one image, C x h x w a latent.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from hybridgen.core.noise import NoiseProcess, add_noise, convert
from hybridgen.core.offload import bring
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.edits import Known
from hybridgen.sampling.finite import FiniteSteps
from hybridgen.sampling.forecast import Forecast
from hybridgen.sampling.guidance import Guidance, Guide, Scale
from hybridgen.sampling.prefix import Prefix, extend
from hybridgen.sampling.schedules import LIBRARY_ERRORS, Schedule, check_scheduler, in_a_line, prepare
from hybridgen.sampling.seeds import draw_noise
from hybridgen.sampling.tasks import Read, Task, run

__all__ = [
    "Denoising", "ImagePredictor", "LatentDrawing", "Schedule", "check_scheduler", "commit_image", "denoise",
    "draw_latents", "prepare",
]  # fmt: skip

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
    known: Known | None = None,
) -> Tensor:
    """Standard normal noise (I, C, h, w) -> clean latents of the same shape.

    Args:
        predict: the model's prediction from x_t at a step; any function will do.
        prediction_type: its kind.
        generators: one per image, for schedulers that draw noise at a step.
        on_step: called with the latents after each step; the loop goes on with those that it returns.
        stop: ends the loop early, with the latents as they are then.
        known: latents that stay where they are not redrawn; needed by a schedule that does not begin in noise.
    """
    denoising = Denoising(noise, schedule, prediction_type, generators, on_step, known)
    while not denoising.done:
        denoising.take(predict(denoising.noisy(), denoising.step))
        if stop is not None and stop():
            break
    return denoising.latents


class Denoising:
    """Latents on their way from noise to clean, a step for each prediction; the arguments are those of `denoise`.

    What is known is held at each step's level of the one noise that is there from the beginning: on the path that a
    model without error would take, so that solvers and forecasts that look back see no jump. No number more is drawn.

    Args:
        latents: (I, C, h, w) as they are now.
        step: the number of the next step.
    """

    def __init__(
        self,
        noise: Tensor,
        schedule: Schedule,
        prediction_type: str,
        generators: list[Generator] | None = None,
        on_step: OnStep | None = None,
        known: Known | None = None,
    ):
        self.schedule, self.prediction_type, self.on_step = schedule, prediction_type, on_step
        self.latents, self.step = noise * getattr(schedule.scheduler, "init_noise_sigma", 1.0), schedule.first
        self._noise, self._known = noise, known
        self._options = {"generator": generators} if schedule.takes_generator else {}
        self._last: tuple = ()  # the last prediction, and the other arguments of `convert` that belong to it
        if schedule.first:
            self.latents = self._noised()
        self._keep()

    @property
    def done(self) -> bool:
        return self.step == len(self.schedule.scheduler.timesteps)

    @property
    def steps_done(self) -> int:
        return self.step - self.schedule.first

    def _noised(self) -> Tensor:
        """The known latents as the next step takes them, in the scheduler's own scale; clean in the end."""
        if self.done:
            return self._known.clean
        schedule, step = self.schedule, self.step
        noised = add_noise(self._known.clean, self._noise, schedule.alpha[step], schedule.sigma[step])
        if not hasattr(schedule.scheduler, "scale_model_input"):
            return noised
        return noised / schedule.scheduler.scale_model_input(
            torch.ones_like(noised), schedule.scheduler.timesteps[step]
        )

    def _keep(self) -> None:
        """What is known stays."""
        if self._known is not None:
            self.latents = self._known.keep(self.latents, self._noised())

    def noisy(self) -> Tensor:
        """x_t (I, C, h, w), which the next step needs a prediction of."""
        scheduler, timestep = self.schedule.scheduler, self.schedule.scheduler.timesteps[self.step]
        scaled = hasattr(scheduler, "scale_model_input")
        self._noisy = scheduler.scale_model_input(self.latents, timestep) if scaled else self.latents
        return self._noisy

    @torch.no_grad()
    def take(self, prediction: Tensor) -> None:
        """Go a step on, with the model's prediction from what `noisy` returned last."""
        schedule, step = self.schedule, self.step
        self._last = prediction, self._noisy, schedule.alpha[step], schedule.sigma[step]
        converted = convert(self.prediction_type, schedule.prediction_type, *self._last)
        scheduler, timestep = schedule.scheduler, schedule.scheduler.timesteps[step]
        self.latents = scheduler.step(converted, timestep, self.latents, **self._options, return_dict=False)[0]
        self.step += 1
        self._keep()
        if self.on_step is not None:
            self.latents = self.on_step(self.steps_done - 1, self.latents)

    @torch.no_grad()
    def expected(self) -> Tensor:
        """The clean latents (I, C, h, w) that the last prediction expects at the end."""
        return convert(self.prediction_type, "sample", *self._last)


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
    begun = None if not schedule.first else Known(known, torch.ones_like(known, dtype=torch.bool))
    try:
        drawn = denoise(predict, draw(1, 1, 8, 8), trial, prediction_type, [Generator()], known=begun)
        off = (drawn - known).pow(2).mean().sqrt()
    except LIBRARY_ERRORS as error:
        raise ValueError(
            f"{name} cannot draw in {steps} evaluations ({in_a_line(error)}); take another scheduler"
        ) from error
    if not off < 0.05:
        raise ValueError(
            f"{name} in {steps} evaluations draws another picture than the model predicts (a trial with a known one "
            f"ended {off:.2g} away from it); take more steps or another scheduler"
        )


class ImagePredictor:
    """The model's predictions for noisy images that come next in a prefix, guided where it has several rows per image.

    All that does not depend on x_t is computed here, once: masks, positions, and the embedding of every timestep. A
    prediction computes the images' own tokens, in the rows that count at its step, and leaves the prefix as it was.

    Args:
        images: I; the prefix has I rows, or 2 I or 3 I as `guidance` orders them.
        size: height and width of a latent.
        timesteps: (S,) as the model is given them, one per step.
        decoder: the model's, in another precision; None = in its own.
        forecast: compute every so manieth step, and forecast those between (`forecast`); 1 = all are computed.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HybridGenForConditionalGeneration,
        prefix: Prefix,
        images: int,
        size: tuple[int, int],
        timesteps: Tensor,
        guidance: Guidance | Scale = 1.0,
        decoder: Decoder | None = None,
        forecast: int = 1,
    ):
        self.config, self.inner, self.size = model.config.diffusion_config, model.model, size
        self.model = model
        bring(model)
        decoder = Decoder(model) if decoder is None else decoder
        blocks = image_blocks(model, self.config.tokens(*size), timesteps.device)
        self._vectors, self.steps = self.inner.timestep_embedder(timesteps), len(timesteps)  # S, H
        prefix.cache.reserve(len(blocks))
        self.guide = Guide(guidance, images, self.steps)
        self._guided = self._unguided = prefix.rows // images, decoder.continue_from(prefix, blocks, diffusion=True)
        if prefix.rows > images:
            self._unguided = 1, decoder.continue_from(prefix.leading_rows(images), blocks, diffusion=True)
        self._in_velocity = self.guide.guidance.method == "zero_star" and self.config.noise_schedule == "flow"
        if self._in_velocity:
            self._alpha, self._sigma = NoiseProcess.of(self.config).coefficients(timesteps)  # S
        self._finite = FiniteSteps(timesteps.device)
        self._forecast = Forecast(forecast, self.steps)

    def __call__(self, noisy: Tensor, step: int) -> Tensor:
        """x_t (I, C, h, w) at a step -> its guided prediction.

        Raises:
            ValueError: at the last step, if a prediction was not finite.
        """
        return run(self.predict(noisy, step))

    def predict(self, noisy: Tensor, step: int) -> Task[Tensor]:
        """The same as a task."""
        bring(self.model)
        is_on = self.guide.is_on(step)
        if (forecast := self._forecast.at(step, is_on)) is not None:
            self._finite.add(forecast)
            return forecast
        copies, forward = self._guided if is_on else self._unguided
        vector = self._vectors[step][None]  # shared: a batch of I equal rows would round differently for each I
        embeds, skips = self.inner.embed_images(noisy, vector)  # I, T, H
        states = yield Read(forward, embeds.repeat(copies, 1, 1), commit=False)  # R, T, H
        skips = [skip.repeat(copies, 1, 1, 1) for skip in skips]
        prediction = self.inner.predict_images(states, vector, skips, self.size).float()  # R, C, h, w
        guided = self._guide(prediction, noisy, step, copies)
        self._forecast.add(step, guided)
        self._finite.add(guided)
        if step == self.steps - 1:
            self._finite.check("the diffusion path", self.steps)
        return guided

    def _guide(self, prediction: Tensor, noisy: Tensor, step: int, copies: int) -> Tensor:
        """Predictions of all rows (R, C, h, w) -> of the images, guided in the kind that the method is made for."""
        if not self._in_velocity:
            return self.guide(prediction, step)
        kind, at = self.config.prediction_type, (self._alpha[step], self._sigma[step])
        prediction = convert(kind, "velocity", prediction, noisy.repeat(copies, 1, 1, 1), *at)
        return convert("velocity", kind, self.guide(prediction, step), noisy, *at)


class LatentDrawing:
    """Latents of the images that come next in the rows of a prefix, step by step; the arguments are those of
    `draw_latents`."""

    @torch.no_grad()
    def __init__(
        self,
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
        forecast: int = 1,
        known: Known | None = None,
        strength: float = 1.0,
    ):
        config, device = model.config.diffusion_config, prefix.positions.device
        schedule = prepare(scheduler, num_inference_steps, config, device, shift, strength)
        if noise is None:
            noise = draw_noise(generators, (config.in_channels, *size), device)
        images, timesteps = len(generators), schedule.timesteps
        self._predictor = ImagePredictor(model, prefix, images, size, timesteps, guidance, decoder, forecast)
        noise = noise.to(device, torch.float32)
        self._denoising = Denoising(noise, schedule, config.prediction_type, generators, on_step, known)

    @property
    def done(self) -> bool:
        return self._denoising.done

    @property
    def steps_done(self) -> int:
        return self._denoising.steps_done

    def step(self) -> Task[None]:
        """One step of the scheduler on."""
        self._denoising.take((yield from self._predictor.predict(self._denoising.noisy(), self._denoising.step)))

    def drawn(self) -> Tensor:
        """The latents (I, C, h, w) as they are now."""
        return self._denoising.latents

    def preview(self) -> Tensor:
        """The clean latents (I, C, h, w) that the model expects at the end, after at least one step."""
        return self._denoising.expected()


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
    forecast: int = 1,
    known: Known | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Clean latents (I, C, h, w) of the images that come next in the rows of a prefix.

    Args:
        size: height and width of a latent.
        generators: one per image; their number is I. The prefix has I, 2 I or 3 I rows, as `guidance` orders them.
        noise: to start from, of the latents' shape; None = drawn from the generators.
        shift: see `prepare`.
        decoder: the model's, in another precision; None = in its own.
        stop: see `denoise`.
        forecast: see `ImagePredictor`.
        known: see `denoise`.
        strength: see `prepare`.
    """
    options = guidance, on_step, noise, shift, decoder, forecast, known, strength
    drawing = LatentDrawing(model, prefix, scheduler, num_inference_steps, size, generators, *options)
    while not drawing.done:
        run(drawing.step())
        if stop is not None and stop():
            break
    return drawing.drawn()


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
