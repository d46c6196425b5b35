"""Compiling: bodies that keep something outside of themselves; what they keep locally is theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

import ramet as rt

WAIT = 20.0
seen: list[Any] = []
by_text: dict[str, str] = {}
latest = ""


def remember(text: str) -> None:
    seen.append(text)


def _appends(s: rt.State, q: str) -> str:
    seen.append(q)
    return s.gen(name="x", max_tokens=2).get()


def _appends_made(s: rt.State, q: str) -> str:
    remember(f"<{q}>")
    return s.gen(name="x", max_tokens=2).get()


def _appends_number(s: rt.State, q: str) -> str:
    seen.append(s.gen(int, name="n", max_tokens=2).get())
    return s.gen(name="x", max_tokens=2).get()


def _appends_handle(s: rt.State, q: str) -> str:
    seen.append(s.gen(name="x", max_tokens=2))
    return "done"


def _caches(s: rt.State, q: str) -> str:
    by_text["latest"] = s.gen(name="x", max_tokens=2).get()
    return "done"


def _sets_global(s: rt.State, q: str) -> str:
    global latest
    latest = q
    return s.gen(name="x", max_tokens=2).get()


def _fills_default(s: rt.State, q: str, log: deque[Any] = deque()) -> str:  # noqa: B006
    log.append(q)
    return s.gen(name="x", max_tokens=2).get()


KEEPS = [_appends, _appends_made, _appends_number, _appends_handle, _caches, _sets_global, _fills_default]
ANSWERS = {"n": "12", "x": "fine"}


@pytest.fixture(autouse=True)
def _forget() -> Any:
    global latest
    yield
    seen.clear()
    by_text.clear()
    latest = ""


@pytest.mark.parametrize("body", KEEPS, ids=lambda body: body.__name__)
def test_what_a_body_keeps_outside_is_a_break_where_it_returns(body: Callable[..., Any]) -> None:
    plan = rt.function(body).compile()
    [found] = plan.breaks
    assert found.kind == "differs" and "outside of itself" in found.reason
    assert len(plan.document.nodes[0].steps) >= 1, "what stands before it is sent ahead"
    seen.clear()
    by_text.clear()
    assert plan.run("q", backend=rt.Mock(ANSWERS)).result(WAIT) in ("fine", "done")
    if body in (_appends, _appends_made, _appends_number, _appends_handle):
        assert len(seen) == 1


def test_around_the_body_and_in_its_object() -> None:
    around: list[str] = []
    last = ""

    @rt.function
    def appends(s: rt.State, q: str) -> str:
        around.append(q)
        return "done"

    @rt.function
    def sets(s: rt.State, q: str) -> str:
        nonlocal last
        last = q
        return "done"

    class Agent:
        def __init__(self) -> None:
            self.history: list[str] = []
            self.last = ""

        @rt.function
        def ask(self, s: rt.State, q: str) -> str:
            self.last = s.gen(name="x", max_tokens=2).get()
            return self.last

        @rt.function
        def note(self, s: rt.State, q: str) -> str:
            self.history.append(q)
            return "done"

    for program, name in ((appends, "around"), (sets, "last"), (Agent().ask, "self"), (Agent().note, "self")):
        [found] = program.compile().breaks
        assert (found.kind, repr(name) in found.reason) == ("differs", True)
    agent = Agent()
    plan = agent.ask.compile()
    plan.run("q", backend=rt.Mock("new")).result(WAIT)
    assert agent.last == "new"


class Notes:
    """A body's own."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        self.texts.append(text)


WORDS = ["a", "b"]
COUNTS = {"calls": 0}


def _keeps_its_own(s: rt.State, q: str) -> list[str]:
    notes, mine = Notes(), []

    def note(text: str) -> None:
        mine.append(text)
        notes.add(text)

    for word in WORDS:
        note(f"{word}{q}")
    COUNTS["calls"] = 1
    note(s.gen(name="x", max_tokens=2).get())
    return [*notes.texts, *mine]


def test_what_is_kept_inside_stays_whole() -> None:
    program = rt.function(_keeps_its_own)
    plan = program.compile()
    assert plan.whole, plan.breaks
    expected = program.using(backend=rt.Mock("v")).run("q").result(WAIT)
    assert plan.run("q", backend=rt.Mock("v")).result(WAIT) == expected
