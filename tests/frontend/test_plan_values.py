"""Values that a plan cannot read as its program would: the program's error, and never a part of a value."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal

import pytest

import ramet as rt

WAIT = 20.0


class Drink(enum.Enum):
    RED = "red wine"
    GREEN = "green tea"


def _returned(s: rt.State, **options: Any) -> str:
    return s.gen(Literal["red wine", "green tea"], name="n", **options).get()


def _said(s: rt.State, **options: Any) -> str:
    s += f"It is {s.gen(Literal['red wine', 'green tea'], name='n', **options).get()}."
    return s.gen(name="x", max_tokens=2).get()


def _decided(s: rt.State, **options: Any) -> str:
    return "A" if s.gen(Literal["red wine", "green tea"], name="n", **options).get() == "red wine" else "B"


def _member(s: rt.State, **options: Any) -> str:
    return str(s.gen(Drink, name="n", **options).get().value)


def _unused(s: rt.State, **options: Any) -> str:
    s.gen(Literal["red wine", "green tea"], name="n", **options).get()
    return "done"


def _listed(s: rt.State, **options: Any) -> Any:
    return s.gen(Literal["red wine", "green tea"], name="n", n=2, **options).get()


BODIES = [_returned, _said, _decided, _member, _unused, _listed]
CUTS: dict[str, tuple[dict[str, Any], type[rt.ParseError]]] = {
    "stop": ({"max_tokens": 40, "stop": " ", "temperature": 0.7}, rt.ParseError),
    "max_tokens": ({"max_tokens": 1, "temperature": 0.7}, rt.TruncatedError),
}


def bound(body: Callable[..., Any], options: dict[str, Any]) -> rt.Program[..., Any]:
    """The program of a body with these options."""

    def program(s: rt.State) -> Any:
        return body(s, **options)

    return rt.function(program)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_a_sampled_choice_that_was_cut_is_the_programs_error(body: Callable[..., Any], cut: str) -> None:
    options, kind = CUTS[cut]
    program = bound(body, options)
    plan = program.compile()
    assert plan.whole
    with pytest.raises(kind):
        program.using(backend=rt.Mock("red wine")).run().result(WAIT)
    with pytest.raises(kind) as raised:
        plan.run(backend=rt.Mock("red wine")).result(WAIT)
    assert isinstance(raised.value, rt.TruncatedError) == (kind is rt.TruncatedError)
    assert raised.value.text == "red"


@pytest.mark.parametrize("body", [_returned, _said, _decided, _member], ids=lambda body: body.__name__)
def test_a_plan_from_a_file_has_no_part_of_a_choice_either(body: Callable[..., Any]) -> None:
    plan = rt.Plan.loads(bound(body, CUTS["stop"][0]).compile().dumps())
    with pytest.raises(rt.ParseError, match="must be one of 'red wine', 'green tea'"):
        plan.run(backend=rt.Mock("red wine")).result(WAIT)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_whole_choices_are_read(body: Callable[..., Any]) -> None:
    program = bound(body, {"temperature": 0.7})
    answers = {"n": "green tea", "x": "fine"}
    expected = program.using(backend=rt.Mock(answers)).run().result(WAIT)
    plan = program.compile()
    assert plan.run(backend=rt.Mock(answers)).result(WAIT) == expected
    assert rt.Plan.loads(plan.dumps()).run(backend=rt.Mock(answers)).result(WAIT) == expected


def test_choices_without_a_type_are_the_text_that_was_generated() -> None:
    @rt.function
    def picks(s: rt.State) -> str:
        return s.gen(choices=["red wine", "green tea"], name="n", temperature=0.7, stop=" ").get()

    plan = picks.compile()
    for start in (picks.using(backend=rt.Mock("red wine")).run, lambda: plan.run(backend=rt.Mock("red wine"))):
        assert start().result(WAIT) == "red"


def test_a_choice_that_decides_must_be_whole() -> None:
    @rt.function
    def decides(s: rt.State) -> str:
        chosen = s.gen(choices=["red wine", "green tea"], name="n", temperature=0.7, stop=" ").get()
        return "A" if chosen == "red wine" else "B"  # here

    with pytest.raises(rt.ParseError, match="'red': it must be one of 'red wine', 'green tea'") as raised:
        decides.compile().run(backend=rt.Mock("red wine")).result(WAIT)
    assert raised.value.where.startswith("test_plan_values.py:")


@pytest.mark.parametrize("kind", [int, float])
def test_a_number_that_was_cut_is_a_typed_error(kind: type) -> None:
    @rt.function
    def counts(s: rt.State) -> str:
        s += "n:"
        n = s.gen(kind, name="n", stop="2").get()
        s += f"got {n}"
        return s.gen(name="x", max_tokens=3).get()

    answers = {"n": "25", "x": "a"}
    plan = counts.compile()
    assert plan.whole
    for started in (plan, rt.Plan.loads(plan.dumps()), counts):
        with pytest.raises(rt.ParseError) as raised:
            started.run(backend=rt.Mock(answers)).result(WAIT)
        assert raised.value.where == f"test_plan_values.py:{counts._fn.__code__.co_firstlineno + 3}"
        assert (raised.value.branch, raised.value.text) == ("0", "")
