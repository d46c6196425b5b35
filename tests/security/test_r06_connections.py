"""R6, beneath the requests: heads, connections, WebSockets and transfer codings are bounded, and what refuses a body
answers, and ends its connection.

Each case is raw bytes and the answer that they get; the control is the same case with one bound taken out.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from ramet.frontend.errors import EngineError
from ramet.runtime.server import connection as module
from ramet.runtime.server import guard, launch, wire
from ramet.runtime.server.connection import Connection
from ramet.runtime.server.settings import Settings, load

from ..server.raw import connected, request
from ..server.serving import WAIT, Served, serving

pytestmark = pytest.mark.model
MOST, CONNECTIONS = 1 << 16, 12
BODY = json.dumps({"text": "one", "sampling_params": {"max_new_tokens": 1}}).encode()
SHORT = 1.0  # seconds in which a server without the bound has not answered: it never would


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "LINGER", (0.1, guard.LINGER[1]))
        with serving(max_body=MOST, header_timeout=0.2, body_timeout=0.2, max_connections=CONNECTIONS) as made:
            yield made


def said(served: Served, sent: bytes, seconds: float = WAIT) -> tuple[str, bool]:
    """The answer to raw bytes, and whether its connection was closed in time."""
    with connected(served.url) as connection:
        connection.settimeout(seconds)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        data = b""
        try:
            while part := connection.recv(1 << 16):
                data += part
        except (TimeoutError, ConnectionResetError) as error:
            return data.decode("latin-1"), isinstance(error, ConnectionResetError)
    return data.decode("latin-1"), True


def post(*headers: str, body: bytes = b"", close: bool = False) -> bytes:
    """A POST on a connection that its client would use again."""
    lines = ["POST /generate HTTP/1.1", "Host: localhost", *(["Connection: close"] if close else []), *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


CHUNKED = "Transfer-Encoding: chunked"
LATE = "did not arrive within"
Change = tuple[Any, str, Any]


async def _forever(self: Any) -> Any:
    return await self._receive()


def _never(self: Connection) -> None:
    """No timer."""


def _any_coding(self: guard.Guard, scope: Any, headers: dict[bytes, bytes], receive: Any) -> Any:
    return LIMITED(self, scope, {k: v for k, v in headers.items() if k != b"transfer-encoding"}, receive)


def _as_it_comes(self: guard._Sent, message: Any) -> Any:
    """The application answers for itself, and the connection goes on."""
    self.begun = True
    return self._send(message)


def _silent(self: Connection, failure: Any) -> None:
    self._rest()
    if self._transport is not None:
        self._transport.close()


LIMITED = guard.Guard._limited
# Name: what is sent, how the answer begins, a word of it, and the changes that take the bound out.
CASES: dict[str, tuple[bytes, str, str, tuple[Change, ...]]] = {
    "no head": (b"", "408", LATE, ((Connection, "_wait", _never),)),
    "half a head": (b"GET /health HTTP/1.1\r\nHost: l", "408", LATE, ((Connection, "_wait", _never),)),
    "a long head": (
        *(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
            + b"X: "
            + b"x" * (60 << 10)
            + b"\r\nY: "
            + b"y" * (20 << 10),
        ),
        *("431", "headers are larger"),
        ((module, "HEAD_BYTES", 1 << 30),),
    ),
    "a body that stops": (post("Content-Length: 9", body=b"{"), "408", LATE, ((guard._Body, "__call__", _forever),)),
    "a chunk that stops": (post(CHUNKED, body=chunk(b"{")), "408", LATE, ((guard._Body, "__call__", _forever),)),
    "a coded body": (
        *(post("Transfer-Encoding: gzip, chunked", body=chunk(BODY) + chunk(b""), close=True), "415", "compressed"),
        ((guard.Guard, "_limited", _any_coding),),
    ),
    "a body without an end": (
        *(post(CHUNKED, body=chunk(b" " * (MOST // 2)) * 5), "413", "larger than"),
        ((guard._Body, "__call__", _forever),),
    ),
    "a chunk that is none": (post(CHUNKED, body=b"zzz\r\n"), "400", "invalid_http", ((Connection, "_end", _silent),)),
    "a later chunk that is none": (
        *(post(CHUNKED, body=chunk(b"{") + b"-1\r\n"), "400", "invalid_http"),
        ((Connection, "_end", _silent),),
    ),
}


def refused(served: Served, name: str, seconds: float = WAIT) -> None:
    """The check: the answer says what is wrong, and nothing can follow it on this connection."""
    sent, status, word, _ = CASES[name]
    answer, closed = said(served, sent, seconds)
    assert answer.startswith(f"HTTP/1.1 {status} ") and word in answer, answer
    assert answer.count("HTTP/1.1 ") == 1 and closed, answer
    assert "connection: close" in answer.lower()


@pytest.mark.parametrize("name", CASES)
def test_a_bound(served: Served, name: str) -> None:
    refused(served, name)


@pytest.mark.parametrize("name", CASES)
def test_control_without_the_bound_the_case_is_seen(served: Served, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in CASES[name][3]:
        monkeypatch.setattr(*change)
    with pytest.raises(AssertionError):
        refused(served, name, SHORT)


@pytest.mark.parametrize("name", ["a body that stops", "a body without an end"])
def test_control_an_answer_of_the_application_would_leave_it_open(
    served: Served, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What refuses a body ends its connection: the rest of it would be taken for the next request."""
    monkeypatch.setattr(guard._Sent, "__call__", _as_it_comes)
    with pytest.raises(AssertionError):
        refused(served, name, SHORT)


