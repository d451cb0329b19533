"""What a user of the pipeline can get wrong, refused in one sentence before the first forward.

The fact a newcomer gets wrong: seeds, schedulers' steps and documents are checked where they are made (`sampling`,
`processing`); here is what needs the whole pipeline, or nothing.
"""

from hybridgen.configuration_hybridgen import require_path
from hybridgen.sampling.denoise import check_scheduler
from hybridgen.sampling.guidance import check_scale

WRITING_PATHS = ("diffusion", "vq")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class Checks:
    """Mixed into the pipeline. All methods raise ValueError."""

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
        check_counts(num_images_per_prompt=num_images_per_prompt, max_batch=max_batch)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(map(repr, OUTPUT_TYPES))}")
        if unknown := set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; only 'latents' can be handed over"
            )
        self.check_drawing(path, num_inference_steps, guidance_scale, height, width)

    def check_drawing(
        self, path: str, num_inference_steps: int, guidance_scale: float, height: int | None, width: int | None
    ) -> None:
        """Raises ValueError if no picture could be drawn so, whatever the prompt."""
        check_scale(guidance_scale)
        check_counts(num_inference_steps=num_inference_steps)
        self.processor.count_tokens(path, height, width)  # refuses sizes
        self.check_codec(path)
        if path == "diffusion":
            check_scheduler(self.scheduler, self.model.config.diffusion_config)

    def check_noise(self, latents, path: str, size: tuple[int, int], images: int) -> None:
        """Raises ValueError if noise that was given is not that of these images."""
        if latents is None:
            return
        if path != "diffusion":
            raise ValueError(f"latents are noise to denoise, but the {path} path starts from none; leave them out")
        wanted = (images, self.model.config.diffusion_config.in_channels, *self.latent_size(size))
        if tuple(latents.shape) != wanted:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, but {images} images need noise of {wanted}")

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
