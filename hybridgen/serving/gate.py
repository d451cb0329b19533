"""What stands before every route: the key, the size and the time of a request's body, and what is counted of it.

Plain ASGI, so that bytes are counted as they come, and a client that hangs up is noticed where its request is made.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hybridgen.serving.errors import ApiError, as_api_error, bad
from hybridgen.serving.limits import Limits

if TYPE_CHECKING:  # an extra
    from starlette.responses import Response

OPEN = ("/health",)  # for everybody: whoever watches over servers has no key
HUNG_UP = 499  # the status of a request whose client went away, as nginx counts it


class Gate:
    """
    Args:
        app: what stands behind.
        key: a bearer key that every request needs; None = none does.
        count: called with the route, the status and the seconds of each request.
    """

    def __init__(self, app, limits: Limits, key: str | None, count: Callable[[str, int, float], None]):
        self.app, self.limits, self.count = app, limits, count
        self._digest = None if key is None else _digest(key.encode())

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), HUNG_UP

        async def counted_send(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, counted_send)
        finally:
            route = getattr(scope.get("endpoint"), "route", "unknown")
            self.count(route, status, time.monotonic() - started)

    async def _answer(self, scope, receive, send) -> None:
        headers = dict(scope["headers"])
        try:
            if scope["path"] not in OPEN:
                self._check_key(headers.get(b"authorization", b""))
            self._check_length(headers.get(b"content-length"))
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, self._bounded(receive), send)

    def _check_key(self, authorization: bytes) -> None:
        """In the same time whatever the key is: digests are compared, and all of them."""
        if self._digest is None:
            return
        kind, _, given = authorization.partition(b" ")
        if not hmac.compare_digest(_digest(given.strip()), self._digest) or kind.lower() != b"bearer":
            headers = {"www-authenticate": "Bearer"}
            sentence = "the key is missing or wrong; send it as Authorization: Bearer KEY"
            raise ApiError(401, sentence, "authentication_error", code="invalid_api_key", headers=headers)

    def _check_length(self, given: bytes | None) -> None:
        if given is not None and (not given.isdigit() or int(given[:20]) > self.limits.body_bytes):
            raise self._too_long()

    def _too_long(self) -> ApiError:
        sentence = f"the request has more than the {self.limits.body_bytes} bytes that this server reads; send less"
        return bad(sentence, code="request_too_large", status=413)

    def _bounded(self, receive):
        """`receive`, with an end to the bytes and the seconds of a body."""
        read, ends, whole = 0, time.monotonic() + self.limits.upload_seconds, False

        async def bounded():
            nonlocal read, whole
            if whole:  # nothing but the end of the connection comes now
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, ends - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                sentence = f"the request was not sent in {self.limits.upload_seconds:g} s; send less, or faster"
                raise bad(sentence, code="request_too_slow", status=408) from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self.limits.body_bytes:
                raise self._too_long()
            return message

        return bounded


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def json_response(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
    """In ASCII, so that half a surrogate pair that a client sent does no harm on its way back."""
    from starlette.responses import Response

    return Response(json.dumps(content), status, headers, "application/json")


def error_response(error: BaseException) -> "Response":
    """An error in the form of the API."""
    told = as_api_error(error)
    return json_response(told.body(), told.status, told.headers)
