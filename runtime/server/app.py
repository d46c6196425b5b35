"""The application: every protocol's routes on one port, one shape for everything that goes wrong.

In: a `Service` and `Settings`. Out: an ASGI application, guard included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from importlib import metadata
from threading import Lock
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.runtime.server import docs
from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure, of
from ramet.runtime.server.guard import PAGE, Guard
from ramet.runtime.server.idempotency import Idempotency
from ramet.runtime.server.idempotency_records import Bounds
from ramet.runtime.server.invalid import sentence
from ramet.runtime.server.logs import Access
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.vendor_errors import refusal

Router = Callable[[Service, Settings, Metrics], APIRouter]
PAGES = ("/docs", PAGE)
EXPOSED = (  # headers of answers that pages of other origins may read
    *("X-Request-Id", "request-id", "X-Ramet-Warnings", "Idempotent-Replayed"),
    *("Retry-After", "retry-after-ms"),
)


def create_app(service: Service, settings: Settings, metrics: Metrics, routers: Sequence[Router]) -> ASGIApp:
    """All routes of `routers` behind the guard; `/docs` and `/openapi.json` describe them."""
    app = FastAPI(
        title="ramet",
        description="Many branches, one root: LLM programs and completions on one engine.",
        version=metadata.version("ramet"),
        docs_url=None,  # its pages come from elsewhere
        redoc_url=None,
        openapi_url=None,  # FastAPI would describe it on the event loop, where all streams stand still meanwhile
        redirect_slashes=False,  # the addresses would be wrong behind a proxy that strips a prefix
        generate_unique_id_function=_operation,
    )
    app.add_route("/docs", docs.page, include_in_schema=False)
    app.add_route("/openapi.json", _document(app, settings.root_path.rstrip("/")), include_in_schema=False)
    for router in routers:
        app.include_router(router(service, settings, metrics))
    app.add_exception_handler(Failure, _failure)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)
    answering = _heads(_unslashed(app))
    whole: ASGIApp = Guard(Idempotency(answering, Bounds(settings.idempotency_seconds)), settings)
    if settings.cors_origin:
        origins, every = settings.cors_origin, ["*"]
        whole = CORSMiddleware(
            whole, allow_origins=origins, allow_methods=every, allow_headers=every, expose_headers=EXPOSED
        )
    return Access(whole)


def _unslashed(app: ASGIApp) -> ASGIApp:
    """`app`, for which a slash at the end of a path is none, but for pages: what they load is named beside them."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        bare = str(scope.get("path", ""))[:-1]
        if bare and scope["path"][-1] == "/" and bare not in (*PAGES, scope.get("root_path")):
            scope = {**scope, "path": bare}
        await app(scope, receive, send)

    return answered


def _heads(app: ASGIApp) -> ASGIApp:
    """`app`, which answers HEAD as GET without the body: monitors and health checks ask so."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await app(scope, receive, send)
            return

        async def bare(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await app({**scope, "method": "GET"}, receive, bare)

    return answered


def _operation(route: APIRoute) -> str:
    """A name per method and path, since one function may answer several."""
    words = (*sorted(route.methods or ()), *route.path_format.replace("{", "").replace("}", "").split("/"))
    return "_".join(word for word in words if word).lower()


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _document(app: FastAPI, root: str) -> Callable[[Request], Response]:
    """The endpoint of the OpenAPI document, which is made when somebody asks first: a function that is no coroutine
    runs in a thread."""
    made: list[bytes] = []
    lock = Lock()

    def document(request: Request) -> Response:
        with lock:
            if not made:
                made.append(msgspec.json.encode(_described(app, root)))
        return Response(made[0], media_type="application/json")

    return document


def _described(app: FastAPI, root: str) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's own, with the one shape that errors have here, and how keys are shown."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    if root:
        schema["servers"] = [{"url": root}]
    parts = schema.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):
        parts.setdefault("schemas", {}).pop(name, None)
    parts["schemas"]["Error"] = _ERROR
    parts["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    schema["security"] = [{"bearer": []}, {"key": []}, {}]
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"].setdefault("default", {"description": "What went wrong", "content": content})
    return schema


def _refusal(request: Request, failure: Failure) -> Response:
    caller: Caller = request.scope.get("ramet.caller") or Caller()
    return refusal(request.scope["path"], failure, caller)


async def _failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, Failure)
    return _refusal(request, error)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Starlette raises the error again behind this answer, and so it reaches the log."""
    return _refusal(request, of(error))


async def _http(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, and what FastAPI itself refuses."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Failure):
        return _refusal(request, error.__cause__)
    phrase = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path}: {error.detail}"
    answer = _refusal(request, Failure(error.status_code, message, code=phrase))
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _refusal(request, sentence(error.errors(), error.body))
