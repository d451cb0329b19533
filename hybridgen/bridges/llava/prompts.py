"""LLaVA's prompts: the chat template, the tokenizer's token of images, and how pictures are cut.

A folder's own template is taken over, with the begin of text before it that the tokenizer puts there in transformers.
It mostly writes no end of text behind an answer: who trains a model further says `vicuna` or another template.
"""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from hybridgen.bridges.folders import begins_texts, picture_settings
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor

IMAGE = "<image>"  # where the tokenizer names no other
_BEGIN = "{{- bos_token -}}"

_TEMPLATE = """\
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- set parts = [{'type': 'text', 'text': parts}] if parts is string else parts -%}
{%- if message['role'] != 'system' -%}{{- message['role'] | upper + ': ' -}}{%- endif -%}
{%- for part in parts if part['type'] == 'image' -%}{{- 'IMAGE_TOKEN\\n' -}}{%- endfor -%}
{%- for part in parts if part['type'] == 'text' -%}
{{- part['text'] + ('' if message['role'] == 'assistant' else ' ') -}}
{%- endfor -%}
{{- eos_token if message['role'] == 'assistant' else '' -}}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt else '' -}}
"""


def image_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that stands for a picture, as transformers' processor finds it."""
    return getattr(tokenizer, "image_token", None) or IMAGE


def chat_template(own: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """A template for our processor: the folder's own, or that of LLaVA 1.5, behind the begin of text."""
    template = _TEMPLATE.replace("IMAGE_TOKEN", image_token(tokenizer)) if own is None else own
    return _BEGIN + template if begins_texts(tokenizer) else template


def own_template(template: str | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The reverse of `chat_template`; None = there is none to keep."""
    return None if template in (None, chat_template(None, tokenizer)) else template.removeprefix(_BEGIN)


def open_images(folder: Path, side: int) -> HybridGenImageProcessor:
    """The image processor of a checkpoint in transformers' layout. Without settings: CLIP's.

    Args:
        side: of the pictures that the tower reads.

    Raises:
        ValueError: its size is not the tower's.
    """
    settings = picture_settings(folder)
    size = settings.get("crop_size") or settings.get("size") or side
    sides = {size} if isinstance(size, int) else set({**size}.values())
    if sides != {side}:
        raise ValueError(
            f"the image processor in {folder} makes pictures of {size!r} pixels, but the vision tower takes {side}"
        )
    mean, std = settings.get("image_mean") or OPENAI_CLIP_MEAN, settings.get("image_std") or OPENAI_CLIP_STD
    crops = settings.get("do_center_crop", True) and not settings.get("do_pad", False)
    return HybridGenImageProcessor(
        side,
        image_mean=list(mean),
        image_std=list(std),
        pad_value=[int(level * 255) for level in mean],
        understanding_fit="crop" if crops else "pad",
    )


def differences(folder: Path) -> Iterator[str]:
    """What of a checkpoint's settings of pictures is done otherwise here, one per line."""
    settings = picture_settings(folder)
    if (resample := settings.get("resample", PILImageResampling.BICUBIC)) != PILImageResampling.BICUBIC:
        yield f"resample {resample}: pictures of another size are resized bicubically here"
    if abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        yield f"rescale_factor {settings['rescale_factor']}: levels are divided by 255 here"
    if settings.get("do_pad", False):
        yield "do_pad: pictures are padded to a square after they are resized here, not before"
    elif not settings.get("do_center_crop", True):
        yield "do_center_crop false: pictures that are no squares are padded here, not stretched"
