"""Events: what `HybridGenPipeline.stream` and `Chat.send` yield while a turn is made, in the order in which it happens.

An `ImagePreview` is a guess and never part of the conversation; `ImageDone` is.
"""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class TextDelta:
    """More text. All of a turn's, joined, are its whole text."""

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
    """A picture after `step` steps: on the diffusion path as the model expects it to end, on the vq path the rows of
    codes drawn so far, so that it is less high."""

    index: int
    step: int
    image: Image.Image


@dataclass(frozen=True)
class ImageDone:
    """A finished picture, and what made it: the settings in `manifest` draw it again (`checkpoints.manifest`)."""

    index: int
    image: Image.Image
    manifest: dict


@dataclass(frozen=True)
class Usage:
    """What the turn took; the last event of every turn that was not stopped.

    Args:
        prompt_tokens: of the conversation before the turn.
        cached_tokens: those of them that earlier turns had read.
        text_tokens: written.
        image_tokens: drawn, their frames not counted.
        steps: denoising steps and codes.
        seconds: from when the first event was asked for to this one.
        truncated: a text ended where its tokens ran out (`max_new_tokens`, or the context), not where the model ended
            it.
    """

    prompt_tokens: int
    cached_tokens: int
    text_tokens: int
    image_tokens: int
    steps: int
    seconds: float
    truncated: bool = False


Event = TextDelta | ImageStarted | ImagePreview | ImageDone | Usage
