"""The HTTP server: the routes of OpenAI's API on one pipeline (FastAPI, extra `serve`).

    POST /v1/images/generations, /v1/images/edits    `images`
    POST /v1/chat/completions                        `chat`
    GET  /v1/models, /v1/models/{name}               what is served
    GET  /health, /metrics                           whether it works; what it did, for Prometheus

A request is read and checked in a few threads, made by the engine, and encoded in a thread again; the event loop itself
never waits for any of that. A client that hangs up has its job cancelled before the next step. What is logged is where
something failed, never what a request said.
"""

import asyncio
import functools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread

from hybridgen.chat.events import ImageDone, TextDelta, Usage
from hybridgen.sampling.tasks import Task
from hybridgen.serving import chat
from hybridgen.serving.drawing import PictureCall, Preview
from hybridgen.serving.engine import Engine, Failed, Finished
from hybridgen.serving.errors import ApiError, as_api_error, bad
from hybridgen.serving.gate import HUNG_UP, Gate, error_response, json_response
from hybridgen.serving.images import ImagesRequest, fields_of_form, usage_of
from hybridgen.serving.limits import Limits, parse_json, take_mask, take_picture
from hybridgen.serving.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:  # the extra, which is imported where it is needed: the command line knows of this file without it
    from fastapi import FastAPI, Request
    from fastapi.responses import Response, StreamingResponse
    from starlette.exceptions import HTTPException

_READERS = 2  # threads that read requests and write pictures
_FORM_FIELDS, _FORM_FILES = 64, 16


class HungUp(Exception):
    """The client went away before it was answered."""


