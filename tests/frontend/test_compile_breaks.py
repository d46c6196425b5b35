"""Compiling: what needs Python, and how Python goes on there."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ramet as rt
from ramet.frontend.planned import Break, Step
from ramet.frontend.replay import Recorder

WAIT = 20.0
FILE = Path(__file__).name


def here(fn: Callable[..., Any], mark: str = "# here") -> str:
    """The line of a function's source that carries the mark."""
    lines, first = inspect.getsourcelines(fn)
    return f"{FILE}:{first + next(index for index, line in enumerate(lines) if mark in line)}"


def texts(plan: rt.Plan, node: int = 0) -> list[tuple[Any, ...]]:
    return [step.parts for step in plan.document.nodes[node].steps if step.parts]


def only_break(plan: rt.Plan) -> Break:
    [found] = plan.breaks
    return found


# --- what needs Python ---


@rt.function
def inner(s: rt.State) -> str:
    return s.gen(max_tokens=1).get()


def _broken(body: Callable[..., Any]) -> rt.Program[..., Any]:
    return rt.function(body)


async def _asleep(s: rt.State) -> str:
    s.gen(max_tokens=1)
    await asyncio.sleep(0)  # here
    return "x"


def _calls(s: rt.State) -> str:
    value = s.gen(max_tokens=1)
    s += s.call(len, value)  # here
    return "x"


def _maps(s: rt.State) -> Any:
    return s.gen(max_tokens=1).map(len).get()  # here


def _starts(s: rt.State) -> Any:
    return inner().result()  # here


def _reads_all(s: rt.State) -> Any:
    s.gen(max_tokens=1)
    return s.text()  # here


def _meta(s: rt.State) -> Any:
    return s.gen(max_tokens=1).meta.completion_tokens  # here


def _done(s: rt.State) -> Any:
    return s.gen(max_tokens=1).done  # here


def _scope(s: rt.State) -> Any:
    with s.var_scope("x"):  # here
        s.gen(max_tokens=1)
    return s["x"]


def _timeout(s: rt.State) -> Any:
    return s.gen(max_tokens=1).get(timeout=3)  # here


def _raises(s: rt.State) -> Any:
    raise ValueError("no")  # here


def _handle(s: rt.State) -> Any:
    return s.gen(max_tokens=1)  # here


def _object(s: rt.State) -> Any:
    return {1: s.gen(max_tokens=1).get()}  # here


BROKEN = {
    _asleep: "wait", _calls: "host", _maps: "host", _starts: "program", _reads_all: "look", _meta: "look",
    _done: "wait", _scope: "feature", _timeout: "feature", _raises: "raises",
}  # fmt: skip


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: body.__name__)
def test_what_needs_python_is_a_break_at_its_line(body):
    found = only_break(_broken(body).compile())
    assert (found.kind, found.where) == (BROKEN[body], here(body))


@pytest.mark.parametrize("body", [_handle, _object], ids=lambda body: body.__name__)
def test_results_that_only_python_makes(body):
    assert only_break(_broken(body).compile()).kind == "returns"


def test_what_stands_before_a_break_is_sent_ahead_and_python_goes_on():
    @rt.function
    def outline(s: rt.State, question: str) -> list[str]:
        s += f"Q: {question}\n"
        s.gen(name="first", max_tokens=9)
        s += "and"
        lines = s.gen(name="second", max_tokens=9).get().split()
        for branch in (branches := s.fork(lines)):
            branch += f"{branch.item}:"
            branch.gen(name="body", max_tokens=3)
        return branches.gather("body")

    plan = outline.compile()
    batches: list[int] = []

    class Counting(Recorder):
        def open(self, header: Any, deliver: Any) -> Any:
            session = super().open(header, deliver)
            send = session.send
            session.send = lambda ops: (batches.append(len(ops)), send(ops))[1]  # type: ignore[method-assign]
            return session

    answers = {"first": "x", "second": "a b c", "body": lambda prompt, var: prompt[-2:]}
    mock, other = rt.Mock(answers), rt.Mock(answers)
    recorder = Counting(mock)
    expected = outline.using(backend=other)("Why?").result(WAIT)
    run = plan.run("Why?", backend=recorder)
    assert run.result(WAIT) == expected == ["a:", "b:", "c:"]
    assert batches[0] == len(plan.document.nodes[0].steps) == 4
    assert mock.prompts == other.prompts
    assert run["first"] == "x"
    assert isinstance(run, rt.Run)


def test_a_program_that_has_changed_since_is_found_out():
    said = ["one"]

    @rt.function
    def changes(s: rt.State) -> str:
        s += said[0]
        s.gen(name="a", max_tokens=2)
        return s["a"].strip()

    plan = changes.compile()
    assert plan.breaks
    assert plan.run(backend=rt.Mock(" x ")).result(WAIT) == "x"
    said[0] = "two"
    with pytest.raises(rt.GenerationError, match=r"records another operation 0\.0 than its plan has"):
        plan.run(backend=rt.Mock(" x ")).result(WAIT)


def test_async_bodies():
    @rt.function
    async def asks(s: rt.State, q: str) -> list[str]:
        s += q
        first = await s.gen(name="a", max_tokens=2)
        both = await rt.agather(s.gen(name="b", max_tokens=2), s.gen(name="c", max_tokens=2))
        return [first, *both]

    plan = asks.compile()
    assert plan.whole
    assert plan.run("q", backend=rt.Mock({"a": "1", "b": "2", "c": "3"})).result(WAIT) == ["1", "2", "3"]


def test_a_body_that_swallows_everything_is_still_cut():
    @rt.function
    def swallows(s: rt.State, q: str) -> str:
        try:
            q.split()
        except BaseException:  # noqa: BLE001
            s += "afterwards"
        return "x"

    plan = swallows.compile()
    assert only_break(plan).kind == "look"
    assert plan.document.nodes[0].steps == ()


def test_every_step_has_its_line():
    for step in rt.function(_calls).compile().document.nodes[0].steps:
        assert isinstance(step, Step)
        assert step.where.startswith(FILE)