# -- a client that goes away in the middle


def leaves(served: Served, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Loud lines about a client that goes away in the middle of its body: there is nothing wrong with the server."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "ramet.access"), connected(served.url) as connection:
        connection.sendall(post("Content-Length: 100", body=b"{"))
    said(served, request("POST", "/generate", body=BODY))  # by now the other is over
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_goes_away_is_no_fault_of_the_server(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    assert leaves(served, caplog) == []


def test_control_without_that_it_would_be_one(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Exception):
        pass

    monkeypatch.setattr(wire, "ClientDisconnect", Other)
    assert leaves(served, caplog) != []


# -- connections and WebSockets


def crowd(served: Served, count: int) -> str:
    """The answer to one connection more than `count`."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            held = stack.enter_context(connected(served.url))
            held.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held.recv(64).startswith(b"HTTP/1.1 200")
        answer, _ = said(served, request("GET", "/health"))
    return answer


def test_connections_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = crowd(served, CONNECTIONS)
    assert answer.startswith("HTTP/1.1 503 ") and "retry-after: 1\r\n" in answer.lower(), answer
    made = Connection.__init__
    monkeypatch.setattr(Connection, "__init__", lambda self, inner, seconds, most: made(self, inner, seconds, 1 << 30))
    assert crowd(served, CONNECTIONS).startswith("HTTP/1.1 200 "), "the control"


UPGRADE = (
    b"GET /v1/programs HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


def frame(first: int, size: int, payload: bytes) -> bytes:
    """A masked frame (RFC 6455, 5.2) that says it has `size` bytes; the mask is of zeros."""
    return bytes((first, 0x80 | 127)) + size.to_bytes(8, "big") + bytes(4) + payload


FRAMES = {  # what comes after the handshake, and the close code of the answer
    "a message that is too large": (frame(0x81, MOST + 1, b" " * (MOST + 1)), 1009),
    "one that says that it will be": (frame(0x81, 1 << 62, b" "), 1009),
    "one of many small pieces": (frame(0x01, MOST // 2, b" " * (MOST // 2)) + frame(0, MOST, b" " * MOST), 1009),
    "a compressed one": (frame(0xC1, 4, b"\xaa\x56\x4a\x03"), 1002),
}


def closed_with(served: Served, sent: bytes) -> tuple[bytes, int]:
    """The head of a handshake, and the code of the close frame that answers what comes after it."""
    with connected(served.url) as connection:
        connection.sendall(UPGRADE)
        head = connection.recv(4096)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        rest = head.partition(b"\r\n\r\n")[2]
        while b"\x88" not in rest[:-3]:
            rest += connection.recv(4096) or b"\x88\0\0\0"
    at = rest.index(b"\x88")
    return head, int.from_bytes(rest[at + 2 : at + 4], "big")


@pytest.mark.parametrize("name", FRAMES)
def test_messages_of_websockets_are_bounded(served: Served, name: str) -> None:
    sent, code = FRAMES[name]
    head, said_code = closed_with(served, sent)
    assert head.startswith(b"HTTP/1.1 101") and b"deflate" not in head
    assert said_code == code


def test_control_a_socket_that_takes_compressed_messages_says_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Connection.connection_made

    def loose(self: Connection, transport: Any) -> None:
        for name, value in (("ws_per_message_deflate", True), ("ws_max_size", 1 << 30)):
            monkeypatch.setattr(self._inner.config, name, value)
        made(self, transport)

    monkeypatch.setattr(Connection, "connection_made", loose)
    head, code = closed_with(served, FRAMES["one of many small pieces"][0])
    assert b"permessage-deflate" in head and code != 1009


# -- what there is by default

DEFAULTS = {"max_body": 4 << 20, "max_connections": 8192, "header_timeout": 10.0, "body_timeout": 30.0}


def test_every_bound_is_on_by_default() -> None:
    made = Settings()
    assert {name: getattr(made, name) for name in DEFAULTS} == DEFAULTS
    for name in DEFAULTS:
        with pytest.raises(EngineError, match=name.replace("_", "-")):
            load({name: 0}, {})


CODINGS = ("gzip", "x-gzip", "deflate", "compress", "br", "zstd", "GZIP", "identity, gzip", "unknown")


def test_no_coding_is_known(served: Served) -> None:
    for name in CODINGS:
        answer, _ = said(served, post(f"Content-Encoding: {name}", "Content-Length: 4", body=b"\x1f\x8b\x08\0"))
        assert answer.startswith("HTTP/1.1 415 "), name


def test_the_parser_is_the_one_that_is_bounded() -> None:
    async def nobody(*_: Any) -> None:
        """Never asked."""

    made = launch.uvicorn_config(nobody, Settings())
    assert isinstance(made.http, type) and issubclass(made.http, Connection)
