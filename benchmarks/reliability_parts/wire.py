"""HTTP by hand: in: a path and a body. Out: what came, piece by piece with its time, and whether it came whole.

One connection a request (`ask`), or many requests on one (`Line`). A client can leave at any moment, by a reset or by
closing, which is what most of this is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from reliability_parts.board import Violation

DONE = "[DONE]"
PATIENCE = 120.0  # seconds after which an answer counts as a hang
BROKEN = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
Result = TypeVar("Result")


@dataclass(slots=True)
class Heard:
    """An answer. `events`: data of its server-sent events, `times` when each came; `whole`: its end was received, and
    not only the end of the connection."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    events: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    whole: bool = False
    left: bool = False
    seconds: float = 0.0

    def json(self) -> Any:
        """The body's value."""
        return json.loads(bytes(self.body))

    def retry_after(self) -> int:
        """Seconds of its Retry-After; 0 without one."""
        text = self.headers.get("retry-after", "")
        return int(text) if text.isdigit() else 0

    def told(self) -> bool:
        """Whether it is a stream that ended by an error event, and without `[DONE]`."""
        return bool(self.events) and DONE not in self.events and "error" in json.loads(self.events[-1])


@dataclass(slots=True)
class Leaving:
    """When a client goes away without a word: after so many events, or when `now` is set; `reset` or orderly."""

    after: int = 0
    now: asyncio.Event | None = None
    reset: bool = True


async def ask(
    url: str,
    path: str,
    body: dict[str, Any] | bytes | None = None,
    *,
    headers: dict[str, str] | None = None,
    leaving: Leaving | None = None,
    heard: Callable[[], None] | None = None,
) -> Heard:
    """POST `body` (GET without one) and read to the end, or leave. `heard` is called for each event. A connection that
    breaks gives an answer that is not `whole`, with status 0 where nothing came."""
    answer = Heard()
    began = time.perf_counter()
    writer: asyncio.StreamWriter | None = None
    try:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(request(where.netloc, path, body, headers or {}, close=True))
        reading = asyncio.ensure_future(_read(reader, answer, leaving, heard))
        await _until(reading, answer, leaving)
    except BROKEN:
        answer.whole = False
    finally:
        answer.seconds = time.perf_counter() - began
        if writer is not None:
            if answer.left and leaving is not None and leaving.reset:
                writer.transport.abort()
            writer.close()
    return answer


async def _until(reading: asyncio.Future[None], answer: Heard, leaving: Leaving | None) -> None:
    """Until all is read, or it is time to leave."""
    if leaving is None or leaving.now is None:
        await reading
        return
    signal = asyncio.ensure_future(leaving.now.wait())
    waited: set[asyncio.Future[Any]] = {reading, signal}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    signal.cancel()
    if reading.done():
        reading.result()
        return
    answer.left = True
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError, *BROKEN):
        await reading


def request(host: str, path: str, body: dict[str, Any] | bytes | None, more: dict[str, str], *, close: bool) -> bytes:
    """A request's bytes."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {host}"]
    lines += ["Connection: close"] if close else []
    lines += [f"{name}: {value}" for name, value in more.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def _read(
    reader: asyncio.StreamReader, answer: Heard, leaving: Leaving | None, heard: Callable[[], None] | None
) -> None:
    await head(reader, answer)
    stream = answer.headers.get("content-type", "").startswith("text/event-stream")
    rest = b""
    async for part in parts(reader, answer):
        if not stream:
            answer.body += part
            continue
        *blocks, rest = (rest + part).split(b"\n\n")
        for block in blocks:
            for line in block.split(b"\n"):
                if line.startswith(b"data: "):
                    answer.events.append(line[6:].decode("utf-8", "replace"))
                    answer.times.append(time.perf_counter())
                    if heard is not None:
                        heard()
        if leaving is not None and 0 < leaving.after <= len(answer.events):
            answer.left = True
            return
    answer.whole = True


async def head(reader: asyncio.StreamReader, answer: Heard) -> None:
    """The status and the headers."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    answer.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    answer.status = int(first.split()[1])


async def parts(reader: asyncio.StreamReader, answer: Heard) -> AsyncIterator[bytes]:
    """The body as it comes, without its framing."""
    if answer.status in (204, 304):
        return
    if "content-length" in answer.headers:
        yield await reader.readexactly(int(answer.headers["content-length"]))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


class Line:
    """A connection that carries one request after another, and is made anew when the server closes it."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self.host = where.netloc
        self._address = (where.hostname, where.port)
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, content: bytes) -> Heard:
        """The answer to a request's bytes. Raises what breaks a connection."""
        began = time.perf_counter()
        if self._pair is None:
            self._pair = await asyncio.open_connection(*self._address)
        reader, writer = self._pair
        answer = Heard()
        try:
            writer.write(content)
            await head(reader, answer)
            async for part in parts(reader, answer):
                answer.body += part
            answer.whole = True
        except BaseException:
            self.close()
            raise
        answer.seconds = time.perf_counter() - began
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._pair is not None:
            self._pair[1].close()
            self._pair = None


async def soon(work: Awaitable[Result], what: str, seconds: float = PATIENCE) -> Result:
    """Wait for it; a `Violation` that it hangs after `seconds`."""
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        raise Violation(f"{what}: nothing within {seconds:g} s") from None


async def info(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The server's figures. Raises `Violation` where they do not come."""
    answer = await soon(ask(url, "/server_info", headers=headers), "/server_info", 30.0)
    if answer.status != 200:
        raise Violation(f"/server_info answered {answer.status}: {bytes(answer.body[:200])!r}")
    found: dict[str, Any] = answer.json()
    return found


async def idle(url: str, seconds: float = 30.0, headers: dict[str, str] | None = None) -> tuple[float, dict[str, Any]]:
    """Seconds until nothing runs, nothing waits and no KV slot is in use, and the figures then. `Violation` after
    `seconds`."""
    began = time.perf_counter()
    while True:
        figures = await info(url, headers)
        spent = time.perf_counter() - began
        if figures["programs"] == 0 and figures["waiting"] == 0 and figures["kv"]["used"] == 0:
            return spent, figures
        if spent > seconds:
            raise Violation(f"{seconds:g} s after the last client, programs or slots are still held: {figures['kv']}")
        await asyncio.sleep(0.005)
