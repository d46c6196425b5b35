"""R11: without a key nothing but the open paths answers, however a request is written; control needs the admin key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from ramet.runtime.server import guard as module

from ..server.raw import answer_to, request
from ..server.serving import WAIT, Served, serving

pytestmark = pytest.mark.model
USER, ADMIN = "x-api-key: user", "x-api-key: boss"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=("user",), admin_key="boss") as made:
        yield made


@pytest.fixture(scope="module")
def open_server() -> Iterator[Served]:
    """The same server with the rule taken away: no keys."""
    with serving() as made:
        yield made


def operations(url: str) -> list[tuple[str, str]]:
    """Every method and path of the server, those of the documentation too."""
    paths = httpx.get(f"{url}/openapi.json", headers={"x-api-key": "boss"}, timeout=WAIT).json()["paths"]
    found = [(method.upper(), path.replace("{", "").replace("}", "")) for path in paths for method in paths[path]]
    return [*found, ("GET", "/docs"), ("GET", "/openapi.json")]


def test_every_route_asks_for_a_key(served: Served, open_server: Served):
    for method, path in operations(served.url):
        wanted = path not in module.OPEN
        without = answer_to(served.url, request(method, path))[0]
        wrong = answer_to(served.url, request(method, path, "Authorization: Bearer wrong"))[0]
        assert (without == 401, wrong == 401) == (wanted, wanted), path


def test_the_same_requests_get_in_where_no_key_is_asked_for(open_server: Served):
    statuses = [answer_to(open_server.url, request(method, path))[0] for method, path in operations(open_server.url)]
    assert 401 not in statuses and 200 in statuses


TRICKS = [
    "/server_info",
    "//server_info",
    "/./server_info",
    "/health/../server_info",
    "/health/..%2fserver_info",
    "/health%00/../server_info",
    "/server_info/",
    "/server_info%0a",
    "/server_info?/health",
    "/server_info;/health",
    "/server_info#/health",
    "/SERVER_INFO",
    "/%73erver_info",
    "http://localhost/server_info",
    "http://localhost/health@/server_info",
    "/health%0d%0aX-Api-Key:%20user/../server_info",
]


@pytest.mark.parametrize("target", TRICKS)
def test_no_way_of_writing_a_path_gets_in(served: Served, target: str):
    status, body, _ = answer_to(served.url, request("GET", target))
    assert status in (400, 401) and "kv" not in body


def test_some_of_these_ways_reach_the_route(open_server: Served):
    answers = [answer_to(open_server.url, request("GET", target))[1] for target in TRICKS]
    assert sum("kv" in answer for answer in answers) >= 3


@pytest.mark.parametrize(
    "headers",
    [
        ("Authorization: Bearer wrong", "Authorization: Bearer user"),
        ("X-Api-Key: wrong", "x-api-key: user"),
        ("Authorization: Bearer us\u00e9r",),
        ("Authorization:Bearer",),
        ("X_API_KEY: user",),
        ("X-Forwarded-For: 127.0.0.1", "X-Original-URL: /health", "X-Rewrite-URL: /health"),
    ],
)
def test_no_way_of_showing_a_key_gets_in(served: Served, headers: tuple[str, ...]):
    status, body, _ = answer_to(served.url, request("GET", "/server_info", *headers))
    assert status in (400, 401) and body["error"]["message"]


def test_a_websocket_asks_for_a_key(served: Served, open_server: Served):
    upgrade = (
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    sent = request("GET", "/v1/programs", *upgrade).replace(b"Connection: close", b"Connection: Upgrade")
    assert answer_to(served.url, sent)[0] in (401, 403)
    with httpx.Client(timeout=WAIT) as http:
        head = dict(line.split(": ") for line in upgrade) | {"Connection": "Upgrade"}
        with http.stream("GET", f"{open_server.url}/v1/programs", headers=head) as answer:
            assert answer.status_code == 101


CONTROL = ["/flush_cache", "/flush_cache/", "/flush_cache%0a", "/%66lush_cache", "/reset_prefix_cache", "//flush_cache"]


@pytest.mark.parametrize("target", CONTROL)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_control_needs_the_admin_key(served: Served, method: str, target: str):
    assert "success" not in answer_to(served.url, request(method, target, USER))[1]


def test_with_the_admin_key_it_is_done(served: Served):
    assert answer_to(served.url, request("POST", "/flush_cache", USER))[0] == 403
    assert answer_to(served.url, request("POST", "/flush_cache", ADMIN))[1] == {"success": True}
    assert answer_to(served.url, request("POST", "/%66lush_cache", ADMIN))[1] == {"success": True}


def test_a_prefix_of_a_proxy_changes_nothing():
    with serving(api_key=("user",), admin_key="boss", root_path="/llm") as served:
        assert "success" not in answer_to(served.url, request("POST", "/llm/flush_cache", USER))[1]
        assert answer_to(served.url, request("GET", "/llm/server_info"))[0] == 401
        assert answer_to(served.url, request("POST", "/flush_cache", ADMIN))[1] == {"success": True}


def test_pages_of_other_sites_cannot_reach_a_local_server(open_server: Served):
    """DNS rebinding changes the Host; a page of another origin sends its Origin, or Sec-Fetch-Site with an image."""
    for host, header in (
        ("evil.example", ""),
        ("localhost", "Origin: https://evil.example"),
        ("localhost", "Sec-Fetch-Site: cross-site"),
    ):
        sent = request("GET", "/flush_cache", *([header] if header else []), host=host)
        assert answer_to(open_server.url, sent)[0] == 403
    assert answer_to(open_server.url, request("GET", "/flush_cache"))[0] == 200
