"""What the web page does, without the page: pictures, answers, conversations and replays, shown as they come.

Each function is an asynchronous generator over what there is to see by now. It checks everything before it yields, so
that a mistake is one sentence (`serving.errors`), and closing it cancels what was not done. What is made goes through
the server's engine and within the server's bounds.
"""

import asyncio
import copy
import functools
import hashlib
import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from anyio import CapacityLimiter, to_thread
from PIL import Image

from hybridgen.chat.events import ImageDone, ImagePreview, ImageStarted, TextDelta, Usage
from hybridgen.chat.turn import Conversation, Turn
from hybridgen.checkpoints.manifest import make_manifest
from hybridgen.checkpoints.png import png_bytes, png_text, png_texts, slug
from hybridgen.checkpoints.replaying import (
    call_arguments,
    check_weights,
    compare,
    drawn_here,
    read_manifest,
    scheduler_of,
)
from hybridgen.core.names import OF_PATH, SHORT_NAMES, WRITING_PATHS
from hybridgen.core.pictures import pixels_hash
from hybridgen.core.utf8 import check_text
from hybridgen.core.values import shown
from hybridgen.sampling.edits import HALF
from hybridgen.sampling.seeds import new_seed
from hybridgen.sampling.tasks import Task
from hybridgen.serving.chat import turn_of, turn_settings
from hybridgen.serving.drawing import PictureCall, Preview
from hybridgen.serving.engine import Engine, Failed, Finished
from hybridgen.serving.errors import as_api_error, bad
from hybridgen.serving.images import ImagesRequest
from hybridgen.serving.limits import Limits, take_picture

PREVIEWS = 8  # of a picture while it is drawn, about
CUT = " […] (cut off where its tokens ran out)"
_THREADS = 2  # that read requests and write pictures
_GRAY = (128, 128, 128)  # where nothing is drawn yet


@dataclass(frozen=True)
class File:
    """A picture that was uploaded, or painted.

    Args:
        name: of the file; a picture that is drawn from it says so.
    """

    name: str
    content: bytes


@dataclass(frozen=True)
class Shown:
    """What there is to see of a picture.

    Args:
        words: about it, or why there is none.
        png: the file; None = nothing yet.
        manifest: of a finished picture, which its file holds too.
    """

    words: str
    png: bytes | None = None
    manifest: dict | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        if self.manifest is None:
            return "preview.png"
        return f"{slug(self.manifest['prompt'])}-{self.manifest['path']}-seed{self.manifest['seed']}.png"


