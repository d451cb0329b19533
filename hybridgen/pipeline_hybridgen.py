"""The pipeline: prompts -> pictures by any path that writes, pictures and questions -> answers by any path that reads.

It joins processor, model, scheduler and codecs, checks what a user can get wrong before the first forward, and cuts the
work into batches; the loops are `sampling`'s. The fact a newcomer gets wrong: `max_batch` changes memory and speed,
never a picture, for every image has a random stream of its own.

The names `PreTrainedModel`, `ProcessorMixin` and `SchedulerMixin` of a component's base class must exist in the module
that the component was saved from (diffusers looks there), which is why those modules import them by name.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Generator, Tensor

from hybridgen.chat.session import Conversing
from hybridgen.checkpoints.loading import check_checkpoint, check_codec_weights, friendly_errors, load_model
from hybridgen.checkpoints.manifest import Manifesting
from hybridgen.codecs.frozen import PixelCodec, VAECodec, VQCodec
from hybridgen.core.noise import NoiseProcess
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_answering import Answering
from hybridgen.pipeline_checks import WRITING_PATHS, Checks
from hybridgen.pipeline_drawing import Drawing
from hybridgen.pipeline_saving import Saving
from hybridgen.processing_hybridgen import HybridGenProcessor
from hybridgen.sampling.codes import check_window
from hybridgen.sampling.requests import Planning, batches
from hybridgen.sampling.seeds import image_generators
from hybridgen.sampling.settings import check_defaults, code_sampling, each, guidance_of, settings_of

__all__ = ["WRITING_PATHS", "HybridGenPipeline", "load_pipeline"]


class HybridGenPipeline(Checks, Planning, Drawing, Answering, Conversing, Manifesting, Saving, DiffusionPipeline):
    """
    Args:
        model, processor: what reads and writes.
        scheduler: any scheduler of diffusers that samples the model's noise process; None = the process' own.
        vae: autoencoder under the diffusion path; None = it works on pixels.
        vq_model: tokenizer of the vq path; None = that path cannot be used.
        sampling_defaults: how it draws unless a call says otherwise, {path: {setting: value}}, such as {"vq":
            {"guidance_scale": 5.0}}; saved with it.
    """

    _optional_components = ["scheduler", "vae", "vq_model"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        model: HybridGenForConditionalGeneration,
        processor: HybridGenProcessor,
        scheduler=None,
        vae=None,
        vq_model=None,
        sampling_defaults: dict[str, dict] | None = None,
    ):
        super().__init__()
        check_defaults(sampling_defaults)
        if sampling_defaults is not None:
            self.register_to_config(sampling_defaults=sampling_defaults)
        diffusion = model.config.diffusion_config
        if scheduler is None and diffusion is not None:
            scheduler = NoiseProcess.of(diffusion).default_scheduler(diffusion.prediction_type)
        self.register_modules(model=model, processor=processor, scheduler=scheduler, vae=vae, vq_model=vq_model)

    # ------------------------------------------------------------------------------------------------ what it has

    @property
    def sampling_defaults(self) -> dict[str, dict] | None:
        """What its folder says of how to draw."""
        return self.config.get("sampling_defaults")

    def sampling_settings(self, path: str, **given) -> dict:
        """Every setting that matters to a path (`pipeline_settings`), as given or, where None, as by default."""
        return settings_of(path, self.sampling_defaults, given)

    @property
    def guidance_scale(self) -> float | list[float]:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def latent_codec(self) -> PixelCodec | VAECodec:
        """Between pixels and what the diffusion path reads and writes."""
        return PixelCodec() if self.vae is None else VAECodec(self.vae)

    @property
    def vq_codec(self) -> VQCodec:
        """Between pixels and codes."""
        return VQCodec(self.vq_model)

    # ---------------------------------------------------------------------------------------------------- drawing

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        path: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | list[float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        generator: Generator | list[Generator] | None = None,
        seed: int | list[int] | None = None,
        latents: Tensor | list[Tensor] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_batch: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        guider=None,
        guidance_rescale: float | None = None,
        shift: float | None = None,
        image=None,
        image_guidance_scale: float | list[float] | None = None,
        read: str | None = None,
        precision: str | None = None,
        window: int | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw.

        1. Fill in what is not given, and check everything that needs no forward.
        2. Cut the images into batches that are alike (`pipeline_plan`).
        3. For each batch: read its prompts into a prefix, denoise or write codes against it, decode.

        Args:
            prompt: any number of prompts.
            path: `diffusion` or `vq`; None = the first of them that the model has.
            num_inference_steps: denoising steps (diffusion). This and other settings of drawing: None = as the folder's
                `sampling_defaults` say, or 30 steps, guidance 3, temperature 1. What is said to be of one path is
                refused on the other.
            guidance_scale: one, or one a prompt: 1 = no guidance, which costs half; above 1 = closer to the prompt, 0 =
                the negative prompt alone.
            negative_prompt: what guidance leads away from; None = as the processor's `unconditional` says.
            num_images_per_prompt: images of a prompt stand together in the result.
            height, width: one, or one a prompt: any multiple of a token's side. None = that side as in the processor's
                default size, whatever the other is.
            generator: one an image; a single one seeds one for each of several images.
            seed: image i is drawn with `seed + i`, or with `seed[i]`, whatever is drawn beside it.
            latents: (I, C, h, w), or a list of (C, h, w): standard normal noise to start from (diffusion); None = drawn
                from the seeds.
            temperature, top_k, top_p: of the codes (vq); temperature 0 takes the likeliest code each time.
            max_batch: rows of the backbone at a time; a guided image takes two, or three.
            output_type: `pil`, `np` (I, H, W, 3) or `pt` (I, 3, H, W) in [0, 1], or `latent`: latents (I, C, h, w),
                codes (I, h, w); lists where sizes differ.
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": ...}) in every batch; on the vq
                path with (pipeline, step, step, ...) and the codes so far. What it returns under "latents" is gone on
                with.
            guider: another way to guide than plain guidance: one of `diffusers.guiders` (ClassifierFreeGuidance,
                AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance), or a `Guidance`. Its scale and rescale hold
                where the call gives none.
            guidance_rescale: 0 to 1, against the glare of strong guidance.
            shift: of flow matching's noise levels; above 1 = more steps in the noise. None = as the scheduler has it.
            image: one, or one a prompt, that stands before the prompt.
            image_guidance_scale: one, or one a prompt: how closely to follow `image`; other than 1 costs a third row.
            read: path by which `image` is read; None = the first that the model has.
            precision: of the weights in the inner loop: `model` (as loaded), `fp32` (packed once for the processor:
                sooner where few tokens are read at once), `bf16`, or `int8` (CPU): two to five times as fast, and no
                longer the same picture to the bit.
            window: codes read at once, all but one of them guessed (vq): the same codes, sooner where many guesses are
                right.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        path = self.writing_path(path)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        self.check_inputs(prompts, num_images_per_prompt, max_batch, output_type, callback_on_step_end_tensor_inputs)
        guidance = guidance_of(guider)
        if guider is not None:
            guidance_scale = guidance.scale if guidance_scale is None else guidance_scale
            guidance_rescale = guidance.guidance_rescale if guidance_rescale is None else guidance_rescale
            image_guidance_scale = guidance.image_scale if image_guidance_scale is None else image_guidance_scale
        settings = self.sampling_settings(
            path, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, shift=shift,
            guidance_rescale=guidance_rescale, image_guidance_scale=image_guidance_scale, temperature=temperature,
            top_k=top_k, top_p=top_p, precision=precision, window=window,
        )  # fmt: skip
        decoder, window = self.decoder(settings["precision"]), settings.get("window", 1)
        check_window(window, guidance)
        guidance = replace(guidance, guidance_rescale=settings["guidance_rescale"])
        sampling = code_sampling(settings)
        steps, shift = settings.get("num_inference_steps", 1), settings.get("shift")
        sizes = self.check_sizes(each("height", height, len(prompts)), each("width", width, len(prompts)), path)
        self.check_drawing(path, steps, guidance, shift)
        orders = self.plan(
            prompts, negative_prompt, sizes, settings["guidance_scale"], settings["image_guidance_scale"],
            image, read, path,
        )  # fmt: skip
        guidance.check_rows(max(len(order.rows) for order in orders))
        orders = [order for order in orders for _ in range(num_images_per_prompt)]
        generators = image_generators(len(orders), seed, generator)
        latents = self.check_noise(latents, path, [order.size for order in orders])
        self._guidance_scale = settings["guidance_scale"]
        cut = batches(orders, max_batch)
        timesteps = {size: self._steps(path, size, steps, shift) for size in set(sizes)}
        drawn: list[Tensor | None] = [None] * len(orders)
        with self.progress_bar(total=sum(len(timesteps[orders[batch[0]].size]) for batch in cut)) as progress:
            for batch in cut:
                first = orders[batch[0]]
                told = timesteps[first.size]
                self._num_timesteps = len(told)

                def on_step(step: int, current: Tensor, told=told) -> Tensor:
                    if callback_on_step_end is not None:
                        kept = callback_on_step_end(self, step, told[step], {"latents": current}) or {}
                        current = kept.get("latents", current)
                    progress.update()
                    return current

                def scale(step: int, batch=batch) -> float | Tensor:
                    given = self._guidance_scale  # a callback may change it
                    if not isinstance(given, list | tuple):
                        return given
                    return torch.tensor([given[number // num_images_per_prompt] for number in batch])

                image_scale = torch.tensor([orders[number].image_scale for number in batch])
                guided = replace(guidance, scale=scale, image_scale=image_scale)
                noise = None if latents is None else torch.stack([latents[number] for number in batch])
                rows = [orders[number].rows[row] for row in range(len(first.rows)) for number in batch]
                chosen = [generators[number] for number in batch]
                how = (path, first.size, steps, chosen, sampling, guided, on_step, noise, shift, decoder, window)
                made = self.draw(self._prefix(rows), *how)
                made = made if output_type == "latent" else self._decode(made, path)
                for number, picture in zip(batch, made, strict=True):
                    drawn[number] = picture
        images = self._output(drawn, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def load_pipeline(checkpoint: str | Path) -> HybridGenPipeline:
    """A pipeline from a folder on disk, every weight accounted for.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    folder = Path(checkpoint)
    check_checkpoint(folder)
    with friendly_errors(folder):
        pipeline = HybridGenPipeline.from_pretrained(folder, model=load_model(folder / "model"))
        for name in ("vae", "vq_model"):
            if (codec := getattr(pipeline, name)) is not None:
                check_codec_weights(folder / name, codec)
    pipeline.loaded_from(folder)
    return pipeline
