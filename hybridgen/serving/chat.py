"""The API's conversations, and what they are answered with: `/v1/chat/completions`.

Pictures come in as `image_url` parts that hold `data:` URLs, and go out as the message's `images`, a list of such parts
(in a stream, as they are done, in the deltas). An assistant's message is taken back as it was sent. Words are the
likeliest unless `temperature`, `top_p` or `top_k` is given. `modalities` says what the answer is: text, an image, or
(both, or left out) what the model decides. How pictures are drawn is in `drawing`, an object of settings of drawing.
"""

import base64
import io
import time
import uuid
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hybridgen.chat.events import Usage
from hybridgen.chat.settings import TurnSettings
from hybridgen.chat.turn import Conversation, Turn
from hybridgen.core.values import flag, listed, shown, whole_number
from hybridgen.serving.errors import bad
from hybridgen.serving.images import SETTINGS, checked, take_settings
from hybridgen.serving.limits import Limits, take_data_url, take_text

_TEXT_SETTINGS = {"temperature": "text_temperature", "top_p": "text_top_p", "top_k": "text_top_k"}
_OWN = ("read", "reread", "max_images", "plan", "drawing")  # not of the API: what `TurnSettings` says of them
_NO_EFFECT = ("user", "safety_identifier", "metadata", "prompt_cache_key", "store", "service_tier")
_MUST_BE = {  # what else may be said, and the one value that means what is done here
    "n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "tools": [],
    "tool_choice": "none", "stop": [], "response_format": {"type": "text"}, "parallel_tool_calls": True,
}  # fmt: skip
_KNOWN = (
    "messages", "model", "seed", "stream", "stream_options", "max_tokens", "max_completion_tokens", "modalities",
    *_TEXT_SETTINGS, *_OWN, *_NO_EFFECT, *_MUST_BE,
)  # fmt: skip
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_OF_DRAWING = (*SETTINGS, "path", "negative_prompt", "height", "width")
_PLANS = {("text",): ["text"], ("image",): ["image"], ("image", "text"): None}


@dataclass(frozen=True)
class ChatRequest:
    """A request, checked as far as it can be without the model; made by `of`."""

    messages: list[dict]
    settings: TurnSettings
    stream: bool
    with_usage: bool

    @classmethod
    def of(cls, body: dict, limits: Limits) -> "ChatRequest":
        """Raises ApiError for what a client can mend."""
        body = {name: value for name, value in body.items() if value is not None}
        _refuse_unknown(body)
        if "messages" not in body:
            raise bad("messages are missing; send a list of at least one", "messages")
        messages = _messages(body["messages"], limits)
        stream = checked("stream", flag, body.get("stream", False))
        options = body.get("stream_options", {})
        if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
            raise bad(f"stream_options is {shown(options)}; there is include_usage", "stream_options")
        with_usage = checked("stream_options", flag, options.get("include_usage", False))
        return cls(messages, turn_settings(body, limits), stream, with_usage)

    def turn(self, pipe, limits: Limits) -> Turn:
        """The assistant's turn. Raises ApiError or ValueError for what the model cannot do."""
        return turn_of(pipe, Conversation(), self.messages, self.settings, limits)


def turn_settings(body: dict, limits: Limits) -> TurnSettings:
    """How an answer is made, as a request's fields say. Raises ApiError for what means nothing, or asks too much."""
    return checked("settings", lambda name, given: TurnSettings(**given), _settings(body, limits))


def turn_of(pipe, before: Conversation, messages: list[dict], settings: TurnSettings, limits: Limits) -> Turn:
    """The assistant's turn. Raises ApiError or ValueError for what the model cannot do, or for a picture too large."""
    if settings.height is not None or settings.width is not None:
        path = pipe.writing_path(settings.path)
        limits.check(
            "image_tokens", pipe.processor.count_tokens(path, settings.height, settings.width), "size in tokens"
        )
    return Turn(pipe, before, messages, settings)


class ChatAnswer:
    """What a conversation is answered with, whole or in parts."""

    def __init__(self, model: str):
        self.about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, urls: list[str], usage: Usage) -> dict:
        """The whole answer: its text, and its pictures as `data:` URLs."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if urls:
            message["images"] = [_image_part(index, url) for index, url in enumerate(urls)]
        choice = {"index": 0, "message": message, "finish_reason": _finish(usage), "logprobs": None}
        return {**self.about, "object": "chat.completion", "choices": [choice], "usage": usage_of(usage)}

    def chunk(self, delta: dict, usage: Usage | None = None) -> dict:
        """A part of it; with `usage` the last that has words."""
        finish = None if usage is None else _finish(usage)
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self.about, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, usage: Usage) -> dict:
        return {**self.about, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(usage)}

    def image_delta(self, index: int, url: str) -> dict:
        return {"images": [_image_part(index, url)]}


def usage_of(usage: Usage) -> dict:
    """Tokens that were read and made, pictures' among them."""
    made = usage.text_tokens + usage.image_tokens
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": made}
    details = {"text_tokens": usage.text_tokens, "image_tokens": usage.image_tokens}
    return {**counts, "total_tokens": usage.prompt_tokens + made, "completion_tokens_details": details}


def data_url(image: Image.Image) -> str:
    """A picture as a PNG in a `data:` URL."""
    file = io.BytesIO()
    image.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _image_part(index: int, url: str) -> dict:
    return {"type": "image_url", "index": index, "image_url": {"url": url}}