class Server:
    """One pipeline behind the API.

    Args:
        pipe: the `HybridGenPipeline`.
        name: of the model, as clients ask for it.
        engine: that makes the requests; the server closes it.
        limits: of requests.
        grace: seconds that running requests have when the server ends.
    """

    def __init__(self, pipe, name: str, engine: Engine, limits: Limits, grace: float):
        self.pipe, self.name, self.engine, self.limits, self.grace = pipe, name, engine, limits, grace
        self.metrics, self.started = Metrics(engine), int(time.time())
        self._threads = CapacityLimiter(_READERS)

    def app(self, key: str | None = None) -> "FastAPI":
        """
        Args:
            key: a bearer key that every request needs; None = none does.
        """
        from fastapi import FastAPI
        from starlette.exceptions import HTTPException

        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan)
        routes = {
            "/v1/images/generations": ("POST", self.generate), "/v1/images/edits": ("POST", self.edit),
            "/v1/chat/completions": ("POST", self.converse), "/v1/models": ("GET", self.models),
            "/v1/models/{name:path}": ("GET", self.model), "/health": ("GET", self.health),
            "/metrics": ("GET", self.metrics_page),
        }  # fmt: skip
        for path, (method, answer) in routes.items():
            app.add_route(path, _answering(answer, path), methods=[method])
        app.add_exception_handler(HTTPException, _no_such_route)
        app.add_middleware(Gate, limits=self.limits, key=key, count=self.metrics.count)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: "FastAPI") -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(self.engine.close, self.grace)

    # ---------------------------------------------------------------------------------------------------- pictures

    async def generate(self, request: "Request") -> "Response":
        body = await self._json(request)
        asked = await self._in_thread(ImagesRequest.of, body, self.limits)
        return await self._draw(request, asked, "image_generation")

    async def edit(self, request: "Request") -> "Response":
        """The picture that is edited stands before the prompt, as `image` does in a call of the pipeline; with a mask
        it is redrawn there, as its `edit_image` is."""
        fields, files = await self._form(request)
        self._check_model(fields.get("model"))
        pictures = [content for name, content in files if name in ("image", "image[]")]
        if unknown := [name for name, _ in files if name not in ("image", "image[]", "mask")]:
            raise bad(f"there is no file {unknown[0][:80]!r} in an edit; there are image and mask", unknown[0][:80])
        masks = [content for name, content in files if name == "mask"]
        if len(masks) > 1:
            raise bad(f"an edit has one mask, but {len(masks)} were sent", "mask")
        if len(pictures) != 1:
            raise bad(f"an edit is of one image, but {len(pictures)} were sent", "image")
        image = await self._in_thread(take_picture, "image", pictures[0], self.limits)
        mask = await self._in_thread(take_mask, "mask", masks[0], self.limits, image.size) if masks else None
        asked = await self._in_thread(ImagesRequest.of, fields_of_form(fields), self.limits, image, mask)
        return await self._draw(request, asked, "image_edit")

    async def _draw(self, request: "Request", asked: ImagesRequest, kind: str) -> "Response":
        call = await self._in_thread(asked.call, self.pipe, self.limits)
        items = self._made(request, call.task(), call.rows)
        if asked.stream:
            return _stream(self._image_events(items, asked, call, kind), named=True)
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Finished):
                    return json_response(await self._in_thread(asked.response, call, item.result))
        raise HungUp

    async def _image_events(
        self, items: AsyncIterator, asked: ImagesRequest, call: PictureCall, kind: str
    ) -> AsyncIterator[dict]:
        previews = 0
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Preview) and previews < asked.partial_images:
                    more = {"partial_image_index": previews}
                    previews += 1
                    yield await self._in_thread(asked.event, f"{kind}.partial_image", call, item.images[0], **more)
                elif isinstance(item, Finished):
                    for image in item.result:
                        more = {"usage": usage_of(call)}
                        yield await self._in_thread(asked.event, f"{kind}.completed", call, image, **more)

    # ------------------------------------------------------------------------------------------------ conversations

    async def converse(self, request: "Request") -> "Response":
        body = await self._json(request)
        asked = await self._in_thread(chat.ChatRequest.of, body, self.limits)
        turn = await self._in_thread(asked.turn, self.pipe, self.limits)
        rows = 2 if turn.drawing is not None and turn.drawing.guided else 1
        items, answer = self._made(request, turn.task(), rows), chat.ChatAnswer(self.name)
        if asked.stream:
            return _stream(self._chunks(items, answer, asked.with_usage), last="[DONE]")
        texts, urls = [], []
        async with aclosing(items):
            async for item in items:
                if isinstance(item, TextDelta):
                    texts.append(item.text)
                elif isinstance(item, ImageDone):
                    urls.append(await self._in_thread(chat.data_url, item.image))
                elif isinstance(item, Usage):
                    return json_response(answer.whole("".join(texts), urls, item))
        raise HungUp

    async def _chunks(self, items: AsyncIterator, answer: chat.ChatAnswer, with_usage: bool) -> AsyncIterator[dict]:
        yield answer.chunk({"role": "assistant", "content": ""})
        async with aclosing(items):
            async for item in items:
                if isinstance(item, TextDelta):
                    yield answer.chunk({"content": item.text})
                elif isinstance(item, ImageDone):
                    url = await self._in_thread(chat.data_url, item.image)
                    yield answer.chunk(answer.image_delta(item.index, url))
                elif isinstance(item, Usage):
                    yield answer.chunk({}, item)
                    if with_usage:
                        yield answer.usage_chunk(item)

    # ----------------------------------------------------------------------------------------------- what is served

    async def models(self, request: "Request") -> "Response":
        return json_response({"object": "list", "data": [self._about()]})

    async def model(self, request: "Request") -> "Response":
        self._check_model(request.path_params["name"])
        return json_response(self._about())

    def _about(self) -> dict:
        paths = list(self.pipe.model.config.paths)
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "hybridgen", "paths": paths}

    def _check_model(self, name: Any) -> None:
        """A request may leave the model out, but not ask for another."""
        if name is not None and name != self.name:
            sentence = f"this server has no model of that name, only {self.name!r}; see /v1/models"
            raise ApiError(404, sentence, param="model", code="model_not_found")

    async def health(self, request: "Request") -> "Response":
        alive = self.engine.is_alive
        return json_response({"status": "ok" if alive else "shutting down"}, 200 if alive else 503)

    async def metrics_page(self, request: "Request") -> "Response":
        from fastapi.responses import Response

        return Response(self.metrics.page(), media_type=CONTENT_TYPE)

    # ------------------------------------------------------------------------------------------- requests and jobs

    async def _json(self, request: "Request") -> dict:
        """A request's object, for a model that there is."""
        body = await self._in_thread(parse_json, await request.body())
        self._check_model(body.get("model"))
        return body

    async def _form(self, request: "Request") -> tuple[dict[str, str], list[tuple[str, bytes]]]:
        """Fields and files of a form, each field once."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise bad("an edit is sent as multipart/form-data, with the file image and the field prompt")
        from starlette.exceptions import HTTPException
        from starlette.formparsers import MultiPartException

        fields: dict[str, str] = {}
        files: list[tuple[str, bytes]] = []
        try:
            async with request.form(
                max_files=_FORM_FILES, max_fields=_FORM_FIELDS, max_part_size=self.limits.text_characters * 4
            ) as form:
                for name, value in form.multi_items():
                    if not isinstance(value, str):
                        files.append((name, await value.read()))
                    elif name in fields:
                        raise bad(f"{name[:80]} is given twice", name[:80])
                    else:
                        fields[name] = value
        except (HTTPException, MultiPartException) as error:
            reason = getattr(error, "detail", None) or getattr(error, "message", "")
            raise bad(f"the form cannot be read ({str(reason)[:200]})", code="invalid_form") from None
        return fields, files

    async def _in_thread(self, function: Callable, *args, **kwargs) -> Any:
        return await to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=self._threads)

    def _made(self, request: "Request", task: Task, rows: int) -> AsyncIterator:
        """A task's events as the engine makes it, `Finished` last. It is submitted at once, and cancelled where the
        client hangs up or the iterator is closed.

        Raises:
            QueueFull, EngineClosed: at once.
        """
        loop, box = asyncio.get_running_loop(), asyncio.Queue()
        deadline = time.monotonic() + self.limits.seconds
        job = self.engine.submit(task, rows, lambda item: loop.call_soon_threadsafe(box.put_nowait, item), deadline)

        async def items() -> AsyncIterator:
            gone = asyncio.ensure_future(_hung_up(request))
            try:
                while True:
                    item = asyncio.ensure_future(box.get())
                    await asyncio.wait({item, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not item.done():
                        item.cancel()
                        raise HungUp
                    if isinstance(item.result(), Failed):
                        raise item.result().error
                    yield item.result()
                    if isinstance(item.result(), Finished):
                        return
            finally:
                job.cancel()
                gone.cancel()

        return items()


async def _hung_up(request: "Request") -> None:
    """Waits until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _stream(events: AsyncIterator[dict], named: bool = False, last: str | None = None) -> "StreamingResponse":
    """Server-sent events.

    Args:
        named: each by its `type`.
        last: what is sent after all of them.
    """

    async def lines() -> AsyncIterator[str]:
        try:
            async with aclosing(events):
                async for event in events:
                    name = f"event: {event['type']}\n" if named else ""
                    yield f"{name}data: {json.dumps(event)}\n\n"
        except HungUp:
            return
        except Exception as error:  # the status is sent already, so the error is an event, as in the API
            body = as_api_error(error).body()
            yield f"{'event: error' + chr(10) if named else ''}data: {json.dumps(body)}\n\n"
            return
        if last is not None:
            yield f"data: {last}\n\n"

    from fastapi.responses import StreamingResponse

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _answering(answer: Callable, path: str) -> Callable:
    """A route's function, every error of which is an answer: nothing of it gets to the web server's own log."""

    async def answered(request: "Request") -> "Response":
        try:
            return await answer(request)
        except HungUp:
            return json_response({}, HUNG_UP)  # nobody reads it
        except Exception as error:
            return error_response(error)

    answered.route = path  # as it is counted
    return answered


async def _no_such_route(request: "Request", error: "HTTPException") -> "Response":
    words = {404: "there is nothing at this address; see docs/serving.md", 405: "this address takes another method"}
    sentence = words.get(error.status_code, "the request cannot be read")
    return error_response(ApiError(error.status_code, sentence, code="not_found", headers=dict(error.headers or {})))


def create_app(
    pipe, name: str, key: str | None = None, limits: Limits | None = None, max_rows: int = 64, max_waiting: int = 256,
    grace: float = 30.0,
) -> "FastAPI":  # fmt: skip
    """The server of a pipeline as an ASGI application, with an engine of its own; see `Server` and `Engine`."""
    engine = Engine(max_rows, max_waiting)
    return Server(pipe, name, engine, Limits() if limits is None else limits, grace).app(key)
