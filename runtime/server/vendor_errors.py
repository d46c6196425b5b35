"""Errors in the shapes of the vendors whose protocols have one of their own.

In: a `Failure` and the path that was asked for. Out: the answer that this path's clients can read; OpenAI's error
object where no other shape is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import Response

from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.wire import headers_of

Shape = Callable[[Failure, str], dict[str, Any]]
_STRING = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _described(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the failures of a router's routes."""
    return {"default": {"description": "What went wrong", "content": {"application/json": {"schema": schema}}}}


ANTHROPIC_FAILURES = _described(_object(type=_STRING, error=_object(type=_STRING, message=_STRING), request_id=_STRING))
OLLAMA_FAILURES = _described(_object(error=_STRING))
_KINDS = {  # status → Anthropic's word; its clients retry 429 and 5xx, as everybody's
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(failure: Failure, label: str) -> dict[str, Any]:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`; `label` is the request's id."""
    kind = _KINDS.get(failure.status, "invalid_request_error" if failure.status < 499 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}, "request_id": label}


def ollama_error(failure: Failure, label: str) -> dict[str, Any]:
    """`{"error": "..."}`."""
    return {"error": failure.message}


SHAPES: tuple[tuple[str, Shape], ...] = (("/v1/messages", anthropic_error), ("/api/", ollama_error))


def refusal(path: str, failure: Failure, caller: Caller) -> Response:
    """The answer that a failure is to clients of `path`; in OpenAI's error object where no other shape is known."""
    shape = next((shape for prefix, shape in SHAPES if path.startswith(prefix)), None)
    body = failure.body() if shape is None else shape(failure, caller.label)
    headers = failure.headers() | headers_of(caller)
    return Response(msgspec.json.encode(body), failure.status, headers, "application/json")
