"""How programs are called: arguments in the signature's order, whatever a body is made of; and types at their edges."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pytest

import ramet as rt

WAIT = 20.0


def said(program: Any, *args: Any, **kwargs: Any) -> Any:
    return program.using(backend=rt.Mock("x"))(*args, **kwargs).result(WAIT)


def test_arguments_before_a_rest() -> None:
    @rt.function
    def body(s: rt.State, a: int, b: int = 2, *rest: int, c: int = 3) -> Any:
        return a, b, rest, c

    assert said(body, 1) == (1, 2, (), 3)
    assert said(body, 1, 5, 7, 8, c=9) == (1, 5, (7, 8), 9)
    assert said(body.bind(rest=(7, 8)), 1) == (1, 2, (7, 8), 3)
    assert said(body.bind(b=6, rest=(7,)), a=1) == (1, 6, (7,), 3)
    runs = body.using(backend=rt.Mock("x")).batch([(1, 5, 7), {"a": 4}]).result()
    assert runs == [(1, 5, (7,), 3), (4, 2, (), 3)]
    with pytest.raises(TypeError, match=r"missing a required argument: 'a'"):
        said(body.bind(rest=(7, 8)))


def test_arguments_without_names_are_bound_in_order() -> None:
    @rt.function
    def body(s: rt.State, a: str, b: str = "-", /) -> str:
        return a + b

    assert said(body.bind(b="B", a="A")) == "AB"
    assert said(body.bind(a="A")) == "A-"
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        said(body.bind(b="B"))


def test_a_parameter_named_like_a_state() -> None:
    @rt.function
    def tax(prog, state: str) -> str:  # type: ignore[no-untyped-def]
        return state

    assert said(tax, "NY") == "NY"

    class Clerk:
        @rt.function
        def ask(self, s, q: str) -> str:  # type: ignore[no-untyped-def]
            return q

    assert said(Clerk().ask, "q") == "q"


def test_bodies_that_nobody_would_run() -> None:
    def yields(s: rt.State) -> Any:
        yield 1

    async def streams(s: rt.State) -> Any:
        yield 1

    for body in (yields, streams):
        with pytest.raises(rt.ConstraintError, match=f"{body.__name__}: yields"):
            rt.function(body)

    @rt.function
    def gives(s: rt.State) -> Any:
        async def inner() -> None: ...

        return inner()

    with pytest.raises(rt.StateError, match="coroutine"):
        said(gives)


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


class Grades:
    def __call__(self, s: rt.State, q: str) -> str:
        s += q
        return s.gen().get()


class Waits:
    async def __call__(self, s: rt.State, q: str) -> str:
        s += q
        return await s.gen()


async def waits(s: rt.State, q: str) -> str:
    s += q
    return await s.gen()


def two(s: rt.State, a: str, q: str) -> str:
    s += a + q
    return s.gen().get()


@pytest.mark.parametrize("body", [Grades(), Waits(), logged(waits), functools.partial(two, a="x"), logged(two)])
def test_what_stands_for_a_function(body: Any) -> None:
    program = rt.function(body)
    given = {"a": "x"} if body.__dict__.get("__wrapped__") is two else {}
    run = program.using(backend=rt.Mock("yes"))(q="q", **given)
    assert run.result(WAIT) == "yes"
    assert program.__name__ in repr(program) and program.__name__


# --- types ---


class Level(enum.Enum):
    LOW = 0.5
    HIGH = 1.0


class Row(NamedTuple):
    level: Level


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (list[Literal[0.5, 2]], "[0.5, 2]", [0.5, 2]),
        (list[Level], "[0.5, 1]", [Level.LOW, Level.HIGH]),
        (dict[str, Level], '{"a": 1.0}', {"a": Level.HIGH}),
        (Row, '{"level": 0.5}', Row(Level.LOW)),
        (Level, "0.5", Level.LOW),
        (tuple[()], "[]", ()),
        (tuple, "[1, 2]", (1, 2)),
    ],
)
def test_what_is_read(type_: Any, text: str, value: Any) -> None:
    @rt.function
    def body(s: rt.State) -> Any:
        s += "x"
        return s.gen(type_).get()

    assert body.using(backend=rt.Mock(text))().result(WAIT) == value


class Clash(enum.Enum):
    A = (1, 2)
    B = "A"


@dataclasses.dataclass
class Made:
    a: int
    seed: dataclasses.InitVar[int]


@pytest.mark.parametrize(
    ("type_", "message"),
    [(list[Clash], "two of its values are the same JSON"), (Made, "is made with 'seed', which is no field")],
)
def test_what_cannot_be_read_is_refused_at_its_line(type_: Any, message: str) -> None:
    @rt.function
    def body(s: rt.State) -> Any:
        s += "x"
        return s.gen(type_).get()

    with pytest.raises(rt.ConstraintError, match=message):
        said(body)


@pytest.mark.parametrize(("type_", "text"), [(list[float], "[NaN]"), (list[float], "[Infinity]"), (tuple[()], "[1]")])
def test_what_is_no_value_of_a_type(type_: Any, text: str) -> None:
    @rt.function
    def body(s: rt.State) -> Any:
        s += "x"
        return s.gen(type_).get()

    with pytest.raises((rt.ParseError, rt.GenerationError)):
        body.using(backend=rt.Mock(text))().result(WAIT)


def test_floats_of_an_engine() -> None:
    @rt.function(temperature=1.0)
    def body(s: rt.State) -> Any:
        s += "x"
        return s.gen(list[Level], name="x", max_tokens=60).get()

    with rt.Engine("random:tiny", threads=1) as engine:
        for seed in range(6):
            try:
                found = body.run(backend=engine, seed=seed).result(WAIT)
            except rt.TruncatedError:
                continue
            assert all(isinstance(each, Level) for each in found)


# --- a run is for reading ---


def tell(question: str) -> str:
    """A tool."""
    return question


RECORDERS: dict[str, Callable[[Any], Any]] = {
    "append": lambda r: r.__iadd__("x"),
    "gen": lambda r: r.gen(name="z"),
    "samples": lambda r: r.gen(n=2),
    "select": lambda r: r.select(["a", "b"]),
    "reply": lambda r: r.reply(),
    "fork": lambda r: r.fork(2),
    "copy": lambda r: r.copy(),
    "set": lambda r: r.set_var("q", 1),
    "role": lambda r: r.role("user"),
    "user": lambda r: r.user("hi"),
    "call": lambda r: r.call(len, "x"),
    "tools": lambda r: r.tools([tell]),
    "scope": lambda r: r.var_scope("v").__enter__(),
    "adopt": lambda r: r.adopt(r),
}


@pytest.mark.parametrize("how", RECORDERS)
def test_nobody_but_the_body_records(how: str) -> None:
    @rt.function
    def body(s: rt.State) -> str:
        s += "x"
        return s.gen(name="a").get()

    mock = rt.Mock({"a": rt.Mock.PENDING, "*": "other"})
    run = body.using(backend=mock)()
    with pytest.raises(rt.StateError, match="a Run is for reading"):
        RECORDERS[how](run)
    mock.release("a", "done")
    assert run.result(WAIT) == "done"
    assert run.text() == "xdone" and "q" not in run and run["a"] == "done"


def test_limits_of_waits_are_checked() -> None:
    @rt.function
    def body(s: rt.State) -> Any:
        s += "x"
        return s.gen(name="a")

    run = body.using(backend=rt.Mock({"a": rt.Mock.PENDING}))()
    for timeout in ("x", -1, True, float("inf"), float("nan")):
        with pytest.raises(rt.ConstraintError, match="timeout="):
            run.value("a").get(timeout)
        with pytest.raises(rt.ConstraintError, match="timeout="):
            run.result(timeout)
    with pytest.raises(rt.ProgramTimeout):
        run.result(0)
    run.cancel()
    with pytest.raises(rt.ConstraintError, match="num_threads=0"):
        body.using(backend=rt.Mock("x")).run_batch([()], num_threads=0)
