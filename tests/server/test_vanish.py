"""A client that vanishes in the middle of a program: its branches end, its KV comes back, every invariant holds after
every step; and a run whose request has a key is the server's, and goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from ramet.runtime import process
from ramet.runtime.server.running import Run

from ..runtime.engines import CheckedCore
from .routes_table import ROUTES
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
BRANCHES, TOKENS = 4, 120
QUESTIONS = 2000  # a few milliseconds each, until the memory must be back
SAMPLING = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 1.0}
PROGRAM: list[dict[str, Any]] = [
    {"type": "text", "id": "0.0", "seq": "0", "parts": ["Once upon a time there was a river"]},
    {"type": "fork", "id": "0.1", "seq": "0", "into": [f"0.1.b{n}" for n in range(BRANCHES)]},
    *(
        {"type": "gen", "id": f"0.1.b{n}.0", "seq": f"0.1.b{n}", "var": "x", "sampling": SAMPLING}
        for n in range(BRANCHES)
    ),
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "EngineCore", CheckedCore)
        with serving(idempotency_seconds=30) as made:
            yield made


def figures(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(served.url + "/server_info", timeout=WAIT, verify=False).json()
    return found


def whole_stream(served: Served, **options: Any) -> None:
    """Leave an answer of the whole program."""
    with httpx.stream("POST", served.url + "/v1/programs", json={"ops": PROGRAM}, timeout=WAIT, **options) as answer:
        next(answer.iter_bytes())


def plain_answer(served: Served, **options: Any) -> None:
    """Leave before the answer, which comes as one."""
    body = {"ops": PROGRAM, "stream": False}
    with contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=httpx.Timeout(WAIT, read=0.1)) as http:
        http.post(served.url + "/v1/programs", json=body, **options)


def open_socket(served: Served) -> None:
    """Leave a socket without a closing handshake."""
    with connect("ws" + served.url.removeprefix("http") + "/v1/programs", open_timeout=WAIT) as line:
        line.send(json.dumps({"version": 1, "ops": PROGRAM}))
        while json.loads(line.recv(WAIT))["type"] != "token":
            pass
        line.socket.close()


def generating(name: str) -> Callable[[Served], None]:
    """Leave the stream of a route."""

    def leave(served: Served) -> None:
        route = ROUTES[name]
        body = route.body(BRANCHES * TOKENS, True)
        with httpx.stream("POST", served.url + route.path, json=body, timeout=WAIT) as answer:
            next(answer.iter_bytes())

    return leave


LEAVING: dict[str, Callable[[Served], None]] = {
    "stream": whole_stream,
    "answer": plain_answer,
    "socket": open_socket,
    **{name: generating(name) for name in ROUTES},
}


def check(served: Served, leave: Callable[[Served], None]) -> None:
    """The rule: what a client leaves is stopped, long before its end, and nothing of it is held."""
    before = figures(served)
    assert before["kv"]["used"] == 0 and before["programs"] == 0
    leave(served)
    for _ in range(QUESTIONS):
        after = figures(served)
        if after["programs"] == 0 and after["kv"]["used"] == 0 and served.service.running == 0:
            break
    else:
        raise AssertionError(f"still held: {after}")
    steps = after["steps"] - before["steps"]
    assert steps < TOKENS // 2, f"it was stopped after {steps} steps, and not at its end"
    assert after["kv"]["free"] + after["kv"]["cached"] == after["kv"]["total"]
    assert after["restarts"] == 0, "no invariant was broken: that would have ended the engine"


@pytest.mark.parametrize("name", LEAVING)
def test_what_a_client_leaves_is_freed(served: Served, name: str):
    check(served, LEAVING[name])


@pytest.mark.parametrize("name", ["stream", "socket"])
def test_a_run_that_is_not_stopped_is_found(served: Served, monkeypatch: pytest.MonkeyPatch, name: str):
    """The positive control: hanging up stops nothing, and the check says so."""
    left: list[Run] = []
    stop = Run._stop
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_stop", lambda run: left.append(run))
        patch.setitem(globals(), "QUESTIONS", 20)
        with pytest.raises(AssertionError, match="still held"):
            check(served, LEAVING[name])
    for run in left:
        stop(run)
    quiet(served)


def quiet(served: Served) -> None:
    """Wait for the end of what runs."""
    while figures(served)["programs"]:
        pass


@pytest.mark.parametrize("leave", [whole_stream, pytest.param(plain_answer, marks=pytest.mark.nightly)])
def test_a_run_with_a_key_is_finished(served: Served, leave: Callable[..., None]):
    """Its client may come again: the whole of it is there, and was computed once."""
    headers = {"Idempotency-Key": leave.__name__}
    leave(served, headers=headers)
    quiet(served)
    steps = figures(served)["steps"]
    body = {"ops": PROGRAM} if leave is whole_stream else {"ops": PROGRAM, "stream": False}
    answer = httpx.post(served.url + "/v1/programs", json=body, headers=headers, timeout=WAIT)
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.text.count('"finished"') >= BRANCHES and '"ended"' in answer.text
    assert figures(served)["steps"] == steps
    assert figures(served)["kv"]["used"] == 0


@pytest.mark.nightly
def test_with_no_time_to_keep_it_a_run_with_a_key_ends_with_its_client():
    with serving(idempotency_seconds=0) as made:
        check(made, lambda served: whole_stream(served, headers={"Idempotency-Key": "k"}))
