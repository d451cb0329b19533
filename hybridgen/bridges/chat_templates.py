"""Chat templates for tokenizers that bring none: by a name, or a file of Jinja.

hybridgen             `<|user|>` and its like; the tokenizer gains these three tokens
bare                  no word of its own: begin of text, what is said, end of text (Transfusion, Chameleon)
vicuna                USER: and ASSISTANT: as words (Vicuna 1.1, LLaVA-1.5)
janus, janus-pro      DeepSeek's
"""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hybridgen.bridges.folders import begins_texts
from hybridgen.bridges.janus.prompts import chat_template as janus_template
from hybridgen.core.messages import DEFAULT_CHAT_TEMPLATE, ChatTemplate
from hybridgen.core.names import CHAT_TEMPLATES
from hybridgen.core.recognition import is_there, user_path
from hybridgen.core.utf8 import read_text
from hybridgen.tokenization_hybridgen import PLACEHOLDERS, ROLE_TOKENS, has_role_tokens

BARE = """\
{{- bos_token if bos_token else '' -}}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<image_placeholder>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- eos_token if message['role'] == 'assistant' else '' -}}
{%- endfor -%}
"""
VICUNA = """\
{{- bos_token if bos_token else '' -}}
{%- if messages and messages[0]['role'] != 'system' -%}
{{- "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, " -}}
{{- "detailed, and polite answers to the user's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
{%- set assistant = message['role'] == 'assistant' -%}
{{- {'system': '', 'user': 'USER: ', 'assistant': 'ASSISTANT:'}[message['role']] -}}
{%- set parts = message['content'] -%}
{%- set parts = [{'type': 'text', 'text': parts}] if parts is string else parts -%}
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}
{{- '<image_placeholder>' if assistant else '<image_placeholder>\\n' -}}
{%- else -%}
{{- ' ' + part['text'] if assistant and loop.first else part['text'] -}}
{%- endif -%}
{%- endfor -%}
{{- eos_token if assistant else ' ' -}}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt else '' -}}
"""
_OWN = {"bare": BARE, "vicuna": VICUNA}


def check_template(name: str) -> None:
    """Raises ValueError unless it is the name of a template, or a file of one that can be read and renders pictures."""
    if name in CHAT_TEMPLATES:
        return
    tokens = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")}
    ChatTemplate(_read(name), tokens, PLACEHOLDERS["understanding"])


def load_template(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of this name, or in this file, for a tokenizer; a template itself (`{{ ... }}`) stays.

    Raises:
        ValueError: there is none, or it writes tokens that the tokenizer lacks (see `add_role_tokens`).
    """
    if name == "hybridgen":
        if not has_role_tokens(tokenizer):
            raise ValueError(
                f"the chat template 'hybridgen' writes {', '.join(ROLE_TOKENS)}, which this model's tokenizer does not "
                f"have; name another ({', '.join(CHAT_TEMPLATES[1:])}), or a file"
            )
        return DEFAULT_CHAT_TEMPLATE
    if name in _OWN:
        return _OWN[name]
    if "{{" in name or "{%" in name:
        return name
    return janus_template(name, begins_texts(tokenizer)) if name in CHAT_TEMPLATES else _read(name)


def add_role_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add the tokens of roles that the template `hybridgen` writes. Returns their number (then resize embeddings)."""
    missing = [token for token in ROLE_TOKENS if token not in tokenizer.get_vocab()]
    return tokenizer.add_tokens(missing, special_tokens=True)


def _read(name: str) -> str:
    file = user_path(name)
    if not is_there(file) or not file.is_file():
        raise ValueError(
            f"the chat template {name!r} is no file that is there, and no name of a template; the names are "
            f"{', '.join(CHAT_TEMPLATES)}"
        )
    return read_text(Path(file), "chat template")