class Studio:
    """What the page does, for one pipeline.

    Args:
        pipe: the `HybridGenPipeline`.
        name: of the model.
        engine: that makes everything.
        limits: of what may be asked for.
    """

    def __init__(self, pipe, name: str, engine: Engine, limits: Limits):
        self.pipe, self.name, self.engine, self.limits = pipe, name, engine, limits
        self._threads = CapacityLimiter(_THREADS)

    @property
    def reading_paths(self) -> list[str]:
        """By which the model sees."""
        return list(self.pipe.model.config.paths)

    @property
    def writing_paths(self) -> list[str]:
        """By which it draws."""
        return [path for path in WRITING_PATHS if path in self.pipe.model.config.paths]

    @property
    def size(self) -> str:
        """Of a picture as it was trained, WIDTHxHEIGHT; empty where the model knows of none."""
        if self.pipe.processor.default_size is None:
            return ""
        height, width = self.pipe.processor.size_of(None, None)
        return f"{width}x{height}"

    def settings(self, path: str) -> dict:
        """How a path draws where nothing else is said."""
        return self.pipe.sampling_settings(path)

    # ---------------------------------------------------------------------------------------------------- pictures

    async def draw(
        self,
        prompt: str,
        negative_prompt: str,
        seed: str,
        size: str,
        settings: dict[str, dict],
        edit: tuple[File, File] | None = None,
    ) -> AsyncIterator[tuple[str, Shown]]:
        """A prompt by several paths at once, from one seed; (path, what there is to see of it).

        Args:
            seed: digits; empty = another each time.
            size: WIDTHxHEIGHT; empty = as trained.
            settings: of each path that is to draw, None = as the checkpoint says; `strength` where a picture is edited.
            edit: a picture that is redrawn, and its mask, white where it is.

        Raises:
            ApiError, ValueError: what no path can draw. What one of them cannot is said in its place.
        """
        if not settings:
            raise bad("no path is chosen; tick at least one")
        body = {
            "prompt": prompt, "negative_prompt": negative_prompt or None, "size": size.strip() or "auto",
            "seed": new_seed() if seed_in(seed) is None else seed_in(seed),
        }  # fmt: skip
        pictures = () if edit is None else await self._in_thread(self._edited, *edit)
        asked = {
            path: ImagesRequest.of({**body, "path": path, **given}, self.limits, *pictures)
            for path, given in settings.items()
        }
        calls, refused = {}, {}
        for path, request in asked.items():
            try:
                calls[path] = await self._in_thread(self._asked_for, request, edit)
            except Exception as error:
                refused[path] = error
        if not calls:
            raise next(iter(refused.values()))
        for path, error in refused.items():
            yield path, Shown(as_api_error(error).message)
        async with aclosing(self._drawn(calls)) as pictures:
            async for path, picture in pictures:
                yield path, picture

    def _edited(self, picture: File, mask: File) -> tuple[Image.Image, Image.Image]:
        """A picture and its mask, read. Raises ApiError where the mask leaves nothing to be drawn."""
        image, region = (
            take_picture(name, file.content, self.limits) for name, file in (("the picture", picture), ("mask", mask))
        )
        if max(high for _, high in region.getextrema()) < HALF:
            raise bad("the mask is black all over; paint white what is to be redrawn", "mask")
        return image, region

    def _asked_for(self, request: ImagesRequest, edit: tuple[File, File] | None) -> tuple[PictureCall, dict]:
        """The picture that a request asks for, and its manifest."""
        call = request.call(self.pipe, self.limits)
        setup, given = call.setup, request.arguments
        origin = None
        if edit is not None:
            images = given["edit_image"], given["mask_image"]
            of_picture, of_mask = (_origin_of(file, image) for file, image in zip(edit, images, strict=True))
            origin = {**of_picture, "mask": of_mask, "strength": setup.strength}
        return call, make_manifest(
            self.pipe, self.pipe.origin, setup.path, given["prompt"], call.seed, call.request.size, setup.settings,
            negative_prompt=given.get("negative_prompt"), edit=origin,
        )  # fmt: skip

    async def _drawn(self, calls: dict[str, tuple[PictureCall, dict]]) -> AsyncIterator[tuple[str, Shown]]:
        """Pictures, each with its manifest, as they come; the last of each is finished, or says why not."""
        started = time.monotonic()
        tasks = {}
        for name, (call, _) in calls.items():
            call = replace(call, preview_every=max(1, call.steps // PREVIEWS))
            tasks[name] = call.task(), call.rows
            yield name, Shown("waiting")
        async with aclosing(self._made(tasks)) as items:
            async for name, item in items:
                call, manifest = calls[name]
                if isinstance(item, Preview):
                    words = f"{'code' if call.setup.path == 'vq' else 'step'} {item.step} of {call.steps}"
                    yield name, await self._in_thread(_in_progress, words, item.images[0], call.request.size)
                elif isinstance(item, Failed):
                    yield name, Shown(as_api_error(item.error).message)
                else:
                    more = f" · {time.monotonic() - started:.1f} s"
                    yield name, await self._in_thread(_finished, item.result[0], manifest, more)

    # ------------------------------------------------------------------------------------------------------ replays

    def manifest_of(self, png: bytes) -> dict:
        """What a PNG says of how it was drawn. Raises ApiError, ValueError where it says nothing that can be drawn."""
        what = "the picture"
        take_picture(what, png, self.limits)
        return read_manifest(png_texts(io.BytesIO(png)), what)

    async def replay(self, png: bytes) -> AsyncIterator[Shown]:
        """A picture drawn again as its PNG says; in the end whether it is the same.

        Raises:
            ApiError, ValueError: it says nothing, or of other weights, or more than may be asked for.
        """
        before = await self._in_thread(take_picture, "the picture", png, self.limits)
        manifest = await self._in_thread(self.manifest_of, png)
        call = await self._in_thread(self._call_again, manifest)
        new_manifest = drawn_here(manifest, self.pipe.model.device.type)
        async with aclosing(self._drawn({"again": (call, new_manifest)})) as pictures:
            async for _, picture in pictures:
                if picture.manifest is not None:
                    after = Image.open(io.BytesIO(picture.png)).convert("RGB")
                    picture = replace(picture, words=compare(before, after, manifest, new_manifest)[1])
                yield picture

    def _call_again(self, manifest: dict) -> PictureCall:
        """What a manifest asks for, within the server's bounds."""
        origin, what = self.pipe.origin, "the picture"
        if not origin:
            raise ValueError(
                "the weights of this model have changed since they were loaded, so nothing can be replayed"
            )
        check_weights(manifest, origin, f"the model {self.name}")
        if manifest.get("image") is not None or manifest.get("edit") is not None:
            raise ValueError(
                "the picture was drawn from another, which its file does not hold; `hybridgen replay` looks for that"
            )
        if manifest.get("dtype", "float32") != str(self.pipe.model.dtype).removeprefix("torch."):
            raise ValueError(f"the picture was drawn in {manifest['dtype']}, which this model is not; start it so")
        pipe, arguments = self.pipe, call_arguments(manifest)
        if (scheduler := scheduler_of(manifest, what)) is not None:
            pipe = copy.copy(pipe)
            pipe.scheduler = scheduler
        path = pipe.writing_path(arguments["path"])
        for name, value in (
            ("image_tokens", pipe.processor.count_tokens(path, arguments["height"], arguments["width"])),
            ("steps", arguments.get("num_inference_steps")),
            ("window", arguments.get("window")),
        ):
            self.limits.check(name, value)
        return PictureCall.of(pipe, **arguments)

    # ------------------------------------------------------------------------------------------------------ answers

    async def ask(self, png: bytes, question: str, paths: list[str], tokens: int) -> AsyncIterator[tuple[str, str]]:
        """A question about a picture, by several paths at once; (path, the answer as far as it has come)."""
        if not paths:
            raise bad("no path is chosen; tick at least one")
        turns = {path: await self._in_thread(self._question, png, question, path, tokens) for path in paths}
        texts = dict.fromkeys(paths, "")
        async with aclosing(self._made({path: (turn.task(), 1) for path, turn in turns.items()})) as items:
            async for path, item in items:
                if isinstance(item, TextDelta):
                    texts[path] += item.text
                elif isinstance(item, Failed):
                    texts[path] = as_api_error(item.error).message
                elif isinstance(item, Usage) and item.truncated:
                    texts[path] += CUT
                yield path, texts[path]

    def _question(self, png: bytes, question: str, path: str, tokens: int) -> Turn:
        settings = turn_settings({"plan": ["text"], "read": path, "max_tokens": tokens}, self.limits)
        return turn_of(self.pipe, Conversation(), [self._message(question, [png])], settings, self.limits)

    def _message(self, text: str, pictures: list[bytes]) -> dict:
        """The user's, every picture read."""
        self.limits.check("text_characters", len(check_text(text, "the text")), "the length of the text")
        self.limits.check("images_in", len(pictures), "the number of pictures")
        content: list[dict] = [
            {"type": "image", "image": take_picture("the picture", picture, self.limits)} for picture in pictures
        ]
        return {"role": "user", "content": [*content, {"type": "text", "text": text}] if text else content or ""}

    async def reply(
        self, before: Conversation, text: str, pictures: list[bytes], settings: dict
    ) -> AsyncIterator[tuple[list[str | Shown], Conversation | None]]:
        """A turn of a conversation: its parts as far as they have come and, with the last of them, the conversation.

        Keys and values are not kept between turns, which would fill the memory of the server with what is idle.

        Args:
            settings: fields of a request, see `serving.chat`.
        """
        if not text.strip() and not pictures:
            raise bad("there is nothing to answer; write something, or add a picture")
        turn = await self._in_thread(self._turn, before, text, pictures, settings)
        rows = 2 if turn.drawing is not None and turn.drawing.guided else 1
        parts: list[str | Shown] = []
        async with aclosing(self._made({"turn": (turn.task(), rows)})) as items:
            async for _, item in items:
                if isinstance(item, Failed):
                    raise item.error
                if isinstance(item, Finished):
                    yield parts, replace(turn.conversation, cond=None, uncond=None)
                else:
                    parts = await self._in_thread(_with_event, parts, item, turn)
                    yield parts, None

    def _turn(self, before: Conversation, text: str, pictures: list[bytes], settings: dict) -> Turn:
        self.limits.check("messages", len(before.messages) + 1, "the number of messages")
        given = {name: value for name, value in settings.items() if value is not None}
        settings = turn_settings(given, self.limits)
        turn = turn_of(self.pipe, before, [self._message(text, pictures)], settings, self.limits)
        if turn.drawing is None:
            return turn
        steps = turn.drawing.tokens if turn.drawing.path == "vq" else turn.drawing.setup.num_inference_steps
        turn.request = replace(turn.request, preview_every=max(1, steps // PREVIEWS))
        return turn

    # ------------------------------------------------------------------------------------------------------ the work

    async def _in_thread(self, function: Callable, *args) -> Any:
        return await to_thread.run_sync(functools.partial(function, *args), limiter=self._threads)

    async def _made(self, tasks: dict[str, tuple[Task, int]]) -> AsyncIterator[tuple[str, Any]]:
        """What tasks of some rows deliver, each under its name, as it comes; last of each `Finished` or `Failed`. All
        of them are cancelled where this is closed."""
        loop, box, jobs = asyncio.get_running_loop(), asyncio.Queue(), []
        deadline, left = time.monotonic() + self.limits.seconds, len(tasks)

        def deliver(name: str, item: Any) -> None:
            loop.call_soon_threadsafe(box.put_nowait, (name, item))

        try:
            for name, (task, rows) in tasks.items():
                jobs.append(self.engine.submit(task, rows, functools.partial(deliver, name), deadline))
            while left:
                name, item = await box.get()
                left -= isinstance(item, Finished | Failed)
                yield name, item
        finally:
            for job in jobs:
                job.cancel()


def _with_event(parts: list[str | Shown], event: Any, turn: Turn) -> list[str | Shown]:
    """The parts of a turn after one more event."""
    before, last = parts[:-1], parts[-1] if parts else ""
    if isinstance(event, TextDelta):
        return [*before, last + event.text] if isinstance(last, str) else [*parts, event.text]
    if isinstance(event, ImageStarted):
        return [*parts, Shown("begins to draw")]
    if isinstance(event, ImagePreview):
        return [*before, _in_progress("drawing", event.image, turn.drawing.size)]
    if isinstance(event, ImageDone):
        return [*before, _finished(event.image, event.manifest)]
    if isinstance(event, Usage) and event.truncated:
        return [*before, last + CUT] if isinstance(last, str) else [*parts, CUT]
    return parts


def _origin_of(file: File, image: Image.Image) -> dict:
    """As `checkpoints.manifest` says it of files; this one is in none that stays."""
    digest = hashlib.sha256(file.content).hexdigest()
    return {"file": file.name, "sha256": digest, "pixels": pixels_hash(image).hex()}


def seed_in(text: str) -> int | None:
    """A seed as it is typed; None = nothing is. Raises ApiError for what is none."""
    digits = text.strip()
    if digits and not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        raise bad(f"the seed is {shown(digits)}; give a whole number, or leave it empty", "seed")
    return int(digits) if digits else None


def _in_progress(words: str, image: Image.Image, size: tuple[int, int]) -> Shown:
    """A preview in the size (height, width) that the picture will have: nothing on the page moves when it grows."""
    whole = Image.new("RGB", size[::-1], _GRAY)
    whole.paste(image, (0, 0))
    return Shown(words, png_bytes(whole, {}))


def _finished(image: Image.Image, manifest: dict, more: str = "") -> Shown:
    """A finished picture, and what made it in a line."""
    names = ("num_inference_steps", "guidance_scale", "temperature")
    settings = {name: manifest["settings"][name] for name in OF_PATH[manifest["path"]] if name in names}
    words = [f"{SHORT_NAMES.get(name, name)} {value:g}" for name, value in settings.items()]
    line = " · ".join([f"seed {manifest['seed']}", *words])
    return Shown(line + more, png_bytes(image, png_text(manifest)), manifest)
