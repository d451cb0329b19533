"""Drawing what was never seen: prompts of a held-out split, drawn by a path, scored by the dataset's own exact scorer.

No picture is judged by a network. A scorer has limits of its own, so the true pictures are scored by the same function
beside the drawn ones, and a score is to be read against theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from hybridgen.core.names import DEFAULTS, OF_PATH, SHORT_NAMES
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.samples import first_records
from hybridgen.pipeline_hybridgen import HybridGenPipeline

CHUNK = 64  # pictures encoded at once


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn: the pipeline's settings that scores are reported with, and its defaults.

    Args:
        steps: the pipeline's `num_inference_steps`, of the diffusion path.
        guidance: the pipeline's `guidance_scale`, of both paths; 1 = none.
        temperature, top_k, top_p: of the vq path's codes.
        precision: of the inner loop's weights.
        window: codes read at once, at most (vq); None = as many as pay.
        forecast: denoising steps from one that is computed to the next (diffusion); None = as the checkpoint says.
        guidance_rescale, guidance_interval, shift: the pipeline's of these names; None = as the checkpoint says.
    """

    steps: int = DEFAULTS["num_inference_steps"]
    guidance: float = DEFAULTS["guidance_scale"]
    temperature: float = DEFAULTS["temperature"]
    top_k: int = DEFAULTS["top_k"]
    top_p: float = DEFAULTS["top_p"]
    precision: str = DEFAULTS["precision"]
    window: int | None = 1
    forecast: int | None = None
    guidance_rescale: float | None = None
    guidance_interval: list[float] | None = None
    shift: float | None = None

    @classmethod
    def of(cls, path: str, settings: Mapping) -> "DrawSettings":
        """Those of a path, of settings as the pipeline's call names them."""
        return cls(**{name: settings[argument] for name, argument in cls.names(path).items() if argument in settings})

    @staticmethod
    def names(path: str) -> dict[str, str]:
        """The settings that matter to a path -> as the pipeline's call names them."""
        return {SHORT_NAMES.get(name, name): name for name in OF_PATH[path] if SHORT_NAMES.get(name, name) in _FIELDS}

    def of_path(self, path: str) -> dict[str, float]:
        """The settings that matter to a path."""
        return {name: getattr(self, name) for name in self.names(path) if getattr(self, name) is not None}

    def arguments(self, path: str) -> dict[str, float]:
        """The settings that matter to a path, as the pipeline's call names them."""
        return {self.names(path)[name]: value for name, value in self.of_path(path).items()}


_FIELDS = tuple(field.name for field in fields(DrawSettings))


@dataclass
class Prompts:
    """What is to be drawn: parallel lists of the captions, the specs they name, and the true pictures."""

    captions: list[str] = field(default_factory=list)
    specs: list = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, some: slice) -> "Prompts":
        return Prompts(self.captions[some], self.specs[some], self.pictures[some])


def held_out_prompts(dataset: ModuleType, split: str, samples: int, seed: int, size: int | None = None) -> Prompts:
    """The first `samples` drawing records of a dataset's split.

    Args:
        size: side of the true pictures in pixels; None = the dataset's own.

    Raises:
        ValueError: no sample is asked for, or more than the split has.
    """
    prompts = Prompts()
    for record in first_records(dataset, split, "draw", samples, seed, size):
        prompts.captions.append(record["messages"][0]["content"][0]["text"])
        prompts.specs.append(dataset.spec_of(record))
        prompts.pictures.append(record["messages"][1]["content"][0]["image"])
    return prompts


def denoising_frames(
    pipeline: HybridGenPipeline, caption: str, path: str, side: int, seed: int, settings: DrawSettings, frames: int = 10
) -> list[Image.Image]:
    """How a picture comes about, in `frames` pictures, the last of them finished: latents denoised step by step, or
    (vq) codes one after the other, gray where none is drawn yet."""
    states = []  # what the loop holds after each step

    def keep_state(pipeline, step, timestep, tensors):
        states.append(tensors["latents"].clone())
        return tensors

    options = {**settings.arguments(path), "callback_on_step_end": keep_state}
    pipeline(caption, path=path, seed=seed, height=side, width=side, **options)
    steps_done = [round((i + 1) * len(states) / frames) for i in range(frames)]
    if path == "diffusion":
        latents = torch.cat([states[max(done, 1) - 1] for done in steps_done])
        return pipeline.processor.postprocess(pipeline.latent_codec.decode(latents))
    size = pipeline.processor.vq_token_size  # pixels of a code
    codes = states[-1].view(1, side // size, side // size)
    pixels = pipeline.vq_codec.decode(codes).expand(frames, -1, -1, -1).clone()  # frames, 3, S, S
    for frame, done in zip(pixels, steps_done, strict=True):
        drawn = (torch.arange(len(states)) < done).view(codes.shape[1:]).to(frame.device)
        frame[:, ~drawn.repeat_interleave(size, 0).repeat_interleave(size, 1)] = 0
    return pipeline.processor.postprocess(pixels)


def reconstruct(pipeline: HybridGenPipeline, pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures encoded and decoded by the vq codec: what is lost here, the vq path cannot draw."""
    codec, decoded = pipeline.vq_codec, []
    for start in range(0, len(pictures), CHUNK):
        chunk = pictures[start : start + CHUNK]
        pixels = [pipeline.processor.image_processor.generation(image, image.height, image.width) for image in chunk]
        codes = codec.encode(torch.stack(pixels).to(codec.model.device))  # T
        side = chunk[0].height // codec.downsample_factor, chunk[0].width // codec.downsample_factor
        decoded += pipeline.processor.postprocess(codec.decode(codes.view(-1, *side)))
    return decoded


class Verdict(NamedTuple):
    """Of one picture: what `score` counts in it alone, right and of how many; and the categories in which it is not as
    asked."""

    counts: dict[str, tuple[int, int]]
    wrong: list[str]

    @property
    def shares(self) -> dict[str, float]:
        return {name: right / n for name, (right, n) in self.counts.items()}


def score(
    dataset: ModuleType, images: list[Image.Image], specs: list, verdicts: list[Verdict] | None = None
) -> dict[str, dict[str, float]]:
    """The dataset's tallies of pictures against what was asked for, with 95 % intervals over pictures.

    Args:
        verdicts: of `judge`, where they are known already.
    """
    verdicts = judge(dataset, images, specs) if verdicts is None else verdicts
    return {
        name: with_interval(tally, [verdict.counts[name] for verdict in verdicts if name in verdict.counts])
        for name, tally in dataset.score_pictures(stacked(images), specs).items()
    }


def judge(dataset: ModuleType, images: list[Image.Image], specs: list) -> list[Verdict]:
    """The dataset's verdicts, picture by picture."""
    judged = dataset.judge_pictures(stacked(images), specs)
    # totals, such as all parts of a picture together, are scores that are no verdicts
    has_totals = bool(images) and set(dataset.score_pictures(stacked(images[:1]), specs[:1])) > set(judged[0])
    verdicts = []
    for image, spec, of_one in zip(images, specs, judged, strict=True):
        counts = {name: (int(right), 1) for name, right in of_one.items()}
        if has_totals:
            tallies = dataset.score_pictures(stacked([image]), [spec])
            counts |= {name: (tally["right"], tally["n"]) for name, tally in tallies.items()}
        verdicts.append(Verdict(counts, [name for name, right in of_one.items() if not right]))
    return verdicts


def stacked(images: list[Image.Image]) -> np.ndarray:
    """Pictures as one array (n, S, S, 3), uint8."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images])
