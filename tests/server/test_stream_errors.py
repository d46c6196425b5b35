"""A stream that fails ends in an error that its protocol's clients read, and nothing comes after it: no `[DONE]`, no
end as of an ordinary answer. For every route that streams, for every way in which a run is cut short."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.server import failures, response_answers, wire
from ramet.runtime.server.bridge import EngineLost
from ramet.runtime.server.failures import Failure

from .routes_table import ROUTES, Generating, events_of, openai_error
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
TOKENS = 900
PRIVATE = "something private"
HOW: dict[str, Callable[[], Exception]] = {
    "aborted": lambda: failures.of_event("aborted", "the request was aborted"),
    "deadline": lambda: failures.late("the deadline passed before the answer was complete"),
    "engine lost": lambda: EngineLost("the engine ended"),
    "unforeseen": lambda: ValueError(PRIVATE),
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


def cut_short(served: Served, route: Generating, error: Exception) -> bytes:
    """A stream whose run ends with `error` after its first bytes."""

    def end() -> None:
        for run in [run for runs in served.service._runs.values() for run in runs]:
            run.fail(error)  # type: ignore[arg-type]

    with httpx.stream("POST", served.url + route.path, json=route.body(TOKENS, True), timeout=WAIT) as answer:
        assert answer.status_code == 200, answer.read()
        parts = answer.iter_bytes()
        first = next(parts)
        served.loop.call_soon_threadsafe(end)
        return first + b"".join(parts)


def check(route: Generating, body: bytes, *, foreseen: bool = True) -> None:
    """The rule. Only what is not foreseen may be told in another protocol's shape."""
    events = events_of(route, body)
    failed = route.failed(events) or (not foreseen and openai_error(events))
    assert failed, events[-2:]
    assert "[DONE]" not in [data for _, data in events]
    assert PRIVATE.encode() not in body
    last = 2 if route.path == "/v1/responses" and foreseen else 1
    assert len(events) > last, "something came before the error"
    assert not any("error" in name or "error" in data for name, data in events[:-last] if name != "response.created")


@pytest.mark.parametrize(
    "how",
    ["aborted", "unforeseen", *(pytest.param(how, marks=pytest.mark.nightly) for how in ("deadline", "engine lost"))],
)
@pytest.mark.parametrize("name", ROUTES)
def test_an_error_is_the_last_event(served: Served, name: str, how: str):
    check(ROUTES[name], cut_short(served, ROUTES[name], HOW[how]()), foreseen=how != "unforeseen")


def test_all_routes_that_stream_are_in_the_table(served: Served):
    described = httpx.get(served.url + "/openapi.json", timeout=WAIT).json()
    found = set()
    for path, operations in described["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for shape in content.values():
            fields = described["components"]["schemas"][shape["schema"]["$ref"].rpartition("/")[2]]["properties"]
            if "stream" in fields:
                found.add(path)
    assert found - {route.path for route in ROUTES.values()} <= SILENT
    assert {route.path for route in ROUTES.values()} <= found


SILENT = {"/v1/decisions"}  # takes the field, and streams nothing


# -- faults that the check must find


async def _send_then_done(self: Any, send: Any, scope: Any) -> None:
    held: list[Any] = []

    async def hold(message: Any) -> None:
        held.append(message)
        if message.get("more_body", False):
            await send(held.pop())

    await SEND(self, hold, scope)
    await send({**held[0], "more_body": True})
    await send({"type": "http.response.body", "body": self._frame("[DONE]"), "more_body": False})


async def _send_an_end(self: Any, send: Any, scope: Any) -> None:
    self._failed = lambda failure: self._done if self._done is not None else {"type": "ended"}
    await SEND(self, send, scope)


async def _send_words(self: Any, send: Any, scope: Any) -> None:
    self._failed = lambda failure: {"error": {"message": str(failure.__cause__ or failure), "detail": PRIVATE}}
    await SEND(self, send, scope)


async def _cut(self: Any, send: Any, scope: Any) -> None:
    self._failed = lambda failure: b""
    self._frame = functools.partial(_without_nothing, self._frame)
    await SEND(self, send, scope)


def _without_nothing(frame: Any, item: Any) -> bytes:
    return b"" if item == b"" else bytes(frame(item))


SEND = wire.Stream._send
FAULTS = {
    "something follows the error": _send_then_done,
    "it ends as an ordinary answer": _send_an_end,
    "it quotes what went wrong": _send_words,
    "it ends without a word": _cut,
}


@pytest.mark.parametrize("name", ["chat", "program", "ollama chat"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(served: Served, monkeypatch: pytest.MonkeyPatch, fault: str, name: str):
    """The positive controls: the same check, with the rule broken where it is kept."""
    monkeypatch.setattr(wire.Stream, "_send", FAULTS[fault])
    body = cut_short(served, ROUTES[name], HOW["aborted"]())
    with pytest.raises((AssertionError, KeyError, TypeError, ValueError)):
        check(ROUTES[name], body)


def test_responses_that_end_as_whole_ones_are_found(served: Served, monkeypatch: pytest.MonkeyPatch):
    """Its errors are events of its own."""

    async def events(*args: Any) -> AsyncGenerator[Any, None]:
        with contextlib.suppress(Failure):
            async for batch in EVENTS(*args):
                yield [event for event in batch if event.name not in ("error", "response.failed")]

    monkeypatch.setattr("ramet.runtime.server.responses.events", events)
    body = cut_short(served, ROUTES["responses"], HOW["aborted"]())
    with pytest.raises(AssertionError):
        check(ROUTES["responses"], body)


EVENTS = response_answers.events
