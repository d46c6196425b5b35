"""R6: bodies are bounded in bytes, time, depth and form, before anything looks at them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.server import wire

from ..server.raw import answer_to, request
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
    for depth, refused in ((2 * wire.MAX_DEPTH, True), (wire.MAX_DEPTH // 2, False)):
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
