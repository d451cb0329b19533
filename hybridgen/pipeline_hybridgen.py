"""The pipeline: prompts -> pictures by any path that writes, pictures and questions -> answers by any path that reads.

It joins processor, model, scheduler and codecs, checks what a user can get wrong before the first forward, and cuts the
work into batches; the loops are `sampling`'s. The fact a newcomer gets wrong: `max_batch` changes memory and speed,
never a picture, for every image has a random stream of its own.

The names `PreTrainedModel`, `ProcessorMixin` and `SchedulerMixin` of a component's base class must exist in the module
that the component was saved from (diffusers looks there), which is why those modules import them by name.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Generator, Tensor

from hybridgen.checkpoints import check_checkpoint, check_codec_weights, forget_origin, load_model, told_in_one_sentence
from hybridgen.codecs import PixelCodec, VAECodec, VQCodec
from hybridgen.configuration_hybridgen import require_path
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.noise import NoiseProcess
from hybridgen.processing_hybridgen import Document, HybridGenProcessor, left_pad
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.denoise import check_scheduler, draw_latents, prepare
from hybridgen.sampling.guidance import check_scale, is_guided
from hybridgen.sampling.prefix import read_prompts
from hybridgen.sampling.seeds import image_generators
from hybridgen.sampling.text import write_text

WRITING_PATHS = ("diffusion", "vq")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class HybridGenPipeline(DiffusionPipeline):
    """
    Args:
        model, processor: what reads and writes.
        scheduler: any scheduler of diffusers that samples the model's noise process; None = the process' own.
        vae: autoencoder under the diffusion path; None = it works on pixels.
        vq_model: tokenizer of the vq path; None = that path cannot be used.
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
    ):
        super().__init__()
        diffusion = model.config.diffusion_config
        if scheduler is None and diffusion is not None:
            scheduler = NoiseProcess.of(diffusion).default_scheduler(diffusion.prediction_type)
        self.register_modules(model=model, processor=processor, scheduler=scheduler, vae=vae, vq_model=vq_model)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "HybridGenPipeline":
        """As everywhere in diffusers; a local folder is looked over first, so that an error names what is missing."""
        if Path(pretrained_model_name_or_path).is_dir():
            check_checkpoint(pretrained_model_name_or_path, given=tuple(kwargs))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """As everywhere in diffusers; to save what was loaded changes no byte."""
        super().save_pretrained(save_directory, **kwargs)
        forget_origin(save_directory)

    # ------------------------------------------------------------------------------------------------ what it has

    @property
    def guidance_scale(self) -> float:
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
        num_inference_steps: int = 30,
        guidance_scale: float = 3.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: Generator | list[Generator] | None = None,
        seed: int | list[int] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_batch: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw.

        1. Check everything that needs no forward.
        2. For each batch of images: read their prompts into a prefix, then denoise or write codes against it.
        3. Decode.

        Args:
            prompt: any number of prompts.
            path: `diffusion` or `vq`; None = the first of them that the model has.
            num_inference_steps: denoising steps (diffusion).
            guidance_scale: 1 = no guidance, which costs half; above 1 = closer to the prompt, 0 = the negative prompt
                alone.
            negative_prompt: what guidance leads away from; None = as the processor's `unconditional` says.
            num_images_per_prompt: images of a prompt stand together in the result.
            height, width: None = the processor's default size.
            generator: one an image; a single one seeds one for each of several images.
            seed: image i is drawn with `seed + i`, or with `seed[i]`, whatever is drawn beside it.
            temperature, top_k, top_p: of the codes (vq); temperature 0 takes the likeliest code each time.
            max_batch: rows of the backbone at a time; a guided image takes two.
            output_type: `pil`, `np` (I, H, W, 3) or `pt` (I, 3, H, W) in [0, 1], or `latent`: latents (I, C, h, w),
                codes (I, h, w).
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": ...}) in every batch; on the vq
                path with (pipeline, step, step, ...) and the codes so far. What it returns under "latents" is gone on
                with.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        path = self._writing_path(path)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        self.check_inputs(
            prompts, path, num_inference_steps, guidance_scale, negative_prompt, num_images_per_prompt, height, width,
            max_batch, output_type, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        sampling = CodeSampling(temperature, top_k, top_p)
        size = (height, width) if height is not None else tuple(self.processor.default_size)
        generators = image_generators(len(prompts) * num_images_per_prompt, seed, generator)
        columns = self._columns(prompts, negative_prompt, guidance_scale, num_images_per_prompt, path, size)
        timesteps = self._steps(path, size, num_inference_steps)
        self._guidance_scale, self._num_timesteps = guidance_scale, len(timesteps)
        at_once = max(1, max_batch // len(columns))
        batches = [slice(start, start + at_once) for start in range(0, len(generators), at_once)]
        drawn = []
        with self.progress_bar(total=len(batches) * len(timesteps)) as progress:

            def on_step(step: int, latents: Tensor) -> Tensor:
                if callback_on_step_end is not None:
                    kept = callback_on_step_end(self, step, timesteps[step], {"latents": latents}) or {}
                    latents = kept.get("latents", latents)
                progress.update()
                return latents

            for batch in batches:
                rows = [document for column in columns for document in column[batch]]
                latents = self._draw(rows, path, size, num_inference_steps, generators[batch], sampling, on_step)
                drawn.append(latents if output_type == "latent" else self._decode(latents, path))
        images = self._output(torch.cat(drawn), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_inputs(
        self,
        prompts,
        path,
        num_inference_steps,
        guidance_scale,
        negative_prompt,
        num_images_per_prompt,
        height,
        width,
        max_batch,
        output_type,
        callback_on_step_end_tensor_inputs,
    ) -> None:
        """Raises ValueError for what `__call__` cannot do; lengths and seeds are checked where they are known."""
        if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"prompt is {prompts!r}; give a text or a list of at least one text")
        if isinstance(negative_prompt, list) and len(negative_prompt) != len(prompts):
            raise ValueError(
                f"negative_prompt is a list of {len(negative_prompt)} for {len(prompts)} prompts; give one for each"
            )
        check_scale(guidance_scale)
        _check_counts(
            num_inference_steps=num_inference_steps, num_images_per_prompt=num_images_per_prompt, max_batch=max_batch
        )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(map(repr, OUTPUT_TYPES))}")
        if unknown := set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; only 'latents' can be handed over"
            )
        self.processor.count_tokens(path, height, width)  # refuses sizes
        self._check_codec(path)
        if path == "diffusion":
            check_scheduler(self.scheduler, self.model.config.diffusion_config)

    def _writing_path(self, path: str | None) -> str:
        writing = [name for name in WRITING_PATHS if name in self.model.config.paths]
        if not writing:
            raise ValueError("this model has no path that writes images: it can only answer")
        path = writing[0] if path is None else path
        if path == "understanding" and path in self.model.config.paths:
            raise ValueError(f"the understanding path only reads images; to draw, this model has: {', '.join(writing)}")
        require_path(self.model.config.paths, path)
        return path

    def _check_codec(self, path: str) -> None:
        if path == "vq" and self.vq_model is None:
            raise ValueError(
                "the vq path needs a tokenizer, but this pipeline has no vq_model; load one with vq_model=..."
            )
        channels = self.model.config.diffusion_config.in_channels if path == "diffusion" else None
        if path == "diffusion" and self.vae is None and channels != 3:
            raise ValueError(
                f"the diffusion path works on {channels} channels, but this pipeline has no vae; load one with vae=..."
            )

    def _columns(
        self, prompts: list[str], negative, guidance_scale: float, copies: int, path: str, size: tuple[int, int]
    ) -> list[list[Document]]:
        """What the backbone reads: one prompt an image, and with guidance another column of unconditional ones."""
        more = 1 + self.processor.count_tokens(path, *size)
        documents: dict[tuple[int, ...], Document] = {}  # equal ones are one, so that they are read once

        def read(text: str, unconditional: bool = False) -> Document:
            document = self.processor.prompt([{"role": "user", "content": text}], unconditional=unconditional)
            self._check_length(text, len(document), more, "the picture")
            return documents.setdefault(tuple(document.layout.input_ids), document)

        columns = [[read(text) for text in prompts]]
        if is_guided(guidance_scale):
            if negative is None:
                columns.append([read(text, unconditional=True) for text in prompts])
            else:
                negative = [negative] * len(prompts) if isinstance(negative, str) else negative
                columns.append([read(text) for text in negative])
        return [[document for document in column for _ in range(copies)] for column in columns]

    def _check_length(self, text: str, length: int, more: int, what: str) -> None:
        context = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if context is not None and length + more > context:
            shown = text if len(text) <= 40 else text[:37] + "..."
            raise ValueError(
                f"prompt {shown!r} has {length} tokens and {what} needs {more} more, but the model's context is "
                f"{context} (max_position_embeddings); shorten it by {length + more - context} tokens"
            )

    def _steps(self, path: str, size: tuple[int, int], steps: int) -> list:
        """What a callback is told at each step: the scheduler's timestep, or the number of the code."""
        if path == "vq":
            return list(range(self.processor.count_tokens("vq", *size)))
        return list(prepare(self.scheduler, steps, self.model.config.diffusion_config).scheduler.timesteps)

    def _draw(
        self, rows: list[Document], path: str, size: tuple[int, int], steps: int, generators: list[Generator],
        sampling: CodeSampling, on_step: Callable,
    ) -> Tensor:  # fmt: skip
        """One batch of images: latents (I, C, h, w), or codes (I, h, w)."""
        tokens, model = self.processor.special_tokens, self.model
        prefix = read_prompts(model, rows, tokens.pad, tokens.begin_image, self._execution_device)

        def guidance(step: int) -> float:
            return self._guidance_scale  # a callback may change it

        if path == "vq":
            grid = tuple(side // self.processor.vq_token_size for side in size)
            codes = write_codes(model, prefix, grid[0] * grid[1], generators, sampling, guidance, on_step)
            return codes.view(-1, *grid)
        patch = model.config.diffusion_config.patch_size
        size = tuple(side // self.processor.diffusion_token_size * patch for side in size)  # in latents
        return draw_latents(model, prefix, self.scheduler, steps, size, generators, guidance, on_step)

    def _decode(self, latents: Tensor, path: str) -> Tensor:
        """-> pixels (I, 3, H, W) in [-1, 1], on the CPU."""
        codec = self.vq_codec if path == "vq" else self.latent_codec
        return codec.decode(latents).float().cpu()

    def _output(self, drawn: Tensor, output_type: str):
        if output_type == "latent":
            return drawn
        if output_type == "pil":
            return self.processor.postprocess(drawn)
        pixels = ((drawn + 1) / 2).clamp(0, 1)
        return pixels if output_type == "pt" else pixels.permute(0, 2, 3, 1).numpy()

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
        self._check_codec(path)
        _check_counts(max_new_tokens=max_new_tokens, max_batch=max_batch)
        answers = []
        asked = _pairs(images, questions)
        for start in range(0, len(asked), max_batch):
            documents = []
            for image, question in asked[start : start + max_batch]:
                content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
                documents.append(self.processor.prompt([{"role": "user", "content": content}], read=path))
                self._check_length(question, len(documents[-1]), max_new_tokens, "the answer")
            prompts, tokens = self._read(documents), self.processor.special_tokens
            answers += write_text(self.model, self.processor.tokenizer, tokens, prompts, max_new_tokens)
        return answers

    def _read(self, documents: list[Document]) -> dict:
        """Documents with images -> what `forward` takes, padded on the left."""
        batch, device = left_pad(documents, self.processor.special_tokens.pad), self._execution_device
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        if batch["pixel_values"] is not None:
            inputs["pixel_values"] = batch["pixel_values"].to(device)
        if batch["diffusion_images"]:
            inputs["latents"] = self.latent_codec.encode(torch.stack(batch["diffusion_images"]).to(device))
            inputs["timesteps"] = torch.zeros(len(inputs["latents"]), device=device)  # clean
        if batch["vq_images"]:
            inputs["codes"] = self.vq_codec.encode(torch.stack(batch["vq_images"]).to(device))
        return inputs


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")


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
