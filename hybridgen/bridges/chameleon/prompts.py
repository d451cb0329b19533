"""Chameleon's prompts: the chat template, the tokens that it needs, and how pictures are cut.

transformers' processor puts the separator behind a prompt, which ends the user's turn, and the tokenizer a begin of
text before it. Where nothing is asked, there is no separator: what guidance leads away from is the begin of text alone,
as in Meta's code.
"""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from hybridgen.bridges.folders import begins_texts, picture_settings
from hybridgen.image_processing_hybridgen import FRAMINGS

IMAGE, BEGIN, END = "<image>", "<racm3:break>", "<eoss>"  # where the tokenizer names no others
SIDE = 512  # pixels of a picture, where nothing says otherwise
OURS, THEIRS = "hybridgen", "chameleon-hf"  # how pictures are made values (`image_processing_hybridgen.FRAMINGS`)

_TEMPLATE = """\
{{- BEGIN_OF_TEXT -}}
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- set parts = [{'type': 'text', 'text': parts}] if parts is string else parts -%}
{%- for part in parts -%}
{{- 'IMAGE_TOKEN' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- set empty = parts | length == 1 and parts[0]['type'] == 'text' and not parts[0]['text'] -%}
{%- if message['role'] == 'assistant' -%}
{{- eos_token -}}
{%- elif message['role'] == 'user' and not empty -%}
{{- SEPARATOR -}}
{%- endif -%}
{%- endfor -%}
"""


def chat_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """A template for our processor that writes what transformers' processor makes of a prompt."""
    words = {
        "BEGIN_OF_TEXT": "bos_token" if begins_texts(tokenizer) else "''",
        "IMAGE_TOKEN": token_names(tokenizer)["image"],
        "SEPARATOR": "''" if tokenizer.sep_token is None else repr(tokenizer.sep_token),
    }
    template = _TEMPLATE
    for name, word in words.items():
        template = template.replace(name, word)
    return template


def token_names(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """The tokens that stand for a picture and frame it, as transformers' processor finds them."""
    kinds = {"image": ("image_token", IMAGE), "begin": ("boi_token", BEGIN), "end": ("eoi_token", END)}
    return {kind: getattr(tokenizer, name, None) or otherwise for kind, (name, otherwise) in kinds.items()}


def side_of(folder: Path, resolution: int) -> int:
    """Pixels along one side of a picture, by a checkpoint in transformers' layout.

    Args:
        resolution: that of the VQ tokenizer, where there are no settings.

    Raises:
        ValueError: pictures are not cut to a square, or their values are not those of a Chameleon.
    """
    settings = picture_settings(folder)
    size = settings.get("crop_size") or settings.get("size") or resolution
    sides = [size, size] if isinstance(size, int) else [*{**size}.values()]
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or not settings.get("do_center_crop", True):
        raise ValueError(f"the image processor in {folder} cuts pictures to {size!r}; a Chameleon's are squares")
    factor = settings.get("rescale_factor", FRAMINGS[THEIRS].factor)
    mean, std = settings.get("image_mean") or [1.0] * 3, settings.get("image_std") or [1.0] * 3
    for levels in zip(mean, std, strict=True):
        ends = [(level * factor - levels[0]) / levels[1] for level in (0, 255)]
        if max(abs(ends[0] + 1), abs(ends[1] - 1)) > 0.02:
            raise ValueError(
                f"the image processor in {folder} makes values from {ends[0]:g} to {ends[1]:g}, but a Chameleon's VQ "
                "tokenizer reads those from -1 to 1"
            )
    return sides[0]


def framing_of(folder: Path) -> str:
    """How a checkpoint's pictures are resized and made values, by transformers' settings: one of `FRAMINGS`. Where they
    are neither of transformers' class nor ours, `differences` says what is done otherwise."""
    theirs = FRAMINGS[THEIRS]
    return THEIRS if _rescaling(folder) == (theirs.factor, theirs.resample) else OURS


def differences(folder: Path) -> Iterator[str]:
    """What of a checkpoint's settings of pictures is done otherwise here, one per line."""
    if framing_of(folder) == THEIRS:
        return
    factor, resample = _rescaling(folder)
    if abs(factor * 127.5 - 1) > 1e-6:
        yield f"rescale_factor {factor}: levels are divided by 127.5 here"
    if resample != FRAMINGS[OURS].resample:
        yield f"resample {resample}: pictures of another size are resized by {FRAMINGS[OURS].resample} (bicubic) here"


def _rescaling(folder: Path) -> tuple[float, int]:
    settings, theirs = picture_settings(folder), FRAMINGS[THEIRS]
    return settings.get("rescale_factor", theirs.factor), settings.get("resample", theirs.resample)
