"""Compiling: which paths there are, what stays open, what a plan returns."""

from __future__ import annotations

import enum
import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import ramet as rt
from ramet.frontend import tracing
from ramet.frontend.planned import Break, Decision, Param, Use

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


# --- paths ---


class Mood(enum.Enum):
    CALM = "calm"
    WILD = 2


@rt.function
def moods(s: rt.State, loud: bool, mood: Mood, lang: Literal["en", "de"]) -> str:
    s += "LOUD" if loud else "quiet"
    s += f"{mood.name} in {lang}"
    return s.gen(name="x", max_tokens=2).get() + (" ja" if lang == "de" else " yes")


def test_finite_parameters_are_explored():
    plan = moods.compile()
    assert [p.domain for p in plan.params] == [("True", "False"), ("calm", "2"), ("en", "de")]
    assert len(plan.paths) == 8
    for loud, mood, lang in itertools.product((True, False), Mood, ("en", "de")):
        mock, other = rt.Mock("m"), rt.Mock("m")
        expected = moods.using(backend=other)(loud, mood, lang).result(WAIT)
        assert plan.run(loud, mood, lang=lang, backend=mock).result(WAIT) == expected
        assert mock.prompts == other.prompts
    with pytest.raises(rt.PlanError, match="must be one of en, de"):
        plan.run(True, Mood.CALM, "fr", backend=rt.Mock(""))


@rt.function
def router(s: rt.State, question: str) -> str:
    s += question
    topic = s.select(["maths", "music", "none"], name="topic")
    s += f"\nTopic: {s['topic']}\n"
    if topic.get() == "none":
        return "no topic"
    s += {"maths": "Compute.", "music": "Sing."}[s["topic"]]
    return s.gen(name="answer", max_tokens=3).get()


def test_a_choice_that_is_looked_at_forks_the_trace():
    plan = router.compile()
    assert len(plan.paths) == 3
    decision = plan.document.nodes[0].end
    assert isinstance(decision, Decision)
    assert decision.outcomes == ("maths", "music", "none")
    assert decision.where == here(router._fn, '== "none"')
    for topic in decision.outcomes:
        mock, other = (rt.Mock({"topic": topic, "answer": "42"}) for _ in range(2))
        run = plan.run("Why?", backend=mock)
        assert run.result(WAIT) == router.using(backend=other)("Why?").result(WAIT)
        assert mock.prompts == other.prompts


def test_a_choice_that_is_said_alone_does_not():
    @rt.function
    def says(s: rt.State) -> str:
        scores = [s.select(["1", "2", "3", "4", "5"], name=f"score{k}").get() for k in range(4)]
        s += "Scores: " + ", ".join(scores)
        return s.gen(max_tokens=2).get()

    plan = says.compile()
    assert len(plan.paths) == 1
    assert texts(plan) == [("Scores: ", Use("0.0"), ", ", Use("0.1"), ", ", Use("0.2"), ", ", Use("0.3"))]


def test_too_many_paths_are_marked():
    @rt.function
    def many(s: rt.State) -> int:
        return sum(s.gen(bool, name=f"b{k}").get() for k in range(5))

    assert len(many.compile().paths) == 32
    plan = many.compile(max_paths=4)
    assert plan.document.truncated
    assert {found.kind for found in plan.breaks} == {"limit"}
    assert all(found.where for found in plan.breaks)
    mock = rt.Mock("True")
    assert plan.run(backend=mock).result(WAIT) == 5, "Python goes on where the plan ends"
    assert plan.run(backend=rt.Mock("False")).result(WAIT) == 0


def test_endless_loops_end(monkeypatch):
    monkeypatch.setattr(tracing, "MOST_STEPS", 500)

    @rt.function
    def until(s: rt.State) -> str:
        while s.gen(bool).get():
            s += "again"
        return "done"

    @rt.function
    def never(s: rt.State) -> None:
        while True:
            s.gen(max_tokens=1)

    plan = until.compile(max_paths=8)
    assert "limit" in {found.kind for found in plan.breaks}
    answers = iter(["True"] * 20)
    assert plan.run(backend=rt.Mock(lambda prompt, var: next(answers, "False"))).result(WAIT) == "done"
    assert only_break(never.compile()).kind == "limit"


