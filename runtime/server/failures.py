"""What a request can fail with, over HTTP.

In: errors of ramet and of the server's own checks. Out: a `Failure`: status, OpenAI's error object, headers.

Every path answers errors in this one shape; protocols with a shape of their own (Anthropic, Ollama, SGLang) translate
it at their edge.
"""

from __future__ import annotations

import math

from ramet.frontend import errors


class Failure(Exception):
    """An answer that is not 200. `type` and `code` are OpenAI's words; `param` names the field; `retry_after` in
    seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, object]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` (whole seconds, at least 1) and `retry-after-ms`, where there is something to wait for."""
        if self.retry_after is None:
            return {}
        return {
            "Retry-After": str(max(1, math.ceil(self.retry_after))),
            "retry-after-ms": str(max(1, math.ceil(self.retry_after * 1000))),
        }


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> Failure:
    """400: the request cannot be meant as it is."""
    return Failure(400, message, code=code, param=param)


def unsupported(field: str, message: str) -> Failure:
    """400: understood, and not offered; never ignored."""
    return Failure(400, message, code="unsupported_parameter", param=field)


def too_long(context: int, prompt: int, completion: int | None) -> Failure:
    """400 `context_length_exceeded`, in the sentence that clients look for. The field is the protocol's to name (see
    `wire.StrictRoute`)."""
    asked = prompt + (completion or 0)
    parts = f"{prompt} in the prompt" + (f", {completion} in the completion" if completion is not None else "")
    return Failure(
        400,
        f"This model's maximum context length is {context} tokens. However, you requested {asked} tokens ({parts}). "
        "Please reduce the length of the prompt or of the completion.",
        code="context_length_exceeded",
    )


def overloaded(message: str, retry_after: float) -> Failure:
    """429: the queue is full; `retry_after` seconds until it should have drained."""
    return Failure(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=retry_after)


def unavailable(message: str, retry_after: float) -> Failure:
    """503: draining, or the engine is being restarted."""
    return Failure(503, message, type="overloaded_error", code="unavailable", retry_after=retry_after)


def late(message: str) -> Failure:
    """504: the deadline passed."""
    return Failure(504, message, type="timeout_error", code="deadline_exceeded")


def of(error: BaseException) -> Failure:
    """The failure that an exception is. What is not foreseen is a 500 without its innards."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, errors.ContextOverflow):
        return Failure(400, str(error), code="context_length_exceeded")
    if isinstance(error, errors.ConstraintError | errors.StateError | errors.ModelError):
        return bad(str(error))  # a ModelError of a request: its chat is more than the template may render
    if isinstance(error, errors.TransportError | errors.OverloadedError):
        return unavailable(str(error), 1.0)
    if isinstance(error, errors.ProgramTimeout):
        return late(str(error))
    return Failure(500, "the server failed to answer this request", type="server_error", code="internal_error")


def of_event(kind: str, message: str) -> Failure:
    """The failure that a `Failed` or `Ended` event of kind `kind` (a key of `errors.FAILURES`) means."""
    if kind == "context":
        return Failure(400, message, code="context_length_exceeded")
    if kind == "constraint":
        return bad(message)
    if kind == "transport":
        return unavailable(message, 1.0)
    if kind == "aborted":
        return Failure(499, message, type="aborted", code="aborted")
    return Failure(500, message, type="server_error", code="generation_failed")
