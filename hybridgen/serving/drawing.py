"""Pictures as a job of the engine: what a call of the pipeline does, as a task.

A `PictureCall` is checked as a call of the pipeline is, before it waits for anything; its task then reads the prompts,
draws step by step and decodes, exactly as the call would.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from hybridgen.sampling.edits import read_edits
from hybridgen.sampling.requests import ImageRequest
from hybridgen.sampling.seeds import image_generators, new_seed, nth_seed
from hybridgen.sampling.settings import DrawingSetup
from hybridgen.sampling.tasks import Task


@dataclass(frozen=True)
class Preview:
    """Pictures as far as they have come, after `step` steps (or codes)."""

    step: int
    images: list[Image.Image]


@dataclass(frozen=True)
class PictureCall:
    """Pictures of one prompt, to be drawn together; made by `of`.

    Args:
        pipe: the `HybridGenPipeline`.
        setup: how they are drawn, every setting filled in.
        request: what the backbone reads for each of them.
        count: of pictures; the i-th is drawn with `seed + i`.
        preview_every: steps (or codes) from one preview to the next; None = no previews.
    """

    pipe: Any
    setup: DrawingSetup
    request: ImageRequest
    count: int
    seed: int
    preview_every: int | None = None

    @classmethod
    def of(
        cls,
        pipe,
        prompt: str,
        path: str | None = None,
        count: int = 1,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        image=None,
        read: str | None = None,
        preview_every: int | None = None,
        edit_image=None,
        mask_image=None,
        strength: float | None = None,
        **settings,
    ) -> "PictureCall":
        """Everything as in a call of the pipeline.

        Raises:
            ValueError: what that refuses, in its sentence.
        """
        path = pipe.writing_path(path)
        if path == "vq" and pipe.sampling_settings(path, window=settings.get("window"))["window"] is None:
            settings["window"] = 1  # guesses that are read cost the others' time
        edits, strength = read_edits(edit_image, mask_image, strength, path, 1)
        setup = pipe.drawing_setup(path, strength=strength, **settings)
        sizes = pipe.check_sizes([height], [width], path, edits)
        request = pipe.image_requests(setup, [prompt], negative_prompt, sizes, image, read, edits)[0]
        seed = new_seed() if seed is None else seed
        image_generators(count, seed)  # refuses what is no seed
        return cls(pipe, setup, request, count, seed, preview_every)

    @property
    def rows(self) -> int:
        """Of the backbone, while they are drawn."""
        return self.count * len(self.request.rows)

    @property
    def tokens(self) -> int:
        """Of one of them."""
        return self.pipe.processor.count_tokens(self.setup.path, *self.request.size)

    @property
    def steps(self) -> int:
        """How many forwards it takes: denoising steps, or codes."""
        return self.tokens if self.setup.path == "vq" else self.setup.steps_taken

    def seed_of(self, number: int) -> int:
        """Of the picture with this number."""
        return nth_seed(self.seed, number)

    def task(self) -> Task[list[Image.Image]]:
        """Draws them; yields a `Preview` now and then, where that was asked for."""
        pipe, request = self.pipe, self.request
        requests = [request] * self.count
        prefix, known = pipe.read_requests(requests, self.setup.decoder), pipe.known_of(requests, self.setup.path)
        image_scale = torch.tensor([request.image_scale] * self.count)
        guidance = replace(self.setup.guidance, scale=request.scale, image_scale=image_scale)
        generators = image_generators(self.count, self.seed)
        drawing, before = pipe.drawing(prefix, self.setup, request.size, generators, guidance, known=known), 0
        while not drawing.done:
            yield from drawing.step()
            step, every = drawing.steps_done, self.preview_every
            shows = every is not None and step // every > before // every and not drawing.done
            if shows and (shown := drawing.preview()) is not None:
                yield Preview(step, self._pictures(shown))
            before = step
        return self._pictures(drawing.drawn())

    def _pictures(self, drawn) -> list[Image.Image]:
        pixels = self.pipe.decode_images(drawn, self.setup.path)
        return self.pipe.as_pictures(list(pixels), [self.request.edit] * self.count)
