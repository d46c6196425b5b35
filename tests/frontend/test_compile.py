"""Compiling: what a body does with symbols, where it looks at them, and that nothing is silently wrong."""

from __future__ import annotations

import inspect
import itertools
import json
import random
import re
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend.planned import Break, Param, Return, Said, Use
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


# --- text that is said ---


@rt.function
def saying(s: rt.State, name: str, count: int) -> str:
    s += f"Dear {name}, "
    s += "you have " + str(count) + " of " + name
    s += ", ".join([name, "x"]) + "%s!" % name + " {}".format(name)  # noqa: UP031, UP032
    return s.gen(name="reply", max_tokens=4).get()


def test_arguments_are_cut_out_of_text():
    plan = saying.compile()
    name, count = Param("name"), Param("count")
    assert texts(plan) == [("Dear ", name, ", you have ", count, " of ", name, name, ", x", name, "! ", name)]
    end = plan.document.nodes[0].end
    assert isinstance(end, Return)
    assert end.value == Said((Use("0.1"),))
    mock, other = rt.Mock("fine"), rt.Mock("fine")
    assert plan.run("Ann", 3, backend=mock).result(WAIT) == "fine"
    saying.using(backend=other)("Ann", 3).result(WAIT)
    assert mock.prompts == other.prompts


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_argument_gives_what_the_body_gives(first, second):
    recorded = []
    for start in (
        lambda b: EMPTYISH.using(backend=b, seed=1)(first, second),
        lambda b: PLAN.run(first, second, backend=b),
    ):
        recorder = Recorder(rt.Mock(lambda prompt, var: prompt[-3:]))
        result = start(recorder).result(WAIT)
        recorded.append((result, [op for op in recorder.programs[0].ops if type(op).__name__ != "Close"]))
    assert recorded[0] == recorded[1], "empty texts are no operations: ids count them out"


@rt.function
def EMPTYISH(s: rt.State, first: str, second: str) -> list[str]:
    s += first
    s.gen(name="a", max_tokens=2)
    s += second
    branches = s.fork(2)
    for branch in branches:
        branch += first + second
        branch.gen(name="b", max_tokens=2)
    s += first
    return [s["a"], *branches.gather("b"), f"{first}|{second}"]


PLAN = EMPTYISH.compile()


# --- looking at text ---

LOOKS: dict[str, Callable[[str], object]] = {
    "==": lambda q: q == "x",
    "in": lambda q: "a" in q,
    "len": lambda q: len(q),
    "split": lambda q: q.split(),
    "for": lambda q: [c for c in q],  # noqa: C416
    "if": lambda q: 1 if q else 2,
    "not": lambda q: not q,
    "hash": lambda q: hash(q),
    "dict": lambda q: {"a": 1}.get(q),
    "int": lambda q: int(q),
    "float": lambda q: float(q),
    "index": lambda q: q[0],
    "slice": lambda q: q[-3:],
    "format": lambda q: f"{q:>10}",
    "repr": lambda q: f"{q!r}",
    "strip": lambda q: q.strip(),
    "encode": lambda q: q.encode(),
    "sorted": lambda q: sorted([q, "b"]),
    "re.search": lambda q: re.search("a", q),
    "pattern": lambda q: PATTERN.findall(q),
    "json": lambda q: json.loads(q),
    "dedent": lambda q: textwrap.dedent(f"  {q}"),
    "startswith of an f-string": lambda q: f"<{q}>".startswith("<Yes"),
    "pattern on an f-string": lambda q: PATTERN.findall((text := f"<{q}>") and text),
}
PATTERN = re.compile("x+")


@pytest.mark.parametrize("look", LOOKS)
def test_looking_is_a_graph_break_at_its_line(look):
    @rt.function
    def looks(s: rt.State, q: str) -> str:
        s += "before "
        s.gen(name="a", max_tokens=2)
        LOOKS[look](q)
        s += q
        return s.gen(name="b", max_tokens=2).get()

    found = only_break(looks.compile())
    lines, first = inspect.getsourcelines(inspect.getmodule(test_looking_is_a_graph_break_at_its_line))
    at = next(index for index, line in enumerate(lines) if line.lstrip().startswith(f'"{look}"'))
    assert found.kind == "look"
    assert found.where == f"{FILE}:{first + at + 1}"


@pytest.mark.parametrize("look", LOOKS)
def test_looking_at_a_value_is_one_too(look):
    @rt.function
    def looks(s: rt.State) -> str:
        s.gen(name="a", max_tokens=2)
        LOOKS[look](s["a"])
        return s.gen(name="b", max_tokens=2).get()

    plan = looks.compile()
    assert only_break(plan).kind == "look"
    assert [type(step.op).__name__ for step in plan.document.nodes[0].steps] == ["Gen"]


HIDDEN: dict[str, Callable[[str], object]] = {
    "in": lambda q: "DONE" in f"<{q}>",
    "==": lambda q: f"{q}" + "!" == "DONE!",
    "digits": lambda q: any(c.isdigit() for c in list(f"<{q}>")),
    "len": lambda q: len(f"<{q}>") > 20,
    "lines": lambda q: sum(c == "\n" for c in f"<{q}>") > 1,
    "needle": lambda q: "x".replace(q, "") == "y" or len(f"{q}.") > 9,
}


@pytest.mark.parametrize("look", HIDDEN)
def test_what_symbols_cannot_see_is_found_by_tracing_twice(look):
    @rt.function
    def looks(s: rt.State, q: str) -> str:
        s += "before"
        s.gen(name="a", max_tokens=2)
        if HIDDEN[look](q):
            s += "seen"  # here
        return s.gen(name="b", max_tokens=2).get()

    plan = looks.compile()
    found = only_break(plan)
    assert found.kind in ("differs", "look")
    assert [type(step.op).__name__ for step in plan.document.nodes[0].steps] == ["Text", "Gen"]


@pytest.mark.parametrize(
    "change",
    [
        lambda q: f"<{q}>"[:-3] + ">",
        lambda q: "%.2s" % q,  # noqa: UP031
        lambda q: "%9s" % q,  # noqa: UP031
        lambda q: json.dumps([f"{q}."]),
    ],
)
def test_changed_text_is_found(change):
    @rt.function
    def changes(s: rt.State, q: str) -> str:
        s += "x" + change(q)
        return s.gen(max_tokens=2).get()

    assert changes.compile().breaks


def test_chance_and_time_and_state_are_found():
    counter = itertools.count()

    @rt.function
    def by_chance(s: rt.State, kind: Literal["random", "time", "count"]) -> str:
        s += "Pick "
        s.gen(name="a", max_tokens=2)
        if kind == "random":
            s += f"{random.random()}"
        elif kind == "time":
            s += f"{time.perf_counter_ns()}"
        else:
            s += f"{next(counter)}"
        return s.gen(max_tokens=2).get()

    for kind in ("random", "time", "count"):
        assert only_break(by_chance.compile(kind=kind)).kind == "differs"


def test_a_future_of_a_traced_value_has_a_repr() -> None:
    shown: list[str] = []

    @rt.function
    def body(s: rt.State) -> None:
        shown.append(repr(s.gen(name="said", max_tokens=2).future))

    plan = body.compile()
    assert not plan.breaks
    assert shown and all("Lazy" in text for text in shown)
