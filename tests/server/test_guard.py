"""The gate by itself: what it lets through, whom it takes a caller for, and what it says to others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.guard import Guard
from ramet.runtime.server.settings import Settings


class Inside:
    """An application that remembers who came, and reads the body."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.callers.append(scope["ramet.caller"])
        more = scope["method"] == "POST"
        while more:
            message = await receive()
            self.bytes += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def asked(
    settings: Settings,
    *headers: tuple[str, str],
    path: str = "/v1/models",
    method: str = "GET",
    parts: tuple[bytes, ...] = (),
) -> tuple[int, list[Caller]]:
    """The status that a request gets, and the callers that got in."""
    inside, sent = Inside(), list[Message]()
    left = list(parts)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    named = [("host", "localhost"), *headers] if not any(name == "host" for name, _ in headers) else list(headers)
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named],
    }
    asyncio.run(Guard(inside, settings)(scope, receive, send))
    return sent[0]["status"], inside.callers


OPEN = Settings()
KEYED = Settings(api_key=("alice", "bob"), admin_key="boss")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 401),
        ((("authorization", "Bearer alice"),), 200),
        ((("authorization", "bearer  alice "),), 200),
        ((("authorization", "alice"),), 401),
        ((("authorization", "Basic alice"),), 401),
        ((("authorization", "Bearer alic"),), 401),
        ((("authorization", "Bearer alice2"),), 401),
        ((("authorization", "Bearer "),), 401),
        ((("authorization", "Bearer schlüssel"),), 401),
        ((("x-api-key", "bob"),), 200),
        ((("x-api-key", "BOB"),), 401),
        ((("x-api-key", ""),), 401),
        ((("x-api-key", "boss"),), 200),
        ((("authorization", "Bearer none"), ("x-api-key", "bob")), 200),
        ((("authorization", "Bearer alice"), ("authorization", "Bearer none")), 400),
    ],
)
def test_keys(headers: tuple[tuple[str, str], ...], status: int):
    assert asked(KEYED, *headers)[0] == status


def test_who_a_key_is():
    callers = [asked(KEYED, ("x-api-key", key))[1][0] for key in ("alice", "bob", "boss")]
    assert [caller.admin for caller in callers] == [False, False, True]
    assert asked(OPEN)[1][0].admin
    assert asked(Settings(api_key=("alice",)), ("x-api-key", "alice"))[1][0].admin


def test_namespaces_are_of_the_server_and_the_key():
    guard, other = Guard(Inside(), KEYED), Guard(Inside(), KEYED)
    assert guard.namespace(b"alice") == guard.namespace(b"alice") != guard.namespace(b"bob")
    assert guard.namespace(b"alice") != other.namespace(b"alice")
    assert "alice" not in guard.namespace(b"alice")


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
def test_open_paths(path: str):
    assert asked(KEYED, path=path)[0] == 200


@pytest.mark.parametrize(
    "path", ["/metrics", "/health/", "//health", "/health/x", "/HEALTH", "", "/docs", "/openapi.json"]
)
def test_everything_else_is_closed(path: str):
    assert asked(KEYED, path=path)[0] == 401


def test_metrics_can_be_opened():
    assert asked(Settings(api_key=("k",), metrics_public=True), path="/metrics")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:30000", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:30000", 200),
        ("box:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example:30000", 403),
        ("[::1", 403),
        ("", 403),
        ("user@localhost", 403),
    ],
)
def test_hosts_on_loopback(host: str, status: int):
    assert asked(Settings(allowed_host=("Box",)), ("host", host))[0] == status


def test_hosts_elsewhere_are_the_proxy_s_business():
    assert asked(Settings(host="0.0.0.0", api_key=("k",)), ("host", "any"), ("x-api-key", "k"))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost"}, 200),
        ({"origin": "https://page.example"}, 200),
        ({"origin": "https://other.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://page.example", "sec-fetch-site": "cross-site"}, 200),
    ],
)
def test_pages_of_others(headers: dict[str, str], status: int):
    assert asked(Settings(cors_origin=("https://page.example",)), *headers.items())[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-request-timeout": "2.5"}, 200),
        ({"x-request-timeout": "nan"}, 400),
        ({"x-request-timeout": "inf"}, 400),
        ({"x-request-timeout": "-1"}, 400),
        ({"x-request-timeout": "0"}, 400),
        ({"x-request-timeout": "soon"}, 400),
        ({"x-request-timeout": "\xff"}, 400),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "identity"}, 200),
        ({"content-length": "99999999"}, 413),
        ({"content-length": "9" * 5000}, 413),
    ],
)
def test_other_headers(headers: dict[str, str], status: int):
    assert asked(OPEN, *headers.items())[0] == status


def test_a_deadline_that_is_none_has_a_code():
    with pytest.raises(Failure) as caught:
        Guard(Inside(), Settings())._deadline({b"x-request-timeout": b"soon"})
    assert caught.value.code == "invalid_value"


def test_a_deadline_is_the_smaller_of_both():
    async def deadlines() -> list[float | None]:
        guard = Guard(Inside(), Settings(request_timeout=5.0))
        now = asyncio.get_running_loop().time()
        found = [
            guard._deadline(headers) for headers in ({}, {b"x-request-timeout": b"2"}, {b"x-request-timeout": b"9"})
        ]
        return [round(each - now) for each in found if each is not None]

    assert asyncio.run(deadlines()) == [5, 2, 5]


@pytest.mark.parametrize("path", ["/flush_cache\n", "/v1/models\x00", "/\x1b[2J", "/a\u2028"])
def test_paths_with_control_characters(path: str):
    assert asked(OPEN, path=path)[0] == 400


def test_bodies_are_counted():
    settings = Settings(max_body=1024)
    assert asked(settings, method="POST", parts=(b"x" * 1000, b"x" * 24))[0] == 200
    assert asked(settings, method="POST", parts=(b"x" * 1000, b"x" * 25))[0] == 413


@pytest.mark.parametrize("label", ["abc-1.2_Z", "x" * 64])
def test_request_ids_are_kept(label: str):
    assert asked(OPEN, ("x-request-id", label))[1][0].label == label


@pytest.mark.parametrize("label", ["", "x" * 65, "a b", "a\nb", "schlüssel"])
def test_or_made(label: str):
    made = asked(OPEN, ("x-request-id", label))[1][0].label
    assert len(made) == 32 and made != label
