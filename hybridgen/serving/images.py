"""The API's requests for pictures, and what they are answered with: `/v1/images/generations` and `/v1/images/edits`.

Beside the API's own fields a request may have the pipeline's settings of drawing, by their names there, `path`, `seed`
and `negative_prompt`. A field that nothing here knows is refused; those in `_NO_EFFECT` say who asks, and change
nothing.
"""

import base64
import io
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hybridgen.core.names import OF_PATH, check_values
from hybridgen.core.values import choice, flag, number, shown, whole_number
from hybridgen.sampling.schedules import steps_taken
from hybridgen.sampling.seeds import check_seed
from hybridgen.serving.drawing import PictureCall
from hybridgen.serving.errors import bad
from hybridgen.serving.limits import Limits, take_text

SETTINGS = tuple(
    sorted({name for names in OF_PATH.values() for name in names} - {"precision"})
)  # that a client may set
_FORMATS = ("png", "jpeg", "webp")
_NO_EFFECT = ("user", "safety_identifier", "metadata", "prompt_cache_key", "store")
_ONLY = {"quality": ("auto",), "background": ("auto", "opaque"), "moderation": ("auto", "low")}  # nothing else is known
_TEXTS = ("prompt", "negative_prompt", "model", "path", "read", "size", "user")
_KNOWN = (
    *_TEXTS, *SETTINGS, *_NO_EFFECT, *_ONLY, "n", "seed", "strength", "response_format", "output_format",
    "output_compression", "stream", "partial_images", "precision",
)  # fmt: skip


