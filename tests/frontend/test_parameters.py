"""Arguments of plans: what is one of few values, and which text an argument is."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest

import ramet as rt

WAIT = 20.0


class Colour(str, enum.Enum):  # noqa: UP042 - what it is about
    RED = "red"
    GREEN = "green"


class Tone(enum.StrEnum):
    WARM = "warm"


class Same(enum.Enum):
    ONE = 1
    TEXT = "1"


class Written:
    def __str__(self) -> str:
        return "by str"

    def __format__(self, spec: str) -> str:
        return "by format"


class Plain:
    def __str__(self) -> str:
        return "plain"


@rt.function
def says(s: rt.State, text: str) -> str:
    s += f"<{text}>"
    return s.gen(max_tokens=2).get()


@rt.function
def values(s: rt.State, value: Written) -> str:
    s += f"<{value}>"
    return s.gen(max_tokens=2).get()


@rt.function
def members(s: rt.State, colour: Colour) -> str:
    s += f"<{colour.value}>"
    return s.gen(max_tokens=2).get()


@rt.function
def optional(s: rt.State, tone: Literal["", "formal"]) -> str:
    s += f"<{tone}>"
    if tone:
        s += "!"
    return s.gen(max_tokens=2).get()


@rt.function
def alike(s: rt.State, value: Literal[1, "1"]) -> Any:
    s += f"<{value}>"
    return [s.gen(max_tokens=2).get(), value]


def same(program: rt.Program[..., Any], argument: Any) -> None:
    """The plan tells the backend what the program tells it, and gives the same."""
    mock, other = rt.Mock("x"), rt.Mock("x")
    plan = program.compile()
    assert plan.whole
    assert plan.run(argument, backend=mock).result(WAIT) == program.using(backend=other).run(argument).result(WAIT)
    assert mock.prompts == other.prompts


@pytest.mark.parametrize("program", [says, values])
def test_an_argument_of_several_texts_is_refused(program: rt.Program[..., Any]) -> None:
    argument = Colour.RED if program is says else Written()
    plan = program.compile()
    for start in (plan.run, lambda value, backend: plan.batch([(value,)], backend=backend)):
        with pytest.raises(rt.PlanError, match="has several texts"):
            start(argument, backend=rt.Mock("x"))


def test_an_argument_of_one_text_is_taken() -> None:
    for text in ("plain", Tone.WARM):
        same(says, text)
    for value in (1, 1.5, True, None, ["a"], Plain()):
        same(values, value)


def test_an_enums_members_are_its_arguments() -> None:
    same(members, Colour.GREEN)
    plan = members.compile()
    for wrong in ("red", "RED", "blue", None):
        with pytest.raises(rt.PlanError, match=r"must be one of Colour\.RED, Colour\.GREEN"):
            plan.run(wrong, backend=rt.Mock("x"))
    loaded = rt.Plan.loads(plan.dumps())
    assert loaded.document == plan.document
    assert loaded.run("red", backend=rt.Mock("x")).result(WAIT) == "x", "a file knows texts alone"
    with pytest.raises(rt.PlanError, match="must be one of red, green"):
        loaded.run("blue", backend=rt.Mock("x"))


def test_a_value_of_another_type_is_none_of_few() -> None:
    @rt.function
    def numbered(s: rt.State, count: Literal[1, 2], sure: bool) -> str:
        s += "one" if count == 1 and sure else "more"
        return s.gen(max_tokens=2).get()

    plan = numbered.compile()
    assert plan.run(1, True, backend=rt.Mock("x")).result(WAIT) == "x"
    for wrong in (("1", True), (True, True), (1, "True"), (1, 1)):
        with pytest.raises(rt.PlanError, match="must be one of"):
            plan.run(*wrong, backend=rt.Mock("x"))


def test_the_empty_text_is_one_of_few() -> None:
    assert [parameter.domain for parameter in optional.compile().params] == [("", "formal")]
    for tone in ("", "formal"):
        same(optional, tone)
    loaded = rt.Plan.loads(optional.compile().dumps())
    mock, other = rt.Mock("x"), rt.Mock("x")
    loaded.run("", backend=mock).result(WAIT)
    optional.using(backend=other).run("").result(WAIT)
    assert mock.prompts == other.prompts


def test_values_of_one_text_are_left_open_as_values() -> None:
    assert [parameter.kind for parameter in alike.compile().params] == ["value"]
    for value in (1, "1"):
        same(alike, value)

    @rt.function
    def member(s: rt.State, one: Same) -> str:
        s += "x" if one is Same.ONE else "y"
        return s.gen(max_tokens=2).get()

    assert [parameter.kind for parameter in member.compile().params] == ["value"]
