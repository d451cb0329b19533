"""Events: what `HybridGenPipeline.stream` and `Chat.send` say while a turn is made, in the order in which it happens.

The fact a newcomer gets wrong: an `ImagePreview` is a guess and never part of the conversation; `ImageDone` is.
"""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class TextDelta:
    """More text. All of a turn's, joined, are what the turn says."""

    text: str


@dataclass(frozen=True)
class ImageStarted:
    """A picture will be drawn: the `index`-th of the turn, height and width in pixels."""

    index: int
    path: str
    height: int
    width: int


@dataclass(frozen=True)
class ImagePreview:
    """A picture after `step` steps: on the diffusion path as the model expects it to end, on the vq path the rows that
    are there, so that it is less high."""

    index: int
    step: int
    image: Image.Image


@dataclass(frozen=True)
class ImageDone:
    """A finished picture, and what made it: the settings in `manifest` draw it again (`pipeline_manifest`)."""

    index: int
    image: Image.Image
    manifest: dict


@dataclass(frozen=True)
class Usage:
    """What the turn took; the last event of every turn that was not stopped.

    Args:
        prompt_tokens: of the conversation before the turn.
        cached_tokens: those of them that had been read before.
        text_tokens: written.
        image_tokens: drawn, their frames not counted.
        steps: denoising steps and codes.
        seconds: between the first event asked for and this one.
    """

    prompt_tokens: int
    cached_tokens: int
    text_tokens: int
    image_tokens: int
    steps: int
    seconds: float


Event = TextDelta | ImageStarted | ImagePreview | ImageDone | Usage
