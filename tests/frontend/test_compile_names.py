"""Compiling: symbols as names, constraints and options; what is the trace's affair and no error of the program."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import ramet as rt
from ramet.frontend.planned import Break

WAIT = 20.0
FILE = Path(__file__).name


def line(body: Callable[..., Any], mark: str = "# here") -> str:
    lines, first = inspect.getsourcelines(body)
    return f"{FILE}:{first + next(index for index, each in enumerate(lines) if mark in each)}"


def only_break(plan: rt.Plan) -> Break:
    [found] = plan.breaks
    return found


# --- names ---


def _has(s: rt.State, k: str) -> str:
    s.gen(name="plan", max_tokens=2)
    return "has" if k in s else "not"  # here


def _has_composed(s: rt.State, k: str) -> str:
    s.gen(name="plan", max_tokens=2)
    return "has" if f"{k}{k}" in s else "not"  # here


def _sets(s: rt.State, k: str) -> str:
    s[k] = "one"  # here
    return "some" if "plan" in s else "none"


def _reads(s: rt.State, k: str) -> str:
    s.gen(name="plan", max_tokens=2)
    return s[k]  # here


def _reads_in_copy(s: rt.State, k: str) -> str:
    s.gen(name="plan", max_tokens=2)
    with s.copy() as inner:
        return "has" if k in inner else "not"  # here


def _gathers(s: rt.State, k: str) -> list[str]:
    branches = s.fork(2)
    for branch in branches:
        branch.gen(name="plan", max_tokens=2)
    return branches.gather(k)  # here


def _names(s: rt.State, k: str) -> str:
    return s.gen(name=k, max_tokens=2).get()  # here


def _names_expression(s: rt.State, k: str) -> str:
    s += rt.gen(k, max_tokens=2)  # here
    return "x"


def _names_choice(s: rt.State, k: str) -> str:
    return s.select(["v", "w"], name=k).get()  # here


def _grammar(s: rt.State, k: str) -> str:
    return s.gen(grammar=k, max_tokens=2).get()  # here


def _pattern(s: rt.State, k: str) -> str:
    return s.gen(regex=f"{k}{k}", max_tokens=2).get()  # here


def _schema(s: rt.State, k: str) -> str:
    return s.gen(json_schema=k, max_tokens=2).get()  # here


def _role(s: rt.State, k: str) -> str:
    with s.role(k):  # here
        return s.gen(max_tokens=2).get()


def _method(s: rt.State, k: str) -> str:
    return s.select(["v", "w"], method=k).get()  # type: ignore[arg-type]  # here


NAMED = [
    _has, _has_composed, _sets, _reads, _reads_in_copy, _gathers, _names, _names_expression, _names_choice, _grammar,
    _pattern, _schema, _role, _method,
]  # fmt: skip


@pytest.mark.parametrize("body", NAMED, ids=lambda body: body.__name__)
def test_a_name_that_only_a_run_knows_is_a_graph_break(body: Callable[..., Any]) -> None:
    plan = rt.function(body).compile()
    found = only_break(plan)
    assert (found.kind, found.where) == ("look", line(body))
    assert not [each for each in plan.check() if each.severity == "error"]


@pytest.mark.parametrize("body", [_has, _sets, _reads, _reads_in_copy, _gathers, _names, _names_choice])
def test_python_goes_on_there(body: Callable[..., Any]) -> None:
    program = rt.function(body)
    expected = program.using(backend=rt.Mock("v")).run("plan").result(WAIT)
    assert program.compile().run("plan", backend=rt.Mock("v")).result(WAIT) == expected


@rt.function
def few(
    s: rt.State,
    k: Literal["a", "b"],
    role: Literal["user", "system"],
    pattern: Literal["x+", "y"],
    method: Literal["greedy_token_selection", "token_length_normalized"],
) -> list[Any]:
    with s.role(role):
        s.gen(name=k, regex=pattern, max_tokens=2)
    s[f"note {k}"] = "n"
    s[k + k] = "m"
    s += s.value("aa" if k == "a" else "bb")
    with s.assistant():
        s.select(["v", "w"], name=k, method=method)
    return ["a" in s, k in s, s[k]]


def test_a_name_of_few_is_decided() -> None:
    """`k + k` is no symbol of few texts: the plan breaks there."""
    plan = few.compile()
    assert {found.kind for found in plan.breaks} == {"look"}
    assert len(plan.paths) == 8, "role, k and pattern"


@rt.function
def fewer(
    s: rt.State, k: Literal["a", "b"], method: Literal["greedy_token_selection", "token_length_normalized"]
) -> Any:
    s[k] = "n"
    s += s.value(k)
    s.select(["v", "w"], name="chosen", method=method)
    s.gen(name=k, max_tokens=2)
    return ["a" in s, k in s, s[k], s["chosen"]]


@pytest.mark.parametrize("method", ["greedy_token_selection", "token_length_normalized"])
@pytest.mark.parametrize("k", ["a", "b"])
def test_what_is_decided_is_whole(k: str, method: str) -> None:
    plan = fewer.compile()
    assert plan.whole and len(plan.paths) == 4
    answers = {"a": "1", "b": "2", "chosen": "w"}
    mock, other = rt.Mock(answers), rt.Mock(answers)
    expected = fewer.using(backend=other).run(k, method).result(WAIT)
    for each in (plan, rt.Plan.loads(plan.dumps())):
        assert each.run(k, method, backend=mock).result(WAIT) == expected
    assert mock.prompts == other.prompts * 2


# --- what is no error of the program ---


def height(place: Literal["tower", "bridge"]) -> str:
    """How high something is."""
    return "330 metres"


def _runs_tools(s: rt.State, k: str) -> str:
    s.user(k)
    s.run_tools(s.reply(tools=[height], max_tokens=60).get())  # here
    return s.reply(max_tokens=3).get()


def test_tools_that_a_reply_calls_are_a_look() -> None:
    plan = rt.function(_runs_tools).compile()
    found = only_break(plan)
    assert (found.kind, found.where) == ("look", line(_runs_tools))
    assert found.reason.startswith("Python runs the tools of the value of")
    assert not [each for each in plan.check() if each.severity == "error"]


async def _gather(s: rt.State, k: str) -> list[str]:
    return list(await asyncio.gather(*(branch.gen(max_tokens=2) for branch in s.fork(2))))  # here


async def _timeout(s: rt.State, k: str) -> str:
    async with asyncio.timeout(5):  # here
        return await s.gen(max_tokens=2)


async def _group(s: rt.State, k: str) -> str:
    async def one(branch: rt.State) -> str:
        return await branch.gen(max_tokens=2)

    async with asyncio.TaskGroup() as group:  # here
        tasks = [group.create_task(one(branch)) for branch in s.fork(2)]
    return "".join(task.result() for task in tasks)


async def _sleeps(s: rt.State, k: str) -> str:
    await asyncio.sleep(0.001)  # here
    return await s.gen(max_tokens=2)


@pytest.mark.parametrize("body", [_gather, _timeout, _group, _sleeps], ids=lambda body: body.__name__)
def test_a_body_that_uses_its_loop_waits_there(body: Callable[..., Any]) -> None:
    plan = rt.function(body).compile()
    found = only_break(plan)
    assert (found.kind, found.where) == ("wait", line(body))
    assert not [each for each in plan.check() if each.severity == "error"]
    expected = rt.function(body).using(backend=rt.Mock("v")).run("k").result(WAIT)
    assert plan.run("k", backend=rt.Mock("v")).result(WAIT) == expected


# --- stand-ins that a body keeps ---

kept: list[Any] = []


def test_a_stand_in_that_was_kept_says_what_it_is() -> None:
    @rt.function
    def keeps(s: rt.State, q: str, mood: Literal["x", "y"], n: int) -> str:
        s += q
        value = s.gen(name="a", max_tokens=2)
        kept.extend([q, mood, n, value.get(), s.gen(int, name="b").get()])
        kept.append(value)
        return "done"

    kept.clear()
    keeps.compile()
    assert len(kept) >= 6
    uses: list[Callable[[Any], Any]] = [
        lambda one: one == "x", len, bool, hash, repr, lambda one: "x" in [one], lambda one: f"{one!r}"
    ]  # fmt: skip
    for one in kept[:5]:
        for use in uses:
            with pytest.raises(rt.PlanError, match="does not leave it"):
                use(one)
    with pytest.raises(rt.PlanError, match="does not leave it"):
        kept[5].get()
    kept.clear()
