"""R6: bodies are bounded in bytes, time, depth and form, before anything looks at them."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.server import guard, strict_json, wire

from ..server.raw import answer_to, connected, request, until_closed
from ..server.serving import WAIT, Served, serving

pytestmark = pytest.mark.model
SMALL = {"text": "one", "sampling_params": {"max_new_tokens": 1, "temperature": 0}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(max_body=1 << 16) as made:
        yield made


@pytest.fixture(scope="module")
def generous() -> Iterator[Served]:
    """The same server with larger bounds."""
    with serving(max_body=64 << 20) as made:
        yield made


def padded(size: int) -> bytes:
    body = json.dumps(SMALL).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [(1 << 16) + 1, 50 << 20])
def test_large_bodies(served: Served, generous: Served, size: int, chunked: bool):
    whole = padded(size)

    def content() -> Any:
        return iter([whole[i : i + 65536] for i in range(0, size, 65536)]) if chunked else whole

    answer = httpx.post(f"{served.url}/generate", content=content(), timeout=WAIT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert httpx.post(f"{generous.url}/generate", content=content(), timeout=WAIT).status_code == 200


def test_a_body_as_large_as_allowed(served: Served):
    assert httpx.post(f"{served.url}/generate", content=padded(1 << 16), timeout=WAIT).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, identity"])
def test_compressed_bodies(served: Served, encoding: str):
    body = gzip.compress(json.dumps(SMALL).encode())
    answer = httpx.post(f"{served.url}/generate", content=body, headers={"content-encoding": encoding}, timeout=WAIT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert httpx.post(f"{served.url}/generate", content=json.dumps(SMALL), timeout=WAIT).status_code == 200


def test_forms(served: Served):
    answer = httpx.post(f"{served.url}/generate", files={"text": b"x"}, timeout=WAIT)
    assert answer.status_code == 415
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (
        httpx.post(f"{served.url}/generate", content=json.dumps(SMALL), headers=form, timeout=WAIT).status_code == 200
    )


@pytest.mark.parametrize(
    "path", ["/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/programs"]
)
def test_nesting(served: Served, path: str):
    """Twice as deep as is read: refused for that; the control is not refused for its depth."""
    for depth, refused in ((2 * strict_json.MAX_DEPTH, True), (strict_json.MAX_DEPTH // 2, False)):
        status, body, _ = answer_to(
            served.url, request("POST", path, body=b'{"x":' + b"[" * depth + b"]" * depth + b"}")
        )
        assert status in (200, 400, 404)
        assert ("nested" in json.dumps(body)) == refused


def test_slow_bodies():
    with serving(body_timeout=0.2) as served:
        head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
        assert answer_to(served.url, head + b"{")[0] == 408
        assert answer_to(served.url, request("POST", "/generate", body=json.dumps(SMALL).encode()))[0] == 200


# --- positive controls: what bounds a body is taken out, and the same request comes through


def said(served: Served, sent: bytes, seconds: float = WAIT) -> str:
    """Status and first words of the answer to raw bytes; empty when none comes in time."""
    with connected(served.url) as connection:
        connection.settimeout(seconds)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        try:
            answer = until_closed(connection)
        except TimeoutError:
            return ""
    return answer.partition(b" ")[2].decode("utf-8", "replace")


def chunked(body: bytes) -> bytes:
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


SLOW = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{"
DEEP = b'{"x":' + b"[" * 2 * strict_json.MAX_DEPTH + b"]" * 2 * strict_json.MAX_DEPTH + b"}"
BODY = json.dumps(SMALL).encode()
FORM = "Content-Type: multipart/form-data; boundary=x"


async def _unbounded(self: Any) -> Any:
    return await self._receive()


class _Any:
    """As many as anybody wants."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


# Name: what is sent, how the refusal begins, its word, and what is changed: (object, attribute, instead).
FAULTS: dict[str, tuple[bytes, str, str, tuple[Any, str, Any]]] = {
    "a declared length is believed": (
        *(request("POST", "/generate", body=padded((1 << 16) + 1)), "413", "request_too_large"),
        (guard.Guard, "_limited", lambda self, scope, headers, receive: receive),
    ),
    "bytes are not counted": (
        *(chunked(padded((1 << 16) + 1)), "413", "request_too_large"),
        (guard._Body, "__call__", _unbounded),
    ),
    "encodings are not looked at": (
        *(request("POST", "/generate", "Content-Encoding: gzip", body=BODY), "415", "compressed"),
        (guard.Guard, "_limited", lambda self, scope, headers, receive: receive),
    ),
    "forms are read": (request("POST", "/generate", FORM, body=BODY), "415", "forms", (wire, "_FORMS", ("never/",))),
    "nesting is not measured": (
        *(request("POST", "/generate", body=DEEP), "400", "nested"),
        (strict_json, "MAX_DEPTH", 10**6),
    ),
    "parts are not counted": (
        *(request("POST", "/generate", body=b'{"x":[' + b"[]," * 10_000 + b"[]]}"), "400", "more than 1000 arrays"),
        (strict_json, "MAX_PARTS", 10**6),
    ),
    "keys may come twice": (
        *(request("POST", "/generate", body=b'{"text":"a",' + BODY[1:]), "400", "key twice"),
        (strict_json, "_keys", lambda value, parts: _Any()),
    ),
    "bodies may take for ever": (SLOW, "408", "did not arrive", (guard._Body, "__call__", _unbounded)),
}


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    with serving(max_body=1 << 16, body_timeout=0.5) as made:
        yield made


@pytest.mark.parametrize("name", FAULTS)
def test_control_a_bound_that_is_taken_out_is_missed(hasty: Served, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, status, word, (place, attribute, instead) = FAULTS[name]
    if attribute == "MAX_PARTS":
        monkeypatch.setattr(strict_json, "MAX_PARTS", 1000)
    answer = said(hasty, sent)
    assert answer.startswith(status) and word in answer, answer
    monkeypatch.setattr(place, attribute, instead)
    answer = said(hasty, sent, 2.0 if status == "408" else WAIT)
    assert not (answer.startswith(status) and word in answer), answer
