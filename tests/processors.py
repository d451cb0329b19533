"""Small real processors, conversations and templates that several tests share. Not a test itself."""

import itertools

from PIL import Image
from transformers import PreTrainedTokenizerFast

from hybridgen.processing_hybridgen import HybridGenImageProcessor, HybridGenProcessor, build_tokenizer

TEXTS = ["a red circle on a blue ground", "what colour is it?", "red", "blue", "yes", "no", "document 0123456789"]

# DeepSeek's style: roles as text, a separator after the user's turn, a space before what the assistant says
JANUS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<|User|>: {% else %}<|Assistant|>:"
    "{% endif %}{% for part in message.content %}{% if part.type == 'image' %}<image_placeholder>{% else %}"
    "{{ ' ' if message.role == 'assistant' }}{{ part.text }}{% endif %}{% endfor %}"
    "{{ '\\n\\n' if message.role == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
# a text model's: content is a text and nothing else, and every turn ends alike
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# writes the last answer otherwise than those before it, as templates of thinking models do
REWRITING = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{{ '(thinks)' if loop.last and message['role'] == 'assistant' else '' }}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEMPLATES = {"default": None, "janus": JANUS, "chatml": CHATML}


def tiny_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    return build_tokenizer(TEXTS, vocab_size)


def tiny_processor(**changes) -> HybridGenProcessor:
    """All three paths of 16x16 pictures: 4 understanding tokens, 4x4 patches, 2x2 codes of 8 pixels."""
    settings = {
        "image_processor": HybridGenImageProcessor(image_size=16),
        "tokenizer": tiny_tokenizer(),
        "num_image_tokens": 4,
        "diffusion_token_size": 4,
        "vq_token_size": 8,
        "bidirectional_paths": ["diffusion"],
        "default_size": (16, 16),
    }
    return HybridGenProcessor(**{**settings, **changes})


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    """A picture of many colours, another for each seed below 256."""
    grid = itertools.product(range(height), range(width), range(3))
    values = bytes((x * 7 + y * 13 + channel * 29 + seed * 41) % 256 for y, x, channel in grid)
    return Image.frombytes("RGB", (width, height), values)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(seed: int = 0, width: int = 16, height: int = 16) -> dict:
    return {"type": "image", "image": picture(width, height, seed)}


def user(*parts: dict | str) -> dict:
    return _turn("user", parts)


def assistant(*parts: dict | str) -> dict:
    return _turn("assistant", parts)


def _turn(role: str, parts) -> dict:
    return {"role": role, "content": [text(part) if isinstance(part, str) else part for part in parts]}
