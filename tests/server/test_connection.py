"""Connections that misbehave end with an answer, and nobody else notices."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.server import connection as module

from .raw import answer_to, connected, request, until_closed
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
GENERATE = {"text": "one two three", "sampling_params": {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(header_timeout=0.3, body_timeout=0.3, max_body=1 << 20) as made:
        yield made


@pytest.mark.parametrize(
    "begun", [b"", b"POST /generate HTTP/1.1\r\nHost: localhost\r\nX-Half: o"], ids=["silent", "half-sent headers"]
)
def test_a_head_that_does_not_arrive(served: Served, begun: bytes):
    status, body, seconds = answer_to(served.url, begun)
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert seconds < WAIT


def test_headers_that_trickle_do_not_win_time(served: Served):
    """The time is counted from the first byte, not from the last one."""
    with connected(served.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        connection.settimeout(0.02)
        for i in range(10_000):
            try:
                connection.sendall(b"X-%d: 1\r\n" % i)
                if connection.recv(4096).startswith(b"HTTP/1.1 408"):
                    break
            except TimeoutError:
                continue
        else:
            pytest.fail("the connection was never closed")


def test_a_second_head_is_bounded_too(served: Served):
    with connected(served.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        first = b""
        while b"\r\n\r\n" not in first:
            first += connection.recv(4096)
        connection.sendall(b"GET /health HTT")
        assert until_closed(connection).startswith(b"HTTP/1.1 408")
    assert first.startswith(b"HTTP/1.1 200")


def test_headers_that_are_too_large(served: Served):
    status, body, _ = answer_to(
        served.url, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * (3 * module.HEAD_BYTES)
    )
    assert (status, body["error"]["code"]) in [(431, "headers_too_large"), (400, "invalid_http")]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    ],
)
def test_what_is_not_http(served: Served, sent: bytes):
    status, body, _ = answer_to(served.url, sent)
    assert status in (400, 413) and body["error"]["type"] == "invalid_request_error"


def test_a_body_that_does_not_arrive(served: Served):
    sent = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{"
    status, body, _ = answer_to(served.url, sent)
    assert (status, body["error"]["code"]) == (408, "request_timeout")


def test_chunks_are_counted_as_they_arrive(served: Served):
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    status, body, _ = answer_to(served.url, head + chunk * 17)
    assert (status, body["error"]["code"]) == (413, "request_too_large")


def test_length_and_chunks_together(served: Served):
    """Request smuggling: two notions of where a request ends."""
    body = b"0\r\n\r\nGET /server_info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(served.url) as connection:
        connection.sendall(
            b"POST /concate_and_append_request HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        connection.settimeout(1.0)
        data = until_closed(connection)
    assert b"kv" not in data


def test_pipelined_requests_are_answered_in_order(served: Served):
    body = json.dumps(GENERATE).encode()
    with connected(served.url) as connection:
        one = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        connection.sendall(one + b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n" + request("GET", "/nope"))
        data = until_closed(connection)
    assert [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"404"]


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_a_client_of_http_1_0_gets_no_chunks(served: Served, method: str):
    """It ends an answer of unknown length by the end of the connection, and has no name for chunks."""
    stream = json.dumps({**GENERATE, "stream": True}).encode() if method == "POST" else b""
    sent = request(method, "/generate" if method == "POST" else "/version", body=stream)
    answers = []
    for version in (b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"):
        with connected(served.url) as connection:
            connection.sendall(sent.replace(b" HTTP/1.1\r\n", version, 1))
            head, _, body = until_closed(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        answers.append((b"transfer-encoding" in head.lower(), b"connection: close" in head.lower(), body))
    (chunked, _, _), (plain, closes, body) = answers
    assert (chunked, plain, closes) == (method == "POST", False, True)
    if method == "POST":
        events = body.split(b"\n\n")
        assert all(event.startswith(b"data: ") for event in events[:-1]) and events[-2:] == [b"data: [DONE]", b""]
    else:
        assert bool(body) == (method == "GET")


def test_the_connection_above_the_limit():
    with serving(max_connections=2) as served:
        address = served.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), WAIT), connected(served.url) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert second.recv(100).startswith(b"HTTP/1.1 200")
            status, body, _ = answer_to(served.url, b"")
            assert (status, body["error"]["code"]) == (503, "unavailable")
        assert httpx.get(f"{served.url}/health").status_code == 200


def test_a_websocket_outlives_the_head_time(served: Served):
    """The timer of the head is not one of the connection that it opened."""
    head = (
        b"GET /v1/programs HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with connected(served.url) as connection:
        connection.sendall(head)
        first = connection.recv(4096)
        later = connection.recv(4096)  # what the program's own patience (`body_timeout`) says about silence
    assert first.startswith(b"HTTP/1.1 101") and b"HTTP/1.1" not in later


def hostile(url: str) -> list[tuple[int, float]]:
    """What a server answers to things that are too much, and after how many seconds."""
    deep = b"[" * 100_000
    found = []
    for body in (
        b"x" * (50 << 20),
        deep,
        b'{"text": NaN}',
        b'{"text": "\\ud800"}',
        b'{"input_ids": [' + b"1," * 400_000 + b"1]}",
    ):
        status, _, seconds = answer_to(url, request("POST", "/generate", body=body))
        found.append((status, seconds))
    return found


def test_bad_requests_do_not_disturb_a_stream(served: Served):
    body: dict[str, Any] = {
        "text": "count",
        "sampling_params": {"max_new_tokens": 200, "temperature": 0, "ignore_eos": True},
    }
    with httpx.Client(base_url=served.url, timeout=WAIT) as http:
        alone = http.post("/generate", json=body).json()
        with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            statuses = hostile(served.url)
            last = [line for line in lines if line.startswith("data: {")][-1]
    assert [status for status, _ in statuses] == [413, 400, 400, 400, 400]
    assert json.loads(last[6:])["text"] == alone["text"]
