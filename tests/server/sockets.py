"""HTTP by hand, for tests that need hundreds of connections and abrupt ends: in: a path and a body; out: what came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

DONE = "[DONE]"


@dataclass(slots=True)
class Heard:
    """An answer. `events` the data of its server-sent events; `whole`: its end was received, and not only the end of
    the connection."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    events: list[str] = field(default_factory=list)
    whole: bool = False

    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


async def ask(
    url: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    leave_after: int | None = None,
    heard: Callable[[], None] = lambda: None,
) -> Heard:
    """POST `body` (GET without one) and read to the end, or go away without a word after `leave_after` events. `heard`
    is called for each event. Raises `OSError` or `asyncio.IncompleteReadError` when the connection breaks."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        answer = await _head(reader)
        async for part in _parts(reader, answer):
            answer.body += part
            before = len(answer.events)
            answer.events = _events(answer.body) if answer.headers["content-type"].startswith("text/event") else []
            for _ in answer.events[before:]:
                heard()
            if leave_after is not None and len(answer.events) >= leave_after:
                writer.transport.abort()
                return answer
        answer.whole = True
        return answer
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> Heard:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    return Heard(int(first.split()[1]), headers)


async def _parts(reader: asyncio.StreamReader, answer: Heard) -> AsyncIterator[bytes]:
    """The body as it comes, without its framing."""
    if "content-length" in answer.headers:
        yield await reader.readexactly(int(answer.headers["content-length"]))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


def _events(body: bytes) -> list[str]:
    blocks = body.decode("utf-8", "replace").split("\n\n")[:-1]
    lines = [line for block in blocks for line in block.split("\n")]
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def text_of(path: str, events: list[str]) -> str:
    """The text that the events of a stream of `/generate`, completions or chat completions give."""
    values = [json.loads(event) for event in events if event != DONE]
    if path == "/generate":
        return str(([""] + [value["text"] for value in values if "text" in value])[-1])
    choices = [value["choices"][0] for value in values if value.get("choices")]
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)


def failed(events: list[str]) -> bool:
    """Whether a stream ended by an error event: the last one, and no `[DONE]`."""
    return bool(events) and events[-1] != DONE and "error" in json.loads(events[-1])
