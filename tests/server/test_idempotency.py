"""`Idempotency-Key` on the whole server: one run for one key, whatever the route, whoever hangs up, however it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import Request

from ramet.frontend import ir
from ramet.runtime.server import idempotency
from ramet.runtime.server.programs import _marked

from .asgi import driven
from .raw import answer_to, request
from .routes_table import ROUTES
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
TOKENS = 6
KEY = "Idempotency-Key"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=("alice", "bob"), max_running_requests=8, idempotency_seconds=60) as made:
        yield made


def client(served: Served, who: str = "alice") -> httpx.Client:
    headers = {"Authorization": f"Bearer {who}"}
    return httpx.Client(base_url=served.url, timeout=WAIT, headers=headers, verify=False)


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with client(served) as made:
        yield made


@pytest.fixture
def begun(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that reach the engine from now on."""
    found: list[str] = []
    begin = served.client.open

    def counted(header: ir.Header, *args: Any, **options: Any) -> Any:
        found.append(header.name)
        return begin(header, *args, **options)

    monkeypatch.setattr(served.client, "open", counted)
    return found


def ended(served: Served) -> None:
    """Wait until nothing runs."""
    with client(served) as http:
        while (found := http.get("/server_info").json())["programs"] or served.service.running:
            pass
    assert found["kv"]["used"] == 0


def twice(http: httpx.Client, name: str, stream: bool, begun: list[str], *keys: str) -> None:
    """The rule: the second answer is the first one, and says so; nothing is computed for it."""
    route = ROUTES[name]
    body = route.body(TOKENS, stream)
    first, second = (http.post(route.path, json=body, headers={KEY: key} if key else {}) for key in keys)
    assert first.status_code == 200, first.text
    assert len(begun) == 1, "one program for both"
    assert first.content == second.content
    assert first.headers["content-type"] == second.headers["content-type"]
    assert first.headers["x-request-id"] == second.headers["x-request-id"], "it is the run's"
    assert "idempotent-replayed" not in first.headers and second.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ROUTES)
def test_one_run_for_one_key(http: httpx.Client, begun: list[str], name: str, stream: bool):
    twice(http, name, stream, begun, f"{name}{stream}".replace(" ", ""), f"{name}{stream}".replace(" ", ""))


@pytest.mark.parametrize("name", ["program", "chat"])
@pytest.mark.parametrize("keys", [("", ""), ("one", "other"), ("one-more", "")])
def test_without_the_same_key_there_are_two(http: httpx.Client, begun: list[str], name: str, keys: tuple[str, str]):
    """The positive controls."""
    with pytest.raises(AssertionError, match="one program for both"):
        twice(http, name, False, begun, *(f"{name}-{key}" if key else "" for key in keys))


def attached(http: httpx.Client, name: str, begun: list[str], key: str, *, leave: bool) -> None:
    """The rule: a request that comes while the run is under way reads it from its beginning, also when the one that
    began it is gone."""
    route = ROUTES[name]
    body = route.body(48, True)
    with http.stream("POST", route.path, json=body, headers={KEY: key}) as first:
        parts = first.iter_bytes()
        beginning = next(parts)
        with http.stream("POST", route.path, json=body, headers={KEY: key}) as second:
            assert second.headers.get("idempotent-replayed") == "true"
            if leave:
                first.close()
            else:
                beginning += b"".join(parts)
            told = second.read()
    assert told.startswith(beginning) and (leave or told == beginning)
    assert len(begun) == 1
    assert http.post(route.path, json=body, headers={KEY: key}).content == told


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("name", ["program", "plan", "chat"])
def test_attaching_to_a_run(http: httpx.Client, begun: list[str], name: str, leave: bool):
    attached(http, name, begun, f"attach-{name[:4]}-{leave}", leave=leave)


def test_all_leave_and_one_comes_again(served: Served, http: httpx.Client, begun: list[str]):
    route = ROUTES["program"]
    body = route.body(48, True)
    for _ in range(3):
        with http.stream("POST", route.path, json=body, headers={KEY: "leave"}) as answer:
            next(answer.iter_bytes())
    ended(served)
    answer = http.post(route.path, json=body, headers={KEY: "leave"})
    assert len(begun) == 1 and "event: ended" in answer.text and '"completion_tokens":48' in answer.text


# -- tenants


def separate(served: Served) -> None:
    """The rule: nobody is given what was made for another API key, and nobody is told that a key is in use there."""
    body = ROUTES["chat"].body(TOKENS, False)
    with client(served, "alice") as alice, client(served, "bob") as bob:
        mine = alice.post("/v1/chat/completions", json=body, headers={KEY: "shared"})
        other = bob.post("/v1/chat/completions", json=body, headers={KEY: "shared"})
        assert other.json()["id"] != mine.json()["id"] and "idempotent-replayed" not in other.headers
        probe = bob.post("/v1/completions", json=ROUTES["completions"].body(1, False), headers={KEY: "probe"})
        assert alice.post("/v1/chat/completions", json=body, headers={KEY: "probe"}).status_code == 200
        assert probe.status_code == 200


def test_keys_are_separate_for_each_api_key(served: Served):
    separate(served)


def test_shared_keys_are_found(served: Served, monkeypatch: pytest.MonkeyPatch):
    """The positive control."""
    monkeypatch.setattr(idempotency, "_key", lambda given, scope: ("", False, b"all" + given[0]))
    with pytest.raises(AssertionError):
        separate(served)


