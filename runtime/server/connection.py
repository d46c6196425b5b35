"""One TCP connection of the server, bounded: how long a request's head may take, how large it may be, and how many
connections there are.

In: bytes from a client. Out: the same to uvicorn's own protocol (over httptools, so that what is not HTTP is judged by
one parser everywhere), or an answer in the server's shape and the end of the connection.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec

from ramet.runtime.server.failures import Failure, bad, unavailable

HEAD_BYTES = 64 << 10  # of a request line and its headers


def limited(header_timeout: float, most: int) -> type[asyncio.Protocol]:
    """A protocol class for `uvicorn.Config(http=...)`: a head must be whole within `header_timeout` seconds of its
    first byte (of the connection's beginning, for the first request) and `HEAD_BYTES`, else 408 and 431; above `most`
    connections the next one is answered 503."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Limited(Connection):
        def __init__(
            self, config: Any, server_state: Any, app_state: Any, _loop: asyncio.AbstractEventLoop | None = None
        ) -> None:
            protocol = HttpToolsProtocol(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
            super().__init__(protocol, header_timeout, most)

    return Limited


class _Unknown:
    """A length of content that nothing exceeds, that nothing lessens, and of which nothing is left to send."""

    def __lt__(self, sent: int) -> bool:
        return False

    def __sub__(self, sent: int) -> _Unknown:
        return self

    def __eq__(self, left: object) -> bool:
        return left == 0

    __hash__ = None  # type: ignore[assignment]


class Connection(asyncio.Protocol):
    """Stands in front of `inner`, one of uvicorn's protocols. Idle between two requests is uvicorn's to bound
    (`timeout_keep_alive`); during a request the guard bounds its body."""

    def __init__(self, inner: Any, header_timeout: float, most: int) -> None:
        self._inner = inner
        self._seconds = header_timeout
        self._most = most
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0  # bytes of a request that has not begun yet
        inner.send_400_response = lambda message: self._end(bad(message.rstrip("."), code="invalid_http"))

    # -- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass of it
        full = len(self._inner.server_state.connections) >= self._most
        self._inner.connection_made(transport)
        if full:
            self._end(unavailable("there are too many connections", 1.0))
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._transport is None or self._transport.is_closing():
            return
        self._inner.data_received(data)
        self._plain()
        if self._busy() or self._transport.get_protocol() is not self:  # the latter: it is a WebSocket now
            self._head = 0
            self._rest()
            return
        self._head += len(data)
        if self._head > HEAD_BYTES:
            self._end(Failure(431, f"the headers are larger than {HEAD_BYTES} bytes", code="headers_too_large"))
        elif self._timer is None and not self._transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._rest()
        self._inner.connection_lost(exc)

    def eof_received(self) -> None:
        """The client sends no more."""
        self._inner.eof_received()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._inner.resume_writing()

    # -- bounds

    def _busy(self) -> bool:
        """Whether a request is being answered: the head of the next one is not waited for."""
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete

    def _plain(self) -> None:
        """Send a client of HTTP/1.0 no chunks, which it cannot read (RFC 9112, 6.1): an answer of unknown length ends
        with the connection. The request has begun, and its answer has not: that is the loop's next turn."""
        cycle = self._inner.cycle
        if cycle is not None and cycle.scope["http_version"] == "1.0" and cycle.chunked_encoding is None:
            cycle.chunked_encoding, cycle.expected_content_length = False, _Unknown()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._late)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answering(self) -> bool:
        """Whether what would be written now might be taken for an answer that is due: one has begun, a request in front
        of this one has none yet, or this one is whole, and what is wrong comes behind it."""
        cycle = self._inner.cycle
        return self._busy() and (cycle.response_started or not cycle.more_body or bool(self._inner.pipeline))

    def _late(self) -> None:
        self._timer = None
        if not self._busy():
            message = f"the headers did not arrive within {self._seconds:g} s"
            self._end(Failure(408, message, code="request_timeout"))

    def _end(self, failure: Failure) -> None:
        """Answer, unless an answer is under way, and close."""
        self._rest()
        if self._transport is None or self._transport.is_closing():
            return
        if not self._answering():
            if self._inner.cycle is not None:
                self._inner.cycle.disconnected = True  # a request whose body is no HTTP: this is its answer
            body = msgspec.json.encode(failure.body())
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                **failure.headers(),
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self._transport.write(f"HTTP/1.1 {failure.status} \r\n{lines}\r\n".encode() + body)
        self._transport.close()
