"""Compiling: what the body asks of the type of a value has the answer that a run gives, or is a graph break."""

from __future__ import annotations

import collections.abc
import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import pytest

import ramet as rt

WAIT = 20.0


@dataclasses.dataclass
class Point:
    x: int


def _listed(value: Any) -> str:
    match value:
        case [first, *_]:
            return f"from {first}"
        case {"x": x}:
            return f"x {x}"
        case int():
            return "number"
    return "other"


def _keyed(value: Any) -> str:
    match value:
        case {"x": _}:
            return "has x"
        case [_, _]:
            return "two"
    return "other"


ANSWERS: dict[Any, list[str]] = {
    int: ["12"],
    list[int]: ["[1, 2]", "[]"],
    dict[str, int]: ['{"x": 1}', "{}"],
    Point: ['{"x": 1}'],
    int | None: ["null", "12"],
    int | list[int]: ["12", "[1, 2]"],
    list[int] | dict[str, int]: ["[1, 2]", '{"x": 1}'],
}
ASKS: dict[str, tuple[Any, Callable[[Any], Any], bool]] = {  # a type, what is asked, whether the plan is whole
    "a number": (int, lambda value: isinstance(value, int | float) and not isinstance(value, bool), True),
    "a list": (list[int], lambda value: isinstance(value, list), True),
    "a dict": (dict[str, int], lambda value: isinstance(value, dict), True),
    "a record": (Point, lambda value: isinstance(value, Point), True),
    "its type": (int, lambda value: type(value) is int, False),
    "the name of its type": (int, lambda value: type(value).__name__, False),
    "whether it is none": (int | None, lambda value: value is None, False),
    "what to do without one": (int | None, lambda value: "none" if value is None else "some", False),
    "whether a number is none": (int, lambda value: value is None, True),
    "its class": (list[int], lambda value: value.__class__ is list, True),
    "one of several": (int | list[int], lambda value: isinstance(value, int), False),
    "an abstract class": (int, lambda value: isinstance(value, numbers.Number), False),
    "whether one can iterate": (int, lambda value: isinstance(value, collections.abc.Iterable), False),
    "whether it is a record": (Point, dataclasses.is_dataclass, False),
    "whether it is callable": (int, callable, True),
    "whether it has a length": (int, lambda value: hasattr(value, "__len__"), False),
    "which pattern a number matches": (int, _listed, True),
    "which pattern a list matches": (list[int], _listed, False),
    "which pattern a dict matches": (dict[str, int], _listed, False),
    "which pattern one of several matches": (list[int] | dict[str, int], _keyed, False),
    "which key it has": (dict[str, int] | list[int], _keyed, False),
}


@pytest.mark.parametrize("ask", ASKS)
def test_what_is_asked_of_a_type(ask: str) -> None:
    type_, asked, whole = ASKS[ask]

    @rt.function
    def asks(s: rt.State) -> list[Any]:
        return [asked(s.gen(type_, name="x", max_tokens=9).get())]

    plan = asks.compile()
    assert plan.whole == whole, plan.breaks
    for answer in ANSWERS[type_]:
        found, expected = (start(backend=rt.Mock(answer)).result(WAIT) for start in (plan.run, asks.run))
        assert found == expected


def test_texts_have_the_type_of_texts() -> None:
    @rt.function
    def asks(s: rt.State, a: str) -> list[Any]:
        return [a.__class__ is str, isinstance(a, str), a.__class__.__name__]

    assert asks.compile().run("x", backend=rt.Mock()).result(WAIT) == [True, True, "str"]


@pytest.mark.parametrize("inline", [False, True])
def test_the_type_of_a_text_or_a_read_is_a_graph_break(inline: bool) -> None:
    @rt.function
    def asks(s: rt.State, a: str) -> bool:
        return type(s.gen(int, max_tokens=2).get()) is int if inline else type(a) is str

    [found] = asks.compile().breaks
    assert found.kind == "look" and "asks the type of" in found.reason
    assert asks.compile().run("x", backend=rt.Mock("1")).result(WAIT) is True