# -- refusals, and what is not kept


def test_another_request_under_the_same_key(http: httpx.Client):
    route = ROUTES["generate"]
    assert http.post(route.path, json=route.body(1, False), headers={KEY: "used"}).status_code == 200
    for path, body in ((route.path, route.body(2, False)), ("/v1/completions", ROUTES["completions"].body(1, False))):
        refused = http.post(path, json=body, headers={KEY: "used"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert http.post("/api/chat", json={}, headers={KEY: "used"}).json()["error"].startswith("this Idempotency-Key")


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", '"open', "caf\u00e9"])
def test_malformed_keys(http: httpx.Client, begun: list[str], key: str):
    refused = http.post("/generate", json=ROUTES["generate"].body(1, False), headers={KEY: key.encode()})  # type: ignore[dict-item]
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_idempotency_key")
    assert begun == []


def test_a_key_twice(served: Served):
    sent = request("POST", "/generate", "Authorization: Bearer alice", f"{KEY}: a", f"{KEY}: b", body=b"{}")
    status, body, _ = answer_to(served.url, sent)
    assert (status, body["error"]["code"]) == (400, "invalid_header")


def test_limits_of_the_body_stand_in_front(served: Served, http: httpx.Client):
    big = {"text": "x" * (5 << 20)}
    assert http.post("/generate", json=big, headers={KEY: "big"}).status_code == 413
    assert httpx.post(served.url + "/generate", json={}, headers={KEY: "big"}, verify=False).status_code == 401


def test_a_refusal_is_not_kept(http: httpx.Client, begun: list[str]):
    route = ROUTES["generate"]
    wrong = {**route.body(1, False), "sampling_params": {"max_new_tokens": -5}}
    for _ in range(2):
        refused = http.post(route.path, json=wrong, headers={KEY: "again"})
        assert refused.status_code == 400 and "idempotent-replayed" not in refused.headers
    assert http.post(route.path, json=route.body(1, False), headers={KEY: "again"}).status_code == 200


@pytest.mark.parametrize("name", ["program", "chat", "responses"])
def test_a_stream_that_was_cut_short_is_not_kept(served: Served, http: httpx.Client, begun: list[str], name: str):
    """A retry is a new attempt."""
    route = ROUTES[name]
    key = {KEY: f"cut-{name}"}
    body = route.body(900, True)
    with http.stream("POST", route.path, json=body, headers=key) as answer:
        parts = answer.iter_bytes()
        next(parts)
        assert http.post("/abort_request", json={"abort_all": True}).json()["aborted"] == 1
        assert "error" in b"".join(parts).decode()
    with http.stream("POST", route.path, json=body, headers=key) as answer:
        assert "idempotent-replayed" not in answer.headers
        next(answer.iter_bytes())
        http.post("/abort_request", json={"abort_all": True})
    assert len(begun) == 2
    ended(served)


def test_a_program_that_lost_its_engine_is_not_kept():
    """Its stream ends as a program's does, and says so in its last event."""
    told: list[str] = []

    asked = Request({"type": "http", "ramet.unfinished": lambda: told.append("unfinished")})

    async def events(kind: str) -> Any:
        yield ir.Ended(usage=ir.Usage(), kind=kind)

    async def read(kind: str) -> None:
        async for _ in _marked(events(kind), asked):
            pass

    driven(lambda: read(""))
    assert told == []
    driven(lambda: read("transport"))
    assert told == ["unfinished"]


def test_a_deadline_of_a_later_request(served: Served, http: httpx.Client, begun: list[str]):
    """It waits no longer than it said; the run goes on for the first."""
    route = ROUTES["generate"]
    body, key = route.body(900, False), {KEY: "slow"}
    answers: list[int] = []

    def ask() -> None:
        with client(served) as other:
            answers.append(other.post(route.path, json=body, headers=key).status_code)

    first = threading.Thread(target=ask)
    first.start()
    while not begun:
        pass
    assert http.post(route.path, json=body, headers={**key, "X-Request-Timeout": "0.01"}).status_code == 504
    assert not answers
    assert http.post("/abort_request", json={"abort_all": True}).json()["aborted"] == 1
    first.join(WAIT)
    assert answers == [499] and len(begun) == 1
    ended(served)


@pytest.mark.nightly
def test_the_engine_dies_under_a_keyed_program():
    """The key is free again: the retry runs on the next engine."""
    body, key = ROUTES["program"].body(900, True), {KEY: "killed"}
    with serving(in_process=False) as made, httpx.Client(base_url=made.url, timeout=WAIT) as http:
        with http.stream("POST", "/v1/programs", json=body, headers=key) as answer:
            parts = answer.iter_bytes()
            next(parts)
            made.client.kill()
            assert b'"kind":"transport"' in b"".join(parts)
        retried = http.post("/v1/programs", json=ROUTES["program"].body(900, True), headers=key)
        while retried.status_code == 503:
            retried = http.post("/v1/programs", json=body, headers=key)
        assert "idempotent-replayed" not in retried.headers and '"completion_tokens":900' in retried.text


def test_a_socket_has_no_key(served: Served):
    head = (f"{KEY}: a", "Authorization: Bearer alice", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    sent = request("GET", "/v1/programs", *head, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    sent = sent.replace(b"Connection: close", b"Connection: Upgrade")
    assert answer_to(served.url, sent)[0] == 400
