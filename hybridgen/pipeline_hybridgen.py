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

from hybridgen.checkpoints import check_checkpoint, check_codec_weights, load_model, told_in_one_sentence
from hybridgen.codecs import PixelCodec, VAECodec, VQCodec
from hybridgen.configuration_hybridgen import require_path
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.noise import NoiseProcess
from hybridgen.pipeline_checks import WRITING_PATHS, Checks, check_counts
from hybridgen.pipeline_plan import Planning, batches
from hybridgen.pipeline_saving import Saving
from hybridgen.pipeline_settings import check_defaults, code_sampling, each, guidance_of, settings_of
from hybridgen.processing_hybridgen import Document, HybridGenProcessor, left_pad
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.denoise import OnStep, draw_latents, prepare
from hybridgen.sampling.guidance import Guidance, Scale
from hybridgen.sampling.prefix import Prefix, read_prompts
from hybridgen.sampling.seeds import image_generators
from hybridgen.sampling.text import write_text

__all__ = ["WRITING_PATHS", "HybridGenPipeline", "load_pipeline"]


class HybridGenPipeline(Checks, Planning, Saving, DiffusionPipeline):
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
    ) -> ImagePipelineOutput | tuple:
        """Draw.

        1. Fill in what is not given, and check everything that needs no forward.
        2. Cut the images into batches that are alike (`pipeline_plan`).
        3. For each batch: read its prompts into a prefix, denoise or write codes against it, decode.

        Args:
            prompt: any number of prompts.
            path: `diffusion` or `vq`; None = the first of them that the model has.
            num_inference_steps: denoising steps (diffusion). This and other settings of drawing: None = as the folder's
                `sampling_defaults` say, or 30 steps, guidance 3, temperature 1.
            guidance_scale: one, or one a prompt: 1 = no guidance, which costs half; above 1 = closer to the prompt, 0 =
                the negative prompt alone.
            negative_prompt: what guidance leads away from; None = as the processor's `unconditional` says.
            num_images_per_prompt: images of a prompt stand together in the result.
            height, width: one, or one a prompt: any multiple of a token's side. None = the processor's default size.
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
            precision: of the weights in the inner loop: `model` (as loaded), `bf16`, or `int8` (CPU): two to five times
                as fast, and no longer the same picture to the bit.

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
            top_k=top_k, top_p=top_p, precision=precision,
        )  # fmt: skip
        decoder = self.decoder(settings["precision"])
        guidance = replace(guidance, guidance_rescale=settings["guidance_rescale"])
        sampling = code_sampling({"temperature": temperature, "top_k": top_k, "top_p": top_p}, settings)
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
                made = self.draw(
                    self._prefix(rows),
                    path,
                    first.size,
                    steps,
                    chosen,
                    sampling,
                    guided,
                    on_step,
                    noise,
                    shift,
                    decoder,
                )
                made = made if output_type == "latent" else self._decode(made, path)
                for number, picture in zip(batch, made, strict=True):
                    drawn[number] = picture
        images = self._output(drawn, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _prefix(self, rows: list[Document]) -> Prefix:
        tokens = self.processor.special_tokens
        return read_prompts(self.model, rows, tokens.pad, tokens.begin_image, self._execution_device, self._media)

    def decoder(self, precision: str = "model") -> Decoder:
        """The model's decoder in a precision; weights that are copied for it are kept until the model's change.

        Raises:
            ValueError: the precision is none, or cannot be had with this model.
        """
        if precision == "model":
            return Decoder(self.model)  # copies nothing
        kept = getattr(self, "_kept_decoder", None)
        if kept is None or kept.precision != precision or kept.model is not self.model or not kept.is_current():
            kept = self._kept_decoder = Decoder(self.model, precision)
        return kept

    def _steps(self, path: str, size: tuple[int, int], steps: int, shift: float | None) -> list:
        """What a callback is told at each step: the scheduler's timestep, or the number of the code."""
        if path == "vq":
            return list(range(self.processor.count_tokens("vq", *size)))
        schedule = prepare(self.scheduler, steps, self.model.config.diffusion_config, shift=shift)
        return list(schedule.scheduler.timesteps)

    def draw(
        self,
        prefix: Prefix,
        path: str,
        size: tuple[int, int],
        steps: int,
        generators: list[Generator],
        sampling: CodeSampling,
        guidance: Guidance | Scale = 1.0,
        on_step: OnStep | None = None,
        noise: Tensor | None = None,
        shift: float | None = None,
        decoder: Decoder | None = None,
    ) -> Tensor:
        """The pictures that come next in a prefix: latents (I, C, h, w), or codes (I, h, w).

        Args:
            prefix: I rows or, guided, 2 I or 3 I; each ends with the token that begins an image.
            size: height and width in pixels.
            generators: one an image; their number is I.
            noise: to start from (diffusion); None = drawn from the generators.
            decoder: the model's, in another precision (`decoder`); None = in its own.
        """
        if path == "vq":
            grid = tuple(side // self.processor.vq_token_size for side in size)
            settings = (generators, sampling, guidance, on_step, None, decoder)
            codes = write_codes(self.model, prefix, grid[0] * grid[1], *settings)
            return codes.view(-1, *grid)
        size = self.latent_size(size)
        settings = (steps, size, generators, guidance, on_step, noise, shift, decoder)
        return draw_latents(self.model, prefix, self.scheduler, *settings)

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels -> in latents of the diffusion path."""
        patch = self.model.config.diffusion_config.patch_size
        return tuple(side // self.processor.diffusion_token_size * patch for side in size)

    def _decode(self, latents: Tensor, path: str) -> Tensor:
        """-> pixels (I, 3, H, W) in [-1, 1], on the CPU."""
        codec = self.vq_codec if path == "vq" else self.latent_codec
        return codec.decode(latents).float().cpu()

    def _output(self, drawn: list[Tensor], output_type: str):
        """One tensor, or a list of them where sizes differ."""
        if output_type == "pil":
            return self.processor.postprocess(drawn)
        if output_type != "latent":
            drawn = [((picture + 1) / 2).clamp(0, 1) for picture in drawn]
        if output_type == "np":
            drawn = [picture.permute(1, 2, 0) for picture in drawn]
        if len({picture.shape for picture in drawn}) == 1:
            drawn = torch.stack(drawn)
            return drawn.numpy() if output_type == "np" else drawn
        return [picture.numpy() for picture in drawn] if output_type == "np" else drawn

    # -------------------------------------------------------------------------------------------------- answering

    @torch.no_grad()
    def answer(
        self,
        images,
        questions: str | list[str],
        path: str = "understanding",
        max_new_tokens: int = 32,
        max_batch: int = 64,
    ) -> list[str]:
        """Answer questions about images: the likeliest words, so the same every time.

        Args:
            images, questions: equally many, or one of either for all of the other.
            path: by which the images are read: `understanding`, `diffusion` (clean) or `vq`.
            max_batch: questions at a time.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        require_path(self.model.config.paths, path)
        self.check_codec(path)
        check_counts(max_new_tokens=max_new_tokens, max_batch=max_batch)
        answers = []
        asked = _pairs(images, questions)
        for start in range(0, len(asked), max_batch):
            documents = []
            for image, question in asked[start : start + max_batch]:
                content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
                documents.append(self.processor.prompt([{"role": "user", "content": content}], read=path))
                self.check_length(question, len(documents[-1]), max_new_tokens, "the answer")
            prompts, tokens = self._read(documents), self.processor.special_tokens
            answers += write_text(self.model, self.processor.tokenizer, tokens, prompts, max_new_tokens)
        return answers

    def _read(self, documents: list[Document]) -> dict:
        """Documents with images -> what `forward` takes, padded on the left."""
        batch, device = left_pad(documents, self.processor.special_tokens.pad), self._execution_device
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        return inputs | self._media(batch)

    def _media(self, batch: dict) -> dict[str, Tensor]:
        """The images of a batch as `left_pad` makes it -> as `forward` takes them."""
        media, device = {}, self._execution_device
        if batch["pixel_values"] is not None:
            media["pixel_values"] = batch["pixel_values"].to(device)
        if batch["diffusion_images"]:
            media["latents"] = self.latent_codec.encode(torch.stack(batch["diffusion_images"]).to(device))
            media["timesteps"] = torch.zeros(len(media["latents"]), device=device)  # clean
        if batch["vq_images"]:
            media["codes"] = self.vq_codec.encode(torch.stack(batch["vq_images"]).to(device))
        return media


def _pairs(images, questions: str | list[str]) -> list[tuple]:
    """Images and questions side by side; one of either stands beside all of the other."""
    images = list(images) if isinstance(images, list | tuple) else [images]
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not images or not questions:
        raise ValueError(
            f"{len(images)} images and {len(questions)} questions leave nothing to answer; give at least one of each"
        )
    if len(images) != len(questions) and 1 not in (len(images), len(questions)):
        raise ValueError(
            f"{len(images)} images and {len(questions)} questions do not pair; give equally many, or one of either"
        )
    count = max(len(images), len(questions))
    images = images * count if len(images) == 1 else images
    questions = questions * count if len(questions) == 1 else questions
    return list(zip(images, questions, strict=True))


def load_pipeline(checkpoint: str | Path) -> HybridGenPipeline:
    """A pipeline from a folder on disk, every weight accounted for.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    folder = Path(checkpoint)
    check_checkpoint(folder)
    with told_in_one_sentence(folder):
        pipeline = HybridGenPipeline.from_pretrained(folder, model=load_model(folder / "model"))
        for name in ("vae", "vq_model"):
            if (codec := getattr(pipeline, name)) is not None:
                check_codec_weights(folder / name, codec)
    return pipeline
