"""Chameleon's prompts: the chat template, the tokens that it needs, and how pictures are cut.

transformers' processor puts the separator behind a prompt, which ends the user's turn, and the tokenizer a begin of
text before it. Where nothing is asked, there is no separator: what guidance leads away from is the begin of text alone,
as in Meta's code.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hybridgen.bridges.folders import read_if_there
from hybridgen.checkpoints.loading import quiet
from hybridgen.core.recognition import check_json
from hybridgen.core.values import one_line
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
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    words = {
        "BEGIN_OF_TEXT": "bos_token" if begins else "''",
        "IMAGE_TOKEN": token_names(tokenizer)["image"],
        "SEPARATOR": "''" if tokenizer.sep_token is None else repr(tokenizer.sep_token),
    }
    template = _TEMPLATE
    for name, word in words.items():
        template = template.replace(name, word)
    return template


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint of either layout, without a chat template, which the checkpoint keeps apart.

    Raises:
        ValueError: it is missing, cannot be read, or lacks a token that stands for pictures, or the end of a text.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no tokenizer.json, so the tokens that stand for images are unknown")
    check_json(file)
    try:
        Tokenizer.from_file(str(file))
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries raise ten kinds of error; the folder's tokenizer is the cause of all
        raise ValueError(f"the tokenizer in {folder} cannot be loaded ({one_line(error)}); copy its files") from error
    tokenizer.chat_template = None
    for name in ("chat_template", "is_local", "local_files_only"):  # which loading adds, and saving would write
        tokenizer.init_kwargs.pop(name, None)
    known = tokenizer.get_vocab()
    if missing := [name for name in token_names(tokenizer).values() if name not in known]:
        raise ValueError(
            f"the tokenizer in {folder} has no {', '.join(missing)}, which every Chameleon needs; take the one that "
            "belongs to the checkpoint"
        )
    if unnamed := [name for name in ("eos_token", "pad_token") if getattr(tokenizer, name) is None]:
        raise ValueError(f"the tokenizer in {folder} names no {unnamed[0]}; say it in tokenizer_config.json")
    return tokenizer


def token_names(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """The tokens that stand for a picture and frame it, as transformers' processor finds them."""
    kinds = {"image": ("image_token", IMAGE), "begin": ("boi_token", BEGIN), "end": ("eoi_token", END)}
    return {kind: getattr(tokenizer, name, None) or otherwise for kind, (name, otherwise) in kinds.items()}


def picture_settings(folder: Path) -> dict:
    """The settings of a checkpoint's image processor, in transformers' layout; empty where there are none."""
    settings = read_if_there(folder / "preprocessor_config.json")
    return settings or read_if_there(folder / "processor_config.json").get("image_processor", {})


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
