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

from hybridgen.checkpoints import check_checkpoint, check_codec_weights, load_model, told_in_one_sentence
from hybridgen.codecs import PixelCodec, VAECodec, VQCodec
from hybridgen.configuration_hybridgen import require_path
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.noise import NoiseProcess
from hybridgen.pipeline_checks import WRITING_PATHS, Checks, check_counts
from hybridgen.pipeline_saving import Saving
from hybridgen.processing_hybridgen import Document, HybridGenProcessor, left_pad
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.denoise import OnStep, draw_latents, prepare
from hybridgen.sampling.guidance import Scale, is_guided
from hybridgen.sampling.prefix import Prefix, read_prompts
from hybridgen.sampling.seeds import image_generators
from hybridgen.sampling.text import write_text

__all__ = ["WRITING_PATHS", "HybridGenPipeline", "load_pipeline"]

STEPS, GUIDANCE_SCALE = 30, 3.0  # unless the caller says otherwise


class HybridGenPipeline(Checks, Saving, DiffusionPipeline):
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
        num_inference_steps: int = STEPS,
        guidance_scale: float = GUIDANCE_SCALE,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: Generator | list[Generator] | None = None,
        seed: int | list[int] | None = None,
        latents: Tensor | None = None,
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
            latents: (I, C, h, w) standard normal noise to start from (diffusion); None = drawn from the seeds.
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
        path = self.writing_path(path)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        self.check_inputs(
            prompts, path, num_inference_steps, guidance_scale, negative_prompt, num_images_per_prompt, height, width,
            max_batch, output_type, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        sampling = CodeSampling(temperature, top_k, top_p)
        size = (height, width) if height is not None else tuple(self.processor.default_size)
        generators = image_generators(len(prompts) * num_images_per_prompt, seed, generator)
        self.check_noise(latents, path, size, len(generators))
        columns = self._columns(prompts, negative_prompt, guidance_scale, num_images_per_prompt, path, size)
        timesteps = self._steps(path, size, num_inference_steps)
        self._guidance_scale, self._num_timesteps = guidance_scale, len(timesteps)
        at_once, tokens = max(1, max_batch // len(columns)), self.processor.special_tokens
        batches = [slice(start, start + at_once) for start in range(0, len(generators), at_once)]
        drawn = []
        with self.progress_bar(total=len(batches) * len(timesteps)) as progress:

            def on_step(step: int, current: Tensor) -> Tensor:
                if callback_on_step_end is not None:
                    kept = callback_on_step_end(self, step, timesteps[step], {"latents": current}) or {}
                    current = kept.get("latents", current)
                progress.update()
                return current

            def guidance(step: int) -> float:
                return self._guidance_scale  # a callback may change it

            for batch in batches:
                rows = [document for column in columns for document in column[batch]]
                prefix = read_prompts(self.model, rows, tokens.pad, tokens.begin_image, self._execution_device)
                noise = None if latents is None else latents[batch]
                settings = (path, size, num_inference_steps, generators[batch], sampling, guidance, on_step, noise)
                made = self.draw(prefix, *settings)
                drawn.append(made if output_type == "latent" else self._decode(made, path))
        images = self._output(torch.cat(drawn), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _columns(
        self, prompts: list[str], negative, guidance_scale: float, copies: int, path: str, size: tuple[int, int]
    ) -> list[list[Document]]:
        """What the backbone reads: one prompt an image, and with guidance another column of unconditional ones."""
        more = 1 + self.processor.count_tokens(path, *size)
        documents: dict[tuple[int, ...], Document] = {}  # equal ones are one, so that they are read once

        def read(text: str, unconditional: bool = False) -> Document:
            document = self.processor.prompt([{"role": "user", "content": text}], unconditional=unconditional)
            self.check_length(text, len(document), more, "the picture")
            return documents.setdefault(tuple(document.layout.input_ids), document)

        columns = [[read(text) for text in prompts]]
        if is_guided(guidance_scale):
            if negative is None:
                columns.append([read(text, unconditional=True) for text in prompts])
            else:
                negative = [negative] * len(prompts) if isinstance(negative, str) else negative
                columns.append([read(text) for text in negative])
        return [[document for document in column for _ in range(copies)] for column in columns]

    def _steps(self, path: str, size: tuple[int, int], steps: int) -> list:
        """What a callback is told at each step: the scheduler's timestep, or the number of the code."""
        if path == "vq":
            return list(range(self.processor.count_tokens("vq", *size)))
        return list(prepare(self.scheduler, steps, self.model.config.diffusion_config).scheduler.timesteps)

    def draw(
        self,
        prefix: Prefix,
        path: str,
        size: tuple[int, int],
        steps: int,
        generators: list[Generator],
        sampling: CodeSampling,
        guidance: Scale = 1.0,
        on_step: OnStep | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The pictures that come next in a prefix: latents (I, C, h, w), or codes (I, h, w).

        Args:
            prefix: I rows or, guided, 2 I; each ends with the token that begins an image.
            size: height and width in pixels.
            generators: one an image; their number is I.
            noise: to start from (diffusion); None = drawn from the generators.
        """
        if path == "vq":
            grid = tuple(side // self.processor.vq_token_size for side in size)
            codes = write_codes(self.model, prefix, grid[0] * grid[1], generators, sampling, guidance, on_step)
            return codes.view(-1, *grid)
        size = self.latent_size(size)
        return draw_latents(self.model, prefix, self.scheduler, steps, size, generators, guidance, on_step, noise)

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels -> in latents of the diffusion path."""
        patch = self.model.config.diffusion_config.patch_size
        return tuple(side // self.processor.diffusion_token_size * patch for side in size)

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
        path: str | list[str] = "understanding",
        max_new_tokens: int = 32,
        max_batch: int = 64,
    ) -> list[str]:
        """Answer questions about images: the likeliest words, so the same every time.

        Args:
            images, questions: equally many, or one of either for all of the other.
            path: by which the images are read: `understanding`, `diffusion` (clean) or `vq`; or several, one after the
                other, where the model was trained so (BAGEL).
            max_batch: questions at a time.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        for each in [path] if isinstance(path, str) else path:
            require_path(self.model.config.paths, each)
            self.check_codec(each)
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
        if batch["pixel_values"] is not None:
            inputs["pixel_values"] = batch["pixel_values"].to(device)
        if batch["diffusion_images"]:
            inputs["latents"] = self.latent_codec.encode(torch.stack(batch["diffusion_images"]).to(device))
            inputs["timesteps"] = torch.zeros(len(inputs["latents"]), device=device)  # clean
        if batch["vq_images"]:
            inputs["codes"] = self.vq_codec.encode(torch.stack(batch["vq_images"]).to(device))
        return inputs


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
