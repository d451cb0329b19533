"""Chat messages as pieces: the text and pictures of a conversation in reading order, each the assistant's or not.

Templates and messages only: no token ids, no pixels, no files. A template is not rendered message by message (it may
look at the whole conversation) but prefix by prefix, and the text that a longer prefix adds belongs to the turn added:

    render(m[:1], generation prompt)   <|bos|><|user|>a red circle<|assistant|>            prompt
    render(m[:2])                      ...                                     ###<|eos|>  the assistant's turn

So a training document begins with exactly the text of the prompt in generation, whatever the template.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

from hybridgen.core.control_tokens import ControlTokens, Spans, unused_characters
from hybridgen.core.utf8 import check_text
from hybridgen.core.values import shown

ROLES = ("system", "user", "assistant")

# The assistant's turns end with the end-of-text token; user turns end where the next turn begins. Reasoning begins with
# a space, so that its first word is the same token as in the middle of a question.
DEFAULT_CHAT_TEMPLATE = """\
{{- bos_token if bos_token else '' -}}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{{- '<think> ' + message['reasoning_content'] + '</think>' if message['reasoning_content'] else '' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<image_placeholder>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- eos_token if message['role'] == 'assistant' else '' -}}
{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt else '' -}}
"""
# What stands before a template that knows only plain texts, so that it can be given lists of parts.
FLATTEN = """\
{%- set flat = namespace(messages=[], text='') -%}
{%- for message in messages -%}
{%- set flat.text = '' -%}
{%- for part in ([] if message['content'] is string else message['content'] or []) -%}
{%- set flat.text = flat.text + (part['text'] if part['type'] == 'text' else IMAGE_TOKEN if part['type'] == 'image'
    else '') -%}
{%- endfor -%}
{%- set content = message['content'] if message['content'] is string else flat.text -%}
{%- set flat.messages = flat.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


@dataclass(frozen=True)
class Piece:
    """A stretch of text, or (`text` is None) a picture.

    Args:
        assistant: it belongs to a turn of the assistant, after the template's generation prompt.
        controls: where the text holds control tokens of the template; any other that it spells are a user's words.
        picture: the value of the message's image part.
        image_first: for a picture, that no text stands before it.
        learnt: its message has a loss; not so where its `weight` is 0.
        words: where the text is what the messages say; the rest (names of roles, what ends a turn) is the template's.
            Known where `ChatTemplate.pieces` was asked for it, of turns that are not the assistant's.
    """

    text: str | None
    assistant: bool
    controls: Spans = ()
    picture: Any = None
    image_first: bool = False
    learnt: bool = True
    words: Spans = ()


def check_messages(messages: Any, where: str = "") -> list[dict]:
    """The messages, if they are a conversation that a template can render.

    Args:
        where: begins error messages, such as `captions.jsonl:12`.

    Raises:
        ValueError: in one sentence, what is wrong with which message.
    """
    where = f"{where}: " if where else ""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}messages must be a list of at least one message, not {shown(messages)}")
    for number, message in enumerate(messages):
        here = f"{where}message {number}"
        if not isinstance(message, dict):
            raise ValueError(f"{here} must be an object with role and content, not {shown(message)}")
        if message.get("role") not in ROLES:
            raise ValueError(f"{here} has role {shown(message.get('role'))}; use one of {', '.join(ROLES)}")
        _check_reasoning(message, here)
        _check_weight(message, here)
        content = message.get("content")
        if isinstance(content, str):
            check_text(content, f"{here}'s text")
            continue
        if not isinstance(content, list) or not content:
            raise ValueError(f"{here} has content {shown(content)}; use a text or a list of at least one part")
        for part in content:
            _check_part(part, here)
    return messages


def check_conversation(messages: Any) -> None:
    """What `apply_chat_template` takes, which is more than `check_messages` does (tools, pictures under other keys,
    pictures that are given later); what a template would leave out without a word is refused.

    Raises:
        ValueError: in one sentence, what is wrong with which message.
    """
    if not isinstance(messages, list | tuple) or not messages or not all(isinstance(each, dict) for each in messages):
        raise ValueError(f"a conversation must be a list of at least one message, not {shown(messages)}")
    for number, message in enumerate(messages):
        here, content = f"message {number}", message.get("content")
        if message.get("role") not in (*ROLES, "tool", "developer"):
            raise ValueError(f"{here} has role {shown(message.get('role'))}; use one of {', '.join(ROLES)}")
        if isinstance(content, str):
            check_text(content, f"{here}'s text")
        elif isinstance(content, list | tuple):
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if kind not in ("text", "image", "image_url"):
                    raise ValueError(f"{here} has a part {shown(part)}; only texts and images are read")
                if kind == "text":
                    _check_part(part, here)
        elif "tool_calls" not in message:
            raise ValueError(f"{here} has content {shown(content)}; use a text or a list of parts")