# --- types and results ---


@dataclass(frozen=True)
class Point:
    x: int
    label: str


@dataclass(frozen=True)
class Report:
    point: Point
    ok: bool
    count: int
    note: str


@rt.function
def typed(s: rt.State, q: str) -> tuple[Report, list[int]]:
    s += q
    point = s.gen(Point, name="point", max_tokens=40).get()
    count = s.gen(int, name="count", max_tokens=4).get()
    s += f" {count} times "
    ok = s.gen(bool, name="ok").get()
    return Report(point, ok, count, f"<{q}>"), [1, count]


def test_typed_values_are_what_the_body_returns():
    plan = typed.compile()
    assert len(plan.paths) == 2
    answers = {"point": '{"x": 3, "label": "a"}', "count": "7", "ok": "False"}
    mock, other = rt.Mock(answers), rt.Mock(answers)
    assert plan.run("q", backend=mock).result(WAIT) == typed.using(backend=other)("q").result(WAIT)
    assert mock.prompts == other.prompts
    loaded = rt.Plan.loads(plan.dumps())
    point, report = {"x": 3, "label": "a"}, loaded.run("q", backend=rt.Mock(answers)).result(WAIT)
    assert report == ({"point": point, "ok": False, "count": 7, "note": "<q>"}, [1, 7])


def test_typed_values_that_are_looked_at_break():
    @rt.function
    def adds(s: rt.State) -> int:
        return s.gen(int, max_tokens=4).get() + 1

    @rt.function
    def reads(s: rt.State) -> int:
        return s.gen(Point, max_tokens=4).get().x

    for program in (adds, reads):
        assert only_break(program.compile()).kind == "look"


# --- what is open ---


@rt.function
def opened(s: rt.State, q: str, labels: Sequence[str] = ("a", "b"), n: int = 2) -> str:
    for _ in range(n):
        s += q
    return s.select(labels, name="label").get()


def test_defaults_are_compiled_in_unless_they_are_left_open():
    assert [p.name for p in opened.compile().params] == ["q"]
    assert len(texts(opened.compile(n=3))[0]) == 3
    assert [p.name for p in opened.bind(q="x").compile().params] == []
    plan = opened.compile(n=...)
    assert [p.name for p in plan.params] == ["q", "n"]
    assert only_break(plan).kind == "look", "a number that shapes the program must be given"
    assert plan.run("q", 3, backend=rt.Mock("b")).result(WAIT) == "b"


@pytest.mark.parametrize(
    ("static", "message"),
    [
        ({"max_paths": 0}, "max_paths=0"),
        ({"labls": []}, "did you mean labels"),
        ({"max_paths": True}, "max_paths=True"),
    ],
)
def test_bad_static_arguments(static, message):
    with pytest.raises(rt.ConstraintError, match=message):
        opened.compile(**static)


def test_what_cannot_be_left_open():
    @rt.function
    def maybe(s: rt.State, context: str | None) -> str:
        return s.gen(max_tokens=1).get()

    with pytest.raises(rt.ConstraintError, match=re.escape("compile(context=...)")):
        maybe.compile()
    assert maybe.compile(context=None).whole
    with pytest.raises(rt.ConstraintError, match="budget"):
        maybe.using(budget=10).compile(context=None)


def test_methods_and_the_other_spelling():
    class Poet:
        style = "haiku"

        @rt.function
        def write(self, s: rt.State, topic: str) -> str:
            s += f"A {self.style} on {topic}:"
            return s.gen(max_tokens=3).get()

    plan = Poet().write.trace()
    assert texts(plan) == [("A haiku on ", Param("topic"), ":")]