@dataclass(frozen=True)
class ImagesRequest:
    """A request, checked as far as it can be without the model; made by `of`.

    Args:
        arguments: of `PictureCall.of`.
        file_format, quality: of the files that are sent back; quality 0 to 100, of those that lose.
        stream: whether pictures are sent as events, with `partial_images` previews.
    """

    arguments: dict
    file_format: str
    quality: int
    stream: bool
    partial_images: int

    @classmethod
    def of(
        cls, body: dict, limits: Limits, image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> "ImagesRequest":
        """
        Args:
            body: the request's fields.
            image: that is to be edited. It stands before the prompt, unless a mask or a strength says that it is
                redrawn; where `read` is said, it does both.
            mask: white where it is redrawn.

        Raises:
            ApiError: what a client can mend.
        """
        body = {name: value for name, value in body.items() if value is not None}
        _refuse_unknown(body)
        for name in _TEXTS:
            if name in body:
                take_text(name, body[name])
        if "prompt" not in body:
            raise bad("prompt is missing; say what is to be drawn", "prompt")
        limits.check("text_characters", len(body["prompt"]) + len(body.get("negative_prompt", "")), "prompt")
        count = checked("n", whole_number, body.get("n", 1))
        limits.check("images", count, "n")
        settings = take_settings(body, limits)
        height, width = _size(body.get("size", "auto"))
        texts = {name: body[name] for name in ("prompt", "negative_prompt", "path", "read") if name in body}
        arguments = {**texts, **settings, "count": count, "seed": _seed(body), "height": height, "width": width}
        if image is not None:
            arguments |= _edit(body, image, mask)
        elif "strength" in body:
            raise bad("strength is about the picture of an edit; leave it out", "strength")
        stream, previews = checked("stream", flag, body.get("stream", False)), body.get("partial_images", 0)
        previews = checked("partial_images", whole_number, previews, 0, 3)
        if previews and not stream:
            raise bad("partial_images come in a stream; set stream to true, or leave them out", "partial_images")
        file_format = checked("output_format", choice, body.get("output_format", "png"), _FORMATS)
        quality = checked("output_compression", whole_number, body.get("output_compression", 100), 0, 100)
        return cls(arguments, file_format, quality, stream, previews)

    def call(self, pipe, limits: Limits) -> PictureCall:
        """The pictures that it asks for. Raises ApiError or ValueError for what the model cannot draw."""
        path = pipe.writing_path(self.arguments.get("path"))
        tokens = pipe.processor.count_tokens(path, self.arguments["height"], self.arguments["width"])
        limits.check("image_tokens", tokens, "size in tokens")
        steps = tokens if path == "vq" else pipe.sampling_settings(path, **self._settings())["num_inference_steps"]
        if path != "vq":
            steps = steps_taken(steps, self.arguments.get("strength") or 1.0)
        every = max(1, steps // (self.partial_images + 1)) if self.partial_images else None
        return PictureCall.of(pipe, **self.arguments, preview_every=every)

    def _settings(self) -> dict:
        return {name: value for name, value in self.arguments.items() if name in SETTINGS}

    def encode(self, image: Image.Image) -> str:
        """A picture as a file in base64."""
        file = io.BytesIO()
        lossy = {} if self.file_format == "png" else {"quality": self.quality}
        image.save(file, self.file_format, **lossy)
        return base64.b64encode(file.getvalue()).decode()

    def response(self, call: PictureCall, images: list[Image.Image]) -> dict:
        """What the API answers."""
        data = [{"b64_json": self.encode(image), "seed": call.seed_of(i)} for i, image in enumerate(images)]
        return {"created": int(time.time()), **self._about(call), "usage": usage_of(call), "data": data}

    def event(self, kind: str, call: PictureCall, image: Image.Image, **more) -> dict:
        """An event of a stream: a preview, or the finished picture."""
        encoded = {"b64_json": self.encode(image), "created_at": int(time.time())}
        return {"type": kind, **encoded, **self._about(call), **more}

    def _about(self, call: PictureCall) -> dict:
        height, width = call.request.size
        about = {"size": f"{width}x{height}", "output_format": self.file_format}
        return {**about, "quality": "auto", "background": "opaque"}


def _edit(body: dict, image: Image.Image, mask: Image.Image | None) -> dict:
    """The arguments that say what is made of a picture. Raises ApiError for a strength that is none."""
    strength = body.get("strength")
    if mask is None and strength is None:
        return {"image": image}
    if strength is not None:
        strength = checked("strength", number, strength, 0, 1, "1 = drawn from noise alone", True)
    arguments = {"edit_image": image, "mask_image": mask, "strength": strength}
    if body.get("size", "auto") == "auto":
        arguments |= {"height": image.height, "width": image.width}
    return arguments | ({"image": image} if "read" in body else {})


def usage_of(call: PictureCall) -> dict:
    """Tokens that a request read and drew."""
    ids = call.request.rows[0].layout.input_ids
    placeholders = set(call.pipe.model.model.placeholders().values())
    images = sum(token in placeholders for token in ids)
    drawn = call.tokens * call.count
    details = {"text_tokens": len(ids) - images, "image_tokens": images}
    usage = {"input_tokens": len(ids), "output_tokens": drawn, "total_tokens": len(ids) + drawn}
    return {**usage, "input_tokens_details": details}


def take_settings(body: dict, limits: Limits) -> dict:
    """The settings of drawing among a request's fields. Raises ApiError for what means nothing, or asks too much."""
    settings = {name: body[name] for name in SETTINGS if body.get(name) is not None}
    for name in ("guidance_scale", "image_guidance_scale"):
        if name in settings:
            settings[name] = checked(name, number, settings[name])
    for name, value in settings.items():
        settings[name] = checked(name, lambda name, value: check_values({name: value})[name], value)
    limits.check("steps", settings.get("num_inference_steps"), "num_inference_steps")
    limits.check("window", settings.get("window"), "window")
    return settings


def checked(name: str, check, value: Any, *more):
    """A value as `check(name, value, ...)` of `core.values` returns it, its ValueError as an ApiError."""
    try:
        return check(name, value, *more)
    except ValueError as error:
        raise bad(str(error), name) from None


def fields_of_form(fields: dict[str, str]) -> dict:
    """Fields of a form, which are all texts, as those of JSON are."""
    return {name: value if name in _TEXTS else _as_json(value) for name, value in fields.items()}


def _as_json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _refuse_unknown(body: dict) -> None:
    for name, value in body.items():
        if name not in _KNOWN:
            raise bad(
                f"there is no parameter {shown(name)} in a request for pictures", str(name)[:80], "unknown_parameter"
            )
        if name in _ONLY and value not in _ONLY[name]:
            known = " or ".join(_ONLY[name])
            raise bad(f"{name} is {shown(value)}; this server knows {known} alone, leave it out", name)
    if "precision" in body:
        raise bad("precision is set for all requests, where the server is started; leave it out", "precision")
    if body.get("response_format", "b64_json") != "b64_json":
        raise bad("response_format is 'b64_json' on this server, which keeps no files to link to", "response_format")


def _seed(body: dict) -> int | None:
    return None if "seed" not in body else checked("seed", lambda name, seed: check_seed(seed), body["seed"])


def _size(size: str) -> tuple[int | None, int | None]:
    """Height and width of "WIDTHxHEIGHT"; None = as trained."""
    if size == "auto":
        return None, None
    if (sides := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)) is None:
        raise bad(f"size is {shown(size)}; give WIDTHxHEIGHT in pixels, such as 64x64, or auto", "size")
    return int(sides[2]), int(sides[1])