def _check_reasoning(message: dict, here: str) -> None:
    thought = message.get("reasoning_content")
    if thought is None:
        return
    if not isinstance(thought, str):
        raise ValueError(f"{here} has reasoning_content {shown(thought)}; it must be a text")
    check_text(thought, f"{here}'s reasoning_content")
    if message["role"] != "assistant":
        raise ValueError(f"{here} has reasoning_content, but role {message['role']}; only the assistant reasons")


def _check_weight(message: dict, here: str) -> None:
    """`weight`, as in OpenAI's format for chats: 0 = the message is read only, 1 = it is learnt, as without one."""
    if "weight" not in message:
        return
    if message["weight"] not in (0, 1) or isinstance(message["weight"], bool):
        raise ValueError(f"{here} has weight {shown(message['weight'])}; it must be 0 (not learnt) or 1")
    if message["role"] != "assistant":
        raise ValueError(f"{here} has a weight, but role {message['role']}; only the assistant's messages have one")


def _check_part(part: Any, here: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image"):
        raise ValueError(f"{here} has a part {shown(part)}; a part is an object whose type is 'text' or 'image'")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise ValueError(f"{here} has a text part without its text; give {{'type': 'text', 'text': ...}}")
    if kind == "text":
        check_text(part["text"], f"{here}'s text")
    if kind == "image" and (part.get("image") is None or (isinstance(part["image"], str) and not part["image"])):
        raise ValueError(f"{here} has an image part without its image; give {{'type': 'image', 'image': a file}}")


def parts(message: dict) -> list[dict]:
    """A message's content as a list of parts, also where it is a plain text."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def strip_reasoning(text: str) -> str:
    """The answer after the model's reasoning, which ends with `</think>` (our template, Qwen3, DeepSeek-R1).

    Reasoning that was cut off by a limit of tokens stays: it is no answer, and shows why there is none.
    """
    return text.rpartition("</think>")[2].strip()


def drop_user_texts(messages: list[dict]) -> list[dict]:
    """The conversation without the user's texts: the unconditional prompt of guidance. Images stay."""

    def images_only(message: dict) -> dict:
        images = [part for part in parts(message) if part["type"] == "image"]
        return {**message, "content": images or ""}

    return [images_only(message) if message["role"] == "user" else message for message in messages]


def named_templates(templates: Any) -> str | dict[str, str] | None:
    """The chat templates of a tokenizer or processor in one form: one template, or several by name with one that is
    called `default`. Older files list them, `[{"name": ..., "template": ...}]`.

    Raises:
        ValueError: none of several is called `default`, or they are something else.
    """
    if templates is None or isinstance(templates, str):
        return templates
    if isinstance(templates, list | tuple) and all(isinstance(entry, dict) for entry in templates):
        templates = {entry.get("name"): entry.get("template") for entry in templates}
    if not isinstance(templates, dict) or not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise ValueError(f"chat_template is {shown(templates)}; give a template, or templates by name")
    if "default" not in templates:
        names = ", ".join(map(repr, templates)) or "none"
        raise ValueError(
            f"there are several chat templates, {names}, and none is called 'default'; say which as chat_template=..."
        )
    return templates["default"] if len(templates) == 1 else templates


def default_template(templates: str | dict[str, str]) -> str:
    """The one of `named_templates` that conversations are rendered by."""
    return templates if isinstance(templates, str) else templates["default"]


class ChatTemplate:
    """A Jinja chat template, with the special tokens that it names and the token that stands for a picture.

    Templates that only know plain texts as content (those of text models) get the picture's token inside the text; a
    trial conversation at construction tells which kind a template is.

    Args:
        tokens: names of special tokens in the template (`eos_token`) -> the tokens.
        image_token, reserved: stand for pictures; refused in texts.
        controls: all other control tokens; in texts they are words.
        words: tokens that are control tokens only where the template writes them around plain turns, as DeepSeek's
            does with `<｜User｜>`.

    Raises:
        ValueError: the template cannot be read, or renders no pictures either way.
    """

    def __init__(
        self,
        template: str,
        tokens: dict[str, str],
        image_token: str,
        reserved: tuple[str, ...] = (),
        controls: tuple[str, ...] = (),
        words: tuple[str, ...] = (),
    ):
        self.template, self.image_token = template, image_token
        self._made_of = template, tokens, image_token, reserved, controls, words
        self._reserved = re.compile("|".join(map(re.escape, (image_token, *reserved))))
        # The public `render_jinja_template` takes ten times as long: it copies the conversation and collects the global
        # names on each call.
        try:
            self._compiled = _compile_jinja_template(template)
        except TemplateError as error:
            raise ValueError(
                f"the chat template cannot be read: {error} (line {getattr(error, 'lineno', '?')})"
            ) from error
        self._names = {**self._compiled.globals, **tokens}
        probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}, {"type": "image", "image": 0}]}]
        if not self._can_render(probe, flat=False) and not self._can_render(probe, flat=True):
            raise ValueError(
                f"the chat template does not write {image_token!r} for an image part, nor the text of a message; "
                "give one that does as chat_template=..., or None for hybridgen's own"
            )
        plain = self._rendered_turns()
        self.controls = ControlTokens((image_token, *reserved, *controls, *(word for word in words if word in plain)))

    def __reduce__(self):  # a compiled template can be neither copied nor pickled
        return ChatTemplate, self._made_of

    @property
    def for_parts(self) -> str:
        """The template, able to render contents that are lists of parts."""
        return FLATTEN.replace("IMAGE_TOKEN", repr(self.image_token)) + self.template if self._flat else self.template

    def _rendered_turns(self) -> str:
        """What the template makes of a plain conversation, of as many roles as it knows."""
        for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",)):
            turns = [{"role": role, "content": [{"type": "text", "text": "probe"}]} for role in roles]
            with contextlib.suppress(ValueError):  # some templates know no system message
                return self._render([self._renderable(turn) for turn in turns], True)
        return ""

    def _can_render(self, probe: list[dict], flat: bool) -> bool:
        """Whether the template writes text and image of a trial conversation whose contents are lists of parts or, if
        flat, texts. From now on messages are given to it in this form."""
        self._flat = flat
        try:
            rendered = self._render([self._renderable(message) for message in probe], False)
        except ValueError:  # most templates of text models cannot add a list to a text
            return False
        return "probe" in rendered and rendered.count(self.image_token) == 1

    def pieces(
        self,
        messages: list[dict],
        generation_prompt: bool = False,
        prompt_dropout: bool = False,
        find_words: bool = False,
    ) -> list[Piece]:
        """The conversation as pieces; a text is cut where a turn of the assistant begins or ends.

        Args:
            find_words: say of each text which of it the messages wrote (`Piece.words`): it is rendered a second time,
                with two private characters around each text, which show where it went.

        Raises:
            ValueError: a text contains a token that stands for images, or the template is not incremental, or does
                not write every picture once, or something of its own before one that opens a turn of the assistant.
        """
        image_first = iter(_image_first(messages, self._reserved))
        if prompt_dropout:
            messages = drop_user_texts(messages)
        unmarked = messages
        messages, mark = self.controls.marked(messages, beside=self.template)
        pieces: list[Piece] = []
        for text, turns, assistant in self._spans(messages, generation_prompt):
            pictures = [part["image"] for turn in turns for part in parts(turn) if part["type"] == "image"]
            texts = text.split(self.image_token)
            if len(texts) != len(pictures) + 1:
                raise ValueError(
                    f"the chat template wrote {len(texts) - 1} times {self.image_token!r} for {len(pictures)} images; "
                    "give one that writes each image once, or None for hybridgen's own"
                )
            if assistant and texts[0] and parts(turns[0])[0]["type"] == "image":
                raise ValueError(
                    f"the chat template writes {texts[0]!r} between its generation prompt and an image, but an image "
                    "is drawn right after the prompt; write it only before texts"
                )
            learnt = not assistant or turns[0].get("weight") != 0
            for stretch, picture in zip(texts, [*pictures, None], strict=True):
                if stretch:
                    words, controls = self.controls.found(stretch, mark)
                    pieces.append(Piece(words, assistant, controls, learnt=learnt))
                if picture is not None:
                    pieces.append(Piece(None, assistant, (), picture, next(image_first), learnt))
        return self._with_words(pieces, unmarked, generation_prompt) if find_words else pieces

    def _with_words(self, pieces: list[Piece], messages: list[dict], generation_prompt: bool) -> list[Piece]:
        """The pieces of these messages, each with its `words`."""
        fences = unused_characters(messages, beside=self.template, count=2)
        fenced = self.pieces(_fence_words(messages, *fences), generation_prompt)
        known = []
        for piece, marked in zip(pieces, fenced, strict=True):
            words, text = _take_fences(marked.text or "", *fences)
            if text != (piece.text or ""):
                raise ValueError(
                    "the chat template changes what the messages say, so that which words are a user's is not known; "
                    "set loss_on to 'assistant', or to 'everything' (the template's own tokens are taught, too)"
                )
            known.append(replace(piece, words=words))
        return known

    def _spans(self, messages: list[dict], generation_prompt: bool) -> Iterator[tuple[str, list[dict], bool]]:
        """(text, its messages, whether they are the assistant's), in reading order."""
        renderable = [self._renderable(message) for message in messages]
        text, done = "", 0
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            opened = self._render(renderable[:k], True)
            yield self._added(text, opened, k), messages[done:k], False
            text = self._render(renderable[: k + 1], False)
            yield self._added(opened, text, k + 1), [message], True
            done = k + 1
        if generation_prompt or done < len(messages):
            whole = self._render(renderable, generation_prompt)
            yield self._added(text, whole, len(messages)), messages[done:], False

    def _added(self, before: str, after: str, count: int) -> str:
        if not after.startswith(before):
            raise ValueError(
                f"the chat template rewrites earlier turns: with {count} messages it does not begin with what it wrote "
                "for fewer, so training and generation would differ; give another as chat_template=..., or None for "
                "hybridgen's own"
            )
        return after[len(before) :]

    def _renderable(self, message: dict) -> dict:
        """The message as the template takes it: with the places of pictures, but not the pictures."""
        if self._flat:
            texts = [self.image_token if part["type"] == "image" else part["text"] for part in parts(message)]
            return {**message, "content": "".join(texts)}
        content = [{"type": "image"} if part["type"] == "image" else part for part in parts(message)]
        return {**message, "content": content}

    def __deepcopy__(self, memo) -> "ChatTemplate":
        return self  # never changes, and compiled templates do not copy

    def _render(self, renderable: list[dict], generation_prompt: bool) -> str:
        try:
            names = {**self._names, "messages": renderable, "add_generation_prompt": generation_prompt}
            return "".join(self._compiled.root_render_func(self._compiled.new_context(names, shared=True)))
        except (TemplateError, TypeError) as error:  # TypeError: a text and a list added in the template
            roles = " ".join(message["role"] for message in renderable) or "no message"
            raise ValueError(f"the chat template cannot render a conversation of {roles}: {error}") from error


