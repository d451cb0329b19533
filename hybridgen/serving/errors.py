"""Errors in the form of the API: {"error": {"message", "type", "param", "code"}} and a status.

A request that cannot be is 4xx with one sentence, the pipeline's own where it refuses; what failed here is 500 with a
sentence that tells nothing of it: the log has the place, without the words of the request.
"""

import logging
import traceback

from hybridgen.core.faults import is_for_the_user
from hybridgen.core.values import one_line
from hybridgen.serving.engine import DeadlinePassed, EngineClosed, QueueFull

log = logging.getLogger("hybridgen.serving")


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: one sentence, for the client.
        kind: `type` of the API: invalid_request_error, authentication_error, rate_limit_error, server_error, ...
        param: which part of the request, where it is one.
        code: a word for programs.
        headers: more of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = headers or {}

    def body(self) -> dict:
        """What the client is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> ApiError:
    """A request that its client can mend."""
    return ApiError(status, message, param=param, code=code)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error; one that is a fault of ours is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        headers = {"retry-after": str(error.retry_after)}
        return ApiError(429, str(error), "rate_limit_error", code="queue_full", headers=headers)
    if isinstance(error, DeadlinePassed):
        return ApiError(504, str(error), "timeout_error", code="deadline_passed")
    if isinstance(error, EngineClosed):
        return ApiError(503, str(error), "server_error", code="shutting_down", headers={"retry-after": "5"})
    if isinstance(error, ValueError) and is_for_the_user(error):
        return bad(one_line(error))
    log_fault(error)
    return ApiError(500, "the server failed to do this; its log says where", "server_error", code="internal_error")


def log_fault(error: BaseException) -> None:
    """The kind and the place of a fault of ours. Not its words: they may be those of a request."""
    places = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    log.error("%s in the making of a request\n%s", type(error).__name__, places)