def _finish(usage: Usage) -> str:
    return "length" if usage.truncated else "stop"


def _refuse_unknown(body: dict) -> None:
    for name, value in body.items():
        if name not in _KNOWN:
            raise bad(f"there is no parameter {shown(name)} in a conversation", str(name)[:80], "unknown_parameter")
        if name in _MUST_BE and value != _MUST_BE[name]:
            raise bad(f"{name} is {shown(value)}, which this server does not do; leave it out", name, "unsupported")


def _settings(body: dict, limits: Limits) -> dict:
    """The arguments of `TurnSettings`."""
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    if most is not None:
        most = checked("max_tokens", whole_number, most)
        limits.check("new_tokens", most, "max_tokens")
    drawing = body.get("drawing", {})
    if not isinstance(drawing, dict) or (unknown := sorted(set(drawing) - set(_OF_DRAWING), key=str)):
        wrong = shown(drawing) if not isinstance(drawing, dict) else shown(unknown[0])
        raise bad(f"drawing has {wrong}; it is an object of {', '.join(_OF_DRAWING)}", "drawing")
    if drawing.get("image_guidance_scale") not in (None, 1):
        raise bad("image_guidance_scale is for edits of a picture, not for conversations; leave it out", "drawing")
    plan = _plan(body)
    if (count := body.get("max_images")) is not None:
        limits.check("images", checked("max_images", whole_number, count), "max_images")
    limits.check("images", (plan or []).count("image"), "images of the plan")
    negative = drawing.get("negative_prompt")
    given = {
        "plan": plan, "read": body.get("read"), "reread": body.get("reread"), "max_images": count,
        "max_new_tokens": most, "seed": body.get("seed"), "path": drawing.get("path"),
        "height": drawing.get("height"), "width": drawing.get("width"),
        "negative_prompt": None if negative is None else take_text("negative_prompt", negative),
        **{own: body.get(name) for name, own in _TEXT_SETTINGS.items()},
        **{name: value for name, value in take_settings(drawing, limits).items() if name != "image_guidance_scale"},
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _plan(body: dict) -> list | None:
    """What the answer consists of; None = the model decides."""
    if "plan" in body:
        if "modalities" in body:
            raise bad("plan and modalities both say what the answer is; give one of them", "plan")
        plan = listed(body["plan"])
        if plan is None or len(plan) > 64:
            raise bad(f"plan is {shown(body['plan'])}; give a list of at most 64 of 'text' and 'image'", "plan")
        return plan
    given = body.get("modalities", ["image", "text"])
    names = tuple(sorted(map(str, given))) if isinstance(given, list) else ()
    if names not in _PLANS:
        raise bad(f"modalities is {shown(given)}; give ['text'], ['image'] or both", "modalities")
    return _PLANS[names]


# ---------------------------------------------------------------------------------------------------------- messages


def _messages(given: Any, limits: Limits) -> list[dict]:
    """The API's messages in our chat format, every picture read. Raises ApiError for what is none."""
    if not isinstance(given, list) or not given:
        raise bad(f"messages is {shown(given)}; send a list of at least one", "messages")
    limits.check("messages", len(given), "the number of messages")
    messages, images, characters = [], 0, 0
    for number, message in enumerate(given):
        here = f"messages[{number}]"
        parts = _parts(message, here)
        images += sum(kind == "image" for kind, _ in parts)
        characters += sum(len(value) for kind, value in parts if kind == "text")
        limits.check("images_in", images, "the number of images")
        limits.check("text_characters", characters, "the length of all texts")
        content = [
            {"type": kind, kind: take_data_url(here, value, limits) if kind == "image" else value}
            for kind, value in parts
        ]
        messages.append({"role": _ROLES[message["role"]], "content": content or ""})
    if messages[-1]["role"] != "user":
        raise bad("the last message must be the user's, for the assistant to reply to", "messages")
    return messages


def _parts(message: Any, here: str) -> list[tuple[str, Any]]:
    """(`text`, words) and (`image`, URL) of a message, in its order."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message["role"] not in _ROLES:
        raise bad(f"{here} is {shown(message)}; a message has a role of {', '.join(_ROLES)}, and content", here)
    role, content = message["role"], message.get("content")
    if unknown := set(message) - {"role", "content", "name", "images", "refusal", "tool_calls", "annotations", "audio"}:
        raise bad(f"{here} has {shown(sorted(unknown, key=str)[0])}, which is not read; leave it out", here)
    for name in ("tool_calls", "audio", "refusal"):
        if message.get(name):
            raise bad(f"{here} has {name}, which this server does not know; leave it out", here)
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    given = [] if content is None and role == "assistant" else given
    if not isinstance(given, list) or not (given or role == "assistant"):
        raise bad(f"{here} has content {shown(content)}; give a text or a list of parts", here)
    more = message.get("images") or []
    if more and (role != "assistant" or not isinstance(more, list)):
        raise bad(f"{here} has images, as the assistant's messages do; a user's stand in its content", here)
    parts = [_part(part, here) for part in [*given, *more]]
    return [part for part in parts if part != ("text", "") or len(parts) == 1]


def _part(part: Any, here: str) -> tuple[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return "text", take_text(f"{here}'s text", part.get("text"))
    if kind == "image_url":
        held = part.get("image_url")
        return "image", held.get("url") if isinstance(held, dict) else held
    raise bad(f"{here} has a part {shown(part)}; its type must be text or image_url", here)
