"""What the pipeline's call is made of: a prefix of prompts, then denoising or codes against it, then pixels.

The loops are `sampling`'s. The fact a newcomer gets wrong: a decoder in another precision holds copies of weights. It
is kept from call to call, and made again when the model's weights are no longer those that were copied.
"""

import torch
from torch import Generator, Tensor

from hybridgen.processing_hybridgen import Document
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.denoise import OnStep, draw_latents, prepare
from hybridgen.sampling.guidance import Guidance, Scale
from hybridgen.sampling.prefix import Prefix, read_prompts


class Drawing:
    """The drawing half of `HybridGenPipeline`."""

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
        window: int = 1,
    ) -> Tensor:
        """The pictures that come next in a prefix: latents (I, C, h, w), or codes (I, h, w).

        Args:
            prefix: I rows or, guided, 2 I or 3 I; each ends with the token that begins an image.
            size: height and width in pixels.
            generators: one an image; their number is I.
            noise: to start from (diffusion); None = drawn from the generators.
            decoder: the model's, in another precision (`decoder`); None = in its own.
            window: see `write_codes` (vq).
        """
        if path == "vq":
            grid = tuple(side // self.processor.vq_token_size for side in size)
            settings = (generators, sampling, guidance, on_step, None, decoder, window)
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
