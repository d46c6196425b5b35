"""`ramet.gen(...)` as an expression can say whatever `State.gen` can."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import pytest

import ramet as rt
from ramet.frontend.ir import Gen, Select
from ramet.frontend.options import GenOptions
from tests.frontend.test_constraints import Recorder


@dataclass
class City:
    name: str
    people: int


def _ran(answers: Any, expression: Any) -> tuple[Any, Any]:
    """The value of a program of one expression, and its operation."""

    @rt.function
    def program(s: rt.State) -> Any:
        s += "Q: " + expression
        return s["x"]

    recorder = Recorder(answers)
    with rt.using(recorder):
        value = program().result(10.0)
    (op,) = (op for op in recorder.ops if isinstance(op, Gen | Select))
    return value, op


def test_every_option_of_a_state_is_one_of_the_expression():
    parameters = inspect.signature(rt.gen).parameters
    assert set(GenOptions.__annotations__) <= set(parameters)
    assert "type" in parameters and "n" in parameters


@pytest.mark.parametrize(
    ("options", "answer", "value"),
    [
        ({"type": City}, '{"name":"Bern","people":3}', City("Bern", 3)),
        ({"type": int}, "42", 42),
        ({"type": Literal["yes", "no"]}, "no", "no"),
        ({"type": bool}, "true", True),
        ({"type": list[int], "jump": "off", "json_whitespace": "flexible"}, "[1,2]", [1, 2]),
        ({"json_schema": {"type": "integer"}}, "7", "7"),
        ({"grammar": 'start: "a" | "b"', "jump": "exact"}, "b", "b"),
        ({"logit_bias": {5: 1.0}, "logprobs": 2}, "so", "so"),
    ],
)
def test_the_operation_is_that_of_the_state(options: dict[str, Any], answer: str, value: Any):
    @rt.function
    def program(s: rt.State) -> Any:
        s += "Q: "
        return s.gen(name="x", **options).get()

    recorder = Recorder({"x": answer})
    with rt.using(recorder):
        expected = program().result(10.0)
    (op,) = (op for op in recorder.ops if isinstance(op, Gen | Select))
    found, other = _ran({"x": answer}, rt.gen("x", **options))
    assert found == expected == value
    assert {**_fields(op), "id": ""} == {**_fields(other), "id": ""}


def _fields(op: Any) -> dict[str, Any]:
    return {"kind": type(op), **{name: getattr(op, name) for name in op.__struct_fields__}}


def test_a_typed_choice_takes_its_method():
    method = rt.greedy_token_selection
    value, op = _ran({"x": "2"}, rt.gen("x", type=Literal[1, 2], choices_method=method))
    assert value == 2 and isinstance(op, Select) and op.method == method


def test_samples_of_a_type():
    @rt.function
    def program(s: rt.State) -> Any:
        s += rt.gen("x", n=2, type=int, temperature=1.0)
        return s["x"]

    with rt.using(rt.Mock({"x": "5"})):
        assert program().result(10.0) == [5, 5]


def test_reading_waits_as_long_as_said():
    @rt.function
    def program(s: rt.State) -> Any:
        s += rt.gen("x", timeout=0.01)
        return s["x"]

    class Silent:
        """A backend that never answers."""

        def open(self, header: Any, deliver: Any) -> Any:
            class Nothing:
                def send(self, ops: Any) -> None: ...

                def cancel(self, branch: str | None = None) -> None: ...

                def close(self) -> None: ...

            return Nothing()

    with rt.using(Silent()), pytest.raises(rt.ProgramTimeout):
        program().result(10.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": int, "dtype": "int"}, "one constraint"),
        ({"type": int, "regex": "a"}, "one constraint"),
        ({"grammar": "start: x", "choices": ["a"]}, "one constraint"),
        ({"dtype": int, "grammar": 'start: "a"'}, "one constraint"),
        ({"jump": "far"}, "jump='far'"),
        ({"choices_method": "greedy_token_selection"}, "choices_method='greedy_token_selection': nothing is chosen"),
        ({"choices": ["a", "b"], "choices_method": "best"}, "choices_method='best': must be one of"),
        ({"choices": ["a"], "temperature": 1.0, "choices_method": "greedy_token_selection"}, "is sampled"),
        ({"timeout": -1}, "timeout=-1"),
        ({"json_schema": {"type": "nothing"}}, "nothing"),
    ],
)
def test_refused_at_the_line_of_the_expression(options: dict[str, Any], said: str):
    with pytest.raises(rt.ConstraintError, match=said) as caught:
        rt.gen("x", **options)
    assert "test_gen_expression.py" in str(caught.value)
