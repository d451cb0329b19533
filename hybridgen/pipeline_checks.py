"""What a user of the pipeline can get wrong, refused in one sentence before the first forward.

The fact a newcomer gets wrong: seeds, schedulers' steps and documents are checked where they are made (`sampling`,
`processing`); here is what needs the whole pipeline, or nothing.
"""

from torch import Tensor

from hybridgen.configuration_hybridgen import require_path
from hybridgen.sampling.denoise import prepare, try_out
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.settings import each

WRITING_PATHS = ("diffusion", "vq")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class Checks:
    """Mixed into the pipeline. All methods raise ValueError."""

    def check_inputs(
        self, prompts, num_images_per_prompt, max_batch, output_type, callback_on_step_end_tensor_inputs
    ) -> None:
        """Raises ValueError for what `__call__` cannot do; lengths and seeds are checked where they are known."""
        if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"prompt is {prompts!r}; give a text or a list of at least one text")
        check_counts(num_images_per_prompt=num_images_per_prompt, max_batch=max_batch)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(map(repr, OUTPUT_TYPES))}")
        if unknown := set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; only 'latents' can be handed over"
            )

    def check_sizes(self, heights: list, widths: list, path: str) -> list[tuple[int, int]]:
        """Heights and widths in pixels, one a prompt -> sizes; None = that side of the processor's default size.
        Raises ValueError for those that a path cannot draw."""
        sizes = []
        for height, width in zip(heights, widths, strict=True):
            check_counts(**{name: side for name, side in (("height", height), ("width", width)) if side is not None})
            self.processor.count_tokens(path, height, width)  # refuses sizes
            sizes.append(self.processor.size_of(height, width))
        return sizes

    def check_drawing(
        self, path: str, num_inference_steps: int, guidance: Guidance | float, shift: float | None = None
    ) -> None:
        """Raises ValueError if no picture could be drawn so, whatever the prompt and the size."""
        check_counts(num_inference_steps=num_inference_steps)
        diffusion = self.model.config.diffusion_config
        Guidance.of(guidance).check_path(path, getattr(diffusion, "noise_schedule", None))
        self.check_codec(path)
        if path == "diffusion":
            try_out(prepare(self.scheduler, num_inference_steps, diffusion, shift=shift), diffusion.prediction_type)

    def check_conditions(
        self, image, read: str | None, image_scales: list[float], count: int
    ) -> tuple[list, str | None]:
        """Images that stand before the prompts, one a prompt or None, and the path by which they are read. Raises
        ValueError if they cannot be."""
        if image is None:
            if read is not None:
                raise ValueError(f"read is {read!r}, a path to read an image by, but none is given; leave it out")
            if any(scale != 1 for scale in image_scales):
                raise ValueError(
                    "image_guidance_scale leads to an image, but none is given; give image=..., or leave it out"
                )
            return [None] * count, None
        paths = self.model.config.paths
        read = paths[0] if read is None else read
        require_path(paths, read)
        self.check_codec(read)
        return each("image", image, count), read

    def check_noise(self, latents, path: str, sizes: list[tuple[int, int]]):
        """Raises ValueError if noise that was given is not that of these images; returns it."""
        if latents is None:
            return None
        if path != "diffusion":
            raise ValueError(f"latents are noise to denoise, but the {path} path starts from none; leave them out")
        channels, images = self.model.config.diffusion_config.in_channels, len(sizes)
        shapes = [(channels, *self.latent_size(size)) for size in sizes]
        if [tuple(noise.shape) for noise in latents] != shapes:
            has = tuple(latents.shape) if isinstance(latents, Tensor) else [tuple(noise.shape) for noise in latents]
            wanted = (images, *shapes[0]) if len(set(shapes)) == 1 else shapes
            raise ValueError(f"latents have shape {has}, but {images} images need noise of {wanted}")
        return latents

    def writing_path(self, path: str | None) -> str:
        """The path to draw by: the one asked for, or the first that there is. Raises ValueError if it cannot draw."""
        writing = [name for name in WRITING_PATHS if name in self.model.config.paths]
        if not writing:
            raise ValueError("this model has no path that writes images: it can only answer")
        path = writing[0] if path is None else path
        if path == "understanding" and path in self.model.config.paths:
            raise ValueError(f"the understanding path only reads images; to draw, this model has: {', '.join(writing)}")
        require_path(self.model.config.paths, path)
        return path

    def check_codec(self, path: str) -> None:
        """Raises ValueError if a path lacks its codec."""
        if path == "vq" and self.vq_model is None:
            raise ValueError(
                "the vq path needs a tokenizer, but this pipeline has no vq_model; load one with vq_model=..."
            )
        channels = self.model.config.diffusion_config.in_channels if path == "diffusion" else None
        if path == "diffusion" and self.vae is None and channels != 3:
            raise ValueError(
                f"the diffusion path works on {channels} channels, but this pipeline has no vae; load one with vae=..."
            )

    def check_length(self, text: str, length: int, more: int, what: str) -> None:
        context = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if context is not None and length + more > context:
            shown = text if len(text) <= 40 else text[:37] + "..."
            raise ValueError(
                f"prompt {shown!r} has {length} tokens and {what} needs {more} more, but the model's context is "
                f"{context} (max_position_embeddings); shorten it by {length + more - context} tokens"
            )


def check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
