"""Janus' prompts: the chat templates of Janus-1.3B and Janus-Pro, the tokens that they need, the image settings.

Text and settings, no weights. The two model versions name the roles differently ("User" and "<|User|>"), and no file of
DeepSeek's says which is meant; a prompt in the other's style works, a little worse.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hybridgen.bridges.folders import begins_texts, read_if_there
from hybridgen.core.files import read_json
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.tokenization_hybridgen import BEGIN_IMAGE, END_IMAGE, PLACEHOLDERS

PAD, END = "<｜▁pad▁｜>", "<｜end▁of▁sentence｜>"
IMAGE = PLACEHOLDERS["understanding"]
IMAGE_TOKENS = {"image_token": IMAGE, "boi_token": BEGIN_IMAGE, "eoi_token": END_IMAGE}  # as transformers calls them
OUR_TOKENS = (PLACEHOLDERS["diffusion"], PLACEHOLDERS["vq"])  # no Janus has them
ROLES = {"janus": ("User", "Assistant"), "janus-pro": ("<|User|>", "<|Assistant|>")}
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

# ---------------------------------------------------------------------------------------------------- templates
# Words in capitals are filled in by `_fill`. Texts and images of a turn are separated by a newline.

_CONTENT = """\
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}
{{- ('' if loop.first else '\\n') + IMAGE + ('' if loop.last else '\\n') -}}
{%- else -%}
{%- set text = part['text'].lstrip() if loop.first else part['text'] -%}
{%- set text = text.rstrip() if loop.last else text -%}
{{- (' ' if not loop.first and loop.previtem['type'] == 'text' else '') + text -}}
{%- endif -%}
{%- endfor -%}
"""
# A conversation that begins with an image is opened by the system prompt; one that asks for an image is not.
_OURS = f"""\
{{{{- BEGIN -}}}}
{{%- if messages and messages[0]['role'] == 'user' and messages[0]['content'] is not string
    and 'image' in messages[0]['content'] | map(attribute='type') -%}}
{{{{- SYSTEM + '\\n\\n' -}}}}
{{%- endif -%}}
{{%- for message in messages -%}}
{{%- if message['content'] is string -%}}
{{%- set parts = [{{'type': 'text', 'text': message['content']}}] -%}}
{{%- else -%}}
{{%- set parts = message['content'] -%}}
{{%- endif -%}}
{{%- set empty = parts | length == 1 and parts[0]['type'] == 'text' and not parts[0]['text'].strip() -%}}
{{%- if message['role'] == 'user' -%}}
{{{{- USER + (':' if empty else ': ') -}}}}
{{%- elif message['role'] == 'assistant' -%}}
{{{{- ASSISTANT + (': ' if parts[0]['type'] == 'text' and not empty else ':') -}}}}
{{%- endif -%}}
{_CONTENT}\
{{%- if message['role'] == 'assistant' -%}}
{{{{- eos_token -}}}}
{{%- elif not empty -%}}
{{{{- '\\n\\n' -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{{{- ASSISTANT + ':' if add_generation_prompt else '' -}}}}
"""
_TRANSFORMERS = f"""\
{{%- for message in messages -%}}
{{%- set parts = message['content'] -%}}
{{%- if message['role'] == 'user' -%}}
{{{{- USER + ': ' -}}}}
{{%- elif message['role'] == 'assistant' -%}}
{{{{- ASSISTANT + (': ' if parts[0]['type'] == 'text' and parts[0]['text'] else ':') -}}}}
{{%- endif -%}}
{_CONTENT}\
{{%- if not loop.last or add_generation_prompt -%}}
{{{{- END if message['role'] == 'assistant' else '\\n\\n' -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{{{- ASSISTANT + ':' if add_generation_prompt else '' -}}}}
"""


def chat_template(style: str, begins: bool) -> str:
    """A template for our processor, in the style of `janus` (1.3B) or `janus-pro`.

    Args:
        begins: prompts start with the begin-of-text token.
    """
    return _fill(_OURS, style).replace("BEGIN", "bos_token" if begins else "''")


def transformers_template(style: str) -> str:
    """A template for transformers' `JanusProcessor`, which adds the system prompt and the begin of text itself."""
    return _fill(_TRANSFORMERS, style)


def _fill(template: str, style: str) -> str:
    user, assistant = ROLES[style]
    words = {"ASSISTANT": assistant, "USER": user, "SYSTEM": SYSTEM, "END": END, "IMAGE": IMAGE}
    for name, value in words.items():
        template = template.replace(name, f"'{value}'")
    return template


def find_style(folder: Path, template: str | None) -> tuple[str, str]:
    """The style a checkpoint was trained in, and how it was found.

    By its chat template, if it has one; else by the style that DeepSeek's processor names; else by the folder's name;
    else Janus-Pro's.
    """
    for style in ("janus-pro", "janus"):  # in this order, as "User" is part of "<|User|>"
        if template is not None and ROLES[style][0] in template:
            return style, "its chat template"
    settings = read_if_there(folder / "processor_config.json")
    if settings.get("sft_format") == "deepseek_old":
        return "janus", "sft_format 'deepseek_old'"
    for style, name in (("janus", "janus-1.3b"), ("janus-pro", "janus-pro")):
        if name in folder.resolve().name.lower():
            return style, "the folder's name"
    return "janus-pro", "nothing says otherwise"


# --------------------------------------------------------------------------------------------------- tokenizers

_KEPT_SETTINGS = (
    "model_max_length", "truncation_side", "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token",
)  # fmt: skip
_TAGS = {"image_token": "image_tag", "boi_token": "image_start_tag", "eoi_token": "image_end_tag"}  # DeepSeek's
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Janus' tokenizer exactly as its tokenizer.json has it, with its pad token set, and without hybridgen's tokens.

    Raises:
        ValueError: it is missing, or lacks the tokens that stand for images, or something to pad with.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, so the tokens that stand for images are unknown")
    settings = {
        **read_if_there(folder / "special_tokens_map.json"),
        **read_if_there(folder / "tokenizer_config.json"),
    }
    content = read_json(folder / "tokenizer.json")
    content["added_tokens"] = [t for t in content.get("added_tokens", []) if t["content"] not in OUR_TOKENS]
    try:
        backend = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ValueError(f"{folder / 'tokenizer.json'} is no tokenizer ({error}); copy it again") from error
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    names = {**IMAGE_TOKENS, **(extra if isinstance(extra, dict) else {})}
    names |= {name: settings[name] for name in (*_NAMED, *IMAGE_TOKENS) if settings.get(name)}
    names = {name: _content(token) for name, token in names.items()}
    tags = read_if_there(folder / "processor_config.json")
    names |= {name: tags[tag] for name, tag in _TAGS.items() if tag in tags}
    pad = tags.get("pad_tag", PAD)
    if backend.token_to_id(pad) is not None:
        names["pad_token"] = pad  # Janus' code finds it by this name, whatever the tokenizer's settings say
    if missing := sorted(token for token in names.values() if backend.token_to_id(token) is None):
        raise ValueError(
            f"the tokenizer in {folder} has no {', '.join(missing)}, which every Janus needs; take the one that "
            "belongs to the checkpoint"
        )
    if unnamed := [name for name in ("eos_token", "pad_token") if name not in names]:
        raise ValueError(f"the tokenizer in {folder} names no {unnamed[0]}; say it in tokenizer_config.json")
    kept = {name: settings[name] for name in _KEPT_SETTINGS if settings.get(name) is not None}
    if str(settings.get("tokenizer_class", "")).startswith("Llama"):
        kept.setdefault("add_bos_token", True)  # as that class does unless its settings say otherwise
    if isinstance(extra, list) and (others := [token for token in map(_content, extra) if token not in OUR_TOKENS]):
        kept["extra_special_tokens"] = others
    model_tokens = {name: token for name, token in names.items() if name not in _NAMED}
    named = {name: token for name, token in names.items() if name in _NAMED}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", model_specific_special_tokens=model_tokens, **named, **kept
    )


def _content(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token


# ----------------------------------------------------------------------------------------------- image settings


def open_image_processor(folder: Path, image_size: int) -> HybridGenImageProcessor:
    """The image processor of a checkpoint of either layout. Without settings: the tower's size, mean and std 0.5.

    Raises:
        ValueError: its size is not the tower's, or it has a setting that Janus does not know.
    """
    settings = read_if_there(folder / "preprocessor_config.json")
    settings = settings or read_if_there(folder / "processor_config.json").get("image_processor", {})
    size = settings.get("image_size") or settings.get("size") or image_size
    size = size.get("height") if isinstance(size, dict) else size
    if size != image_size:
        raise ValueError(
            f"the image processor in {folder} makes pictures of {size} pixels, but the vision tower takes {image_size}"
        )
    if abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"the image processor in {folder} has rescale_factor {settings['rescale_factor']}, not 1/255")
    default = (CLIP_MEAN, CLIP_STD) if settings else ([0.5] * 3, [0.5] * 3)  # both libraries' classes default to CLIP's
    mean, std = settings.get("image_mean") or default[0], settings.get("image_std") or default[1]
    for name, levels in (("image_mean", mean), ("image_std", std)):
        if not isinstance(levels, list) or len(levels) != 3 or not all(isinstance(x, int | float) for x in levels):
            raise ValueError(f"the image processor in {folder} has {name} {levels!r}; it must be three numbers")
    pad = settings.get("pad_value", [int(value * 255) for value in mean])  # `pad_value` is hybridgen's name
    if not settings.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    return HybridGenImageProcessor(
        image_size=image_size,
        image_mean=mean,
        image_std=std,
        pad_value=pad[0] if isinstance(pad, list) and len(set(pad)) == 1 else pad,
        min_size=settings.get("min_size", 14),
        truncate=True,
    )


# -------------------------------------------------------------------------------------------- DeepSeek's settings


def official_settings(
    style: str, tokenizer: PreTrainedTokenizerFast, images: HybridGenImageProcessor, num_image_tokens: int
) -> dict[str, dict]:
    """The small files beside a checkpoint in DeepSeek's layout, by name."""
    named = {name: getattr(tokenizer, name) for name in _NAMED if getattr(tokenizer, name) is not None}
    special = {**named, "additional_special_tokens": tokenizer.extra_special_tokens}
    return {
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            **special,
            "add_bos_token": begins_texts(tokenizer),
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": min(tokenizer.model_max_length, 2**31 - 1),
            "tokenizer_class": "LlamaTokenizerFast",
        },
        "processor_config.json": {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": tokenizer.image_token,
            "image_start_tag": tokenizer.boi_token,
            "image_end_tag": tokenizer.eoi_token,
            "mask_prompt": True,
            "num_image_tokens": num_image_tokens,
            "pad_tag": tokenizer.pad_token,
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek" if style == "janus-pro" else "deepseek_old",
        },
        "preprocessor_config.json": {
            "background_color": [images.pad_value] * 3 if isinstance(images.pad_value, int) else images.pad_value,
            "do_normalize": True,
            "image_mean": images.image_mean,
            "image_processor_type": "VLMImageProcessor",
            "image_size": images.image_size,
            "image_std": images.image_std,
            "min_size": images.min_size,
            "processor_class": "VLChatProcessor",
            "rescale_factor": 1 / 255,
        },
    }