def _fence_words(messages: list[dict], opens: str, closes: str) -> list[dict]:
    """The messages with a character before and after the words of each text that is not the assistant's. Spaces around
    words stay outside, as templates trim them."""

    def fenced(text: str) -> str:
        words = text.strip()
        return text.replace(words, f"{opens}{words}{closes}", 1) if words else text

    def change(part: dict) -> dict:
        return {**part, "text": fenced(part["text"])} if part["type"] == "text" else part

    return [
        message if message["role"] == "assistant" else {**message, "content": [change(part) for part in parts(message)]}
        for message in messages
    ]


def _take_fences(text: str, opens: str, closes: str) -> tuple[Spans, str]:
    """Where words stand between two such characters, and the text without these."""
    plain, spans = "", []
    for stretch in re.split(f"({opens}[^{closes}]*{closes})", text):
        if stretch.startswith(opens):
            stretch = stretch[1:-1]
            spans.append((len(plain), len(plain) + len(stretch)))
        plain += stretch
    return tuple(spans), plain


def plain_pieces(messages: list[dict], prompt_dropout: bool = False) -> list[Piece]:
    """The parts of the messages in order, without any template: what a text of a corpus is trained as. All that they
    spell are words."""
    pieces, spoken = [], False
    for message in drop_user_texts(messages) if prompt_dropout else messages:
        assistant, learnt = message["role"] == "assistant", message.get("weight") != 0
        for part in parts(message):
            if part["type"] == "image":
                pieces.append(Piece(None, assistant, (), part["image"], not spoken, learnt))
            elif part["text"]:
                spoken = spoken or bool(part["text"].strip())
                pieces.append(Piece(part["text"], assistant, learnt=learnt, words=((0, len(part["text"])),)))
    return pieces


def _image_first(messages: list[dict], reserved: re.Pattern) -> list[bool]:
    """For each picture, whether no text stands before it. Refuses texts that would be taken for pictures."""
    flags, spoken = [], False
    for message in messages:
        thought = message.get("reasoning_content")
        for part in ([{"type": "text", "text": thought}] if thought else []) + parts(message):
            if part["type"] == "image":
                flags.append(not spoken)
                continue
            if inside := reserved.search(part["text"]):
                raise ValueError(
                    f"a text contains {inside[0]!r}, which stands for images; leave it out (pictures are parts of type "
                    "'image')"
                )
            spoken = spoken or bool(part["text"].strip())
    return flags
