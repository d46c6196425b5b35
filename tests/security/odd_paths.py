"""Ways to write a path, a method, a key and a Host that a careless gate takes for another one; and the routes of an
application, hidden ones too. In: a path. Out: spellings as ASGI brings them, decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.types import ASGIApp, Message

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "")
OPEN = ("/health", "/ready", "/ping")


def spellings(path: str) -> Iterator[str]:
    """The path, and what somebody may hope to be read as it, or as an open one."""
    yield path
    yield from (f"/{path}", f"//{path}", f"/.{path}", f"{path}/", f"{path}//", f"{path}/.", f"{path}/..", path.upper())
    yield from (f"{path}\n", f"{path}\0", f"{path} ", f" {path}", f"{path};x", f"{path}%2f", f"{path}?", f"{path}#")
    yield from (path.replace("/", "\\"), path.replace("/", "%2f"), path.replace("/", "/./"), path[1:], f"{path}\u200b")
    for known in OPEN:
        yield from (f"{known}/..{path}", f"{known}{path}", f"{known};{path}", f"{known}\0{path}", f"{known}/../{path}")
        yield from (f"{path}{known}", f"{path}?{known}", f"{path}#{known}", f"{path}/..{known}", f"{path};{known}")


def near(known: str) -> Iterator[str]:
    """What is nearly an open path, and is not."""
    yield from (
        f"{known}/",
        f"{known}x",
        f"x{known}",
        f"/{known}",
        f"/.{known}",
        known.upper(),
        known.title(),
        known[1:],
    )
    yield from (
        f"{known}\n",
        f"{known}\0",
        f"{known} ",
        f"{known};",
        f"{known}?",
        f"{known}.json",
        f"/v1{known}",
        known[:-1],
    )


def routes_of(routes: Iterable[Any]) -> Iterator[tuple[frozenset[str], str]]:
    """Methods (none for a WebSocket) and paths of an application's routes, whether documented or not."""
    for route in routes:
        if hasattr(route, "path"):
            yield frozenset(getattr(route, "methods", None) or ()), route.path
        else:
            yield from routes_of(route.original_router.routes)


def asked(
    app: ASGIApp,
    path: str,
    method: str = "GET",
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    kind: str = "http",
    host: bytes = b"localhost",
) -> tuple[int, dict[bytes, bytes], bytes]:
    """The status, headers and body of an answer of an ASGI application; no server in between that would tidy up."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b"{}"}

    async def send(message: Message) -> None:
        sent.append(message)

    named = [] if any(name == b"host" for name, _ in headers) else [(b"host", host)]
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "query_string": b"",
        "path": path,
        "raw_path": path.encode(),
        "headers": [*named, *headers],
        "server": ("localhost", 80),
    }
    if kind == "http":
        scope["method"] = method
    else:
        scope |= {"subprotocols": [], "extensions": {"websocket.http.response": {}}}
    asyncio.run(_bounded(app, scope, receive, send))
    first = sent[0]
    if first["type"] == "websocket.close":
        return 403, {}, b""
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return first.get("status", 101), dict(first.get("headers", ())), body


async def _bounded(app: ASGIApp, scope: Any, receive: Any, send: Any) -> None:
    async with asyncio.timeout(30):
        await app(scope, receive, send)
