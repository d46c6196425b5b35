"""What each refusal looks like: its status, OpenAI's error object, `Retry-After` where there is something to wait for;
in a stream a last event with the error, and no `[DONE]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from ramet.runtime.server.failures import Failure

from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model

LONG = 300
OPS = [
    {"type": "text", "id": "0.0", "seq": "0", "parts": ["Once upon a time"]},
    {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": LONG, "ignore_eos": True}},
]
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"text": "Once upon a time", "sampling_params": {"max_new_tokens": LONG, "ignore_eos": True}},
    "/v1/completions": {"model": "tiny", "prompt": "Once upon a time", "max_tokens": LONG, "ignore_eos": True},
    "/v1/chat/completions": {"model": "tiny", "messages": MESSAGES, "max_tokens": LONG, "ignore_eos": True},
    "/v1/programs": {"version": 1, "ops": OPS},
}
MODELS = ("/v1/completions", "/v1/chat/completions")  # those whose bodies name one
KEY = {"authorization": "Bearer one"}
MAX_BODY = 4096


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=("one", "two"), max_running_requests=1, max_queue=0, max_body=MAX_BODY) as made:
        yield made


def post(served: Served, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"content-type": "application/json"}
    return httpx.post(served.url + path, content=content, headers={**kind, **KEY, **named}, timeout=WAIT)


def check(answer: httpx.Response, status: int, code: str | None, *, again: bool = False) -> None:
    """One shape for all: a sentence, a type, a code; `again`: when to come again."""
    assert answer.status_code == status, f"{answer.status_code}, not {status}: {answer.text}"
    assert set(answer.json()) == {"error"}, f"no error object: {answer.text}"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, f"another shape: {error}"
    assert error["message"] and error["type"], f"no words: {error}"
    assert code is None or error["code"] == code, f"another code: {error}"
    assert "Traceback" not in answer.text, "its innards"
    if again:
        assert int(answer.headers.get("retry-after", "0")) >= 1, "it does not say when to come again"
    else:
        assert "retry-after" not in answer.headers, "there is nothing to wait for"


@contextlib.contextmanager
def occupied(served: Served, rid: str = "mine") -> Iterator[Iterator[str]]:
    """The one place is taken by a stream, which is under way."""
    body = {**BODIES["/generate"], "rid": rid, "stream": True}
    with httpx.stream("POST", f"{served.url}/generate", json=body, headers=KEY, timeout=WAIT) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


# -- what is wrong with the request itself

REQUESTS: dict[str, tuple[Callable[[Served, str], httpx.Response], int, str | None]] = {
    "no JSON": (lambda s, path: post(s, path, b"{"), 400, None),
    "no object": (lambda s, path: post(s, path, []), 400, None),
    "another type": (lambda s, path: post(s, path, {**BODIES[path], "stream": "perhaps", "ops": 5}), 400, None),
    "no key": (lambda s, path: post(s, path, BODIES[path], authorization=""), 401, "invalid_api_key"),
    "another key": (lambda s, path: post(s, path, BODIES[path], authorization="Bearer three"), 401, "invalid_api_key"),
    "too large": (lambda s, path: post(s, path, {**BODIES[path], "x": "y" * MAX_BODY}), 413, None),
    "compressed": (
        lambda s, path: post(s, path, gzip.compress(json.dumps(BODIES[path]).encode()), content_encoding="gzip"),
        415,
        None,
    ),
    "too late": (lambda s, path: post(s, path, BODIES[path], x_request_timeout="0.001"), 504, "deadline_exceeded"),
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_is_refused(served: Served, name: str, path: str) -> None:
    ask, status, code = REQUESTS[name]
    check(ask(served, path), status, code)


@pytest.mark.parametrize("path", MODELS)
def test_a_model_that_is_not_there(served: Served, path: str) -> None:
    check(post(served, path, {**BODIES[path], "model": "nobody/else"}), 404, "model_not_found")


def test_a_label_that_is_in_use(served: Served) -> None:
    with occupied(served):
        check(post(served, "/generate", {**BODIES["/generate"], "rid": "mine"}), 409, "duplicate_id")


@pytest.mark.parametrize("path", BODIES)
def test_a_full_queue(served: Served, path: str) -> None:
    with occupied(served):
        check(post(served, path, BODIES[path]), 429, "rate_limit_exceeded", again=True)


# -- streams


def check_last(events: list[str]) -> None:
    """The last event is the error."""
    assert events[-1] != "[DONE]" and "[DONE]" not in events, "it says that it is done"
    last = json.loads(events[-1])
    error = last.get("error") or last.get("message")
    assert error, f"its last event is no error: {events[-1]}"
    assert all("error" not in json.loads(event) for event in events[:-1]), "something follows the error"


def cut_short(served: Served, path: str) -> list[str]:
    """The events of a stream that somebody aborts under way."""
    with httpx.stream(
        "POST", served.url + path, json={**BODIES[path], "stream": True}, headers=KEY, timeout=WAIT
    ) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        aborted = httpx.post(f"{served.url}/abort_request", json={"abort_all": True}, headers=KEY, timeout=WAIT)
        assert aborted.status_code == 200
        return [line.removeprefix("data: ") for line in [first, *lines] if line.startswith("data: ")]


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_that_is_cut_short(served: Served, path: str) -> None:
    check_last(cut_short(served, path))


# -- figures, health


def test_figures(served: Served) -> None:
    info = httpx.get(f"{served.url}/server_info", headers=KEY, timeout=WAIT).json()
    assert {"total", "free", "cached", "used"} <= set(info["kv"])
    assert info["kv"]["free"] + info["kv"]["cached"] + info["kv"]["used"] == info["kv"]["total"]
    assert {"running", "waiting"} <= set(info) and any("step" in name for name in info), sorted(info)
    assert [httpx.get(served.url + path).status_code for path in ("/health", "/ready")] == [200, 200]


# -- the server's own state


def test_while_it_drains() -> None:
    with serving() as served:
        asyncio.run_coroutine_threadsafe(served.service.drain(1.0), served.loop).result(WAIT)
        for path in BODIES:
            check(post(served, path, BODIES[path]), 503, "unavailable", again=True)
        check(httpx.get(f"{served.url}/ready"), 503, None, again=True)
        assert httpx.get(f"{served.url}/health").status_code == 200


def test_while_the_engine_is_restarted(served: Served) -> None:
    """The gate between a loss and the next engine, without patience (real losses: test_kill, test_watch)."""
    service, gate = served.service, served.service._gate
    before = gate._limits
    gate._limits = replace(before, patience=0.0, max_queue=1)
    served.loop.call_soon_threadsafe(gate.pause, service._restarting)
    try:
        for path in BODIES:
            check(post(served, path, BODIES[path]), 503, "unavailable", again=True)
    finally:
        gate._limits = before
        served.loop.call_soon_threadsafe(gate.resume)
    short = {"text": "Once", "sampling_params": {"max_new_tokens": 1}}
    assert post(served, "/generate", short).status_code == 200, "the next engine is not used"


# -- seeded faults, which these checks must find

Fault = tuple[Any, str, Any, Callable[[Served], None]]


def _full(served: Served) -> None:
    with occupied(served, "held"):
        check(post(served, "/generate", BODIES["/generate"]), 429, "rate_limit_exceeded", again=True)


FAULTS: dict[str, Fault] = {
    "no word of when": (Failure, "headers", lambda failure: {}, _full),
    "another shape": (Failure, "body", lambda failure: {"detail": failure.message}, _full),
    "no code": (Failure, "body", lambda failure: {"error": {"message": failure.message}}, _full),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found(served: Served, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner, attribute, fault, checks = FAULTS[name]
    monkeypatch.setattr(owner, attribute, fault)
    with pytest.raises(AssertionError):
        checks(served)


@pytest.mark.parametrize(
    "events",
    [
        ['{"text": "Once"}', '{"error": {"message": "no"}}', "[DONE]"],
        ['{"text": "Once"}', "[DONE]"],
        ['{"text": "Once"}'],
        ['{"error": {"message": "no"}}', '{"text": "Once"}', '{"error": {"message": "no"}}'],
    ],
)
def test_streams_that_end_otherwise_are_found(events: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_last(events)
