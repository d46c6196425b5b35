"""From the arguments of a generation to the constraint of its operation, and from its text to the value."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest
from annotated_types import Ge
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import ramet as rt
from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.constraints import wanted
from ramet.frontend.ir import AnyOp, Choices, Gen, Grammar, Header, JsonSchema, Regex, Select
from ramet.frontend.types import NUMBERS

WAIT = 10.0


class Grade(enum.Enum):
    GOOD = 1
    BAD = 2


@dataclass
class City:
    name: str
    people: int


class Row(TypedDict):
    name: str


class Model(BaseModel):
    name: str


class Recorder:
    """A mock that keeps the operations."""

    def __init__(self, answers: Any) -> None:
        self.mock = rt.Mock(answers)
        self.ops: list[AnyOp] = []

    def open(self, header: Header, deliver: Deliver) -> Session:
        session = self.mock.open(header, deliver)
        recorder = self

        class Recording:
            def send(self, ops: Any) -> None:
                recorder.ops += ops
                session.send(ops)

            def end(self) -> None:
                session.end()

            def cancel(self) -> None:
                session.cancel()

        return Recording()

    def info(self) -> dict[str, object]:
        return self.mock.info()

    def flush_cache(self) -> bool:
        return False

    def close(self) -> None:
        self.mock.close()

    @property
    def calls(self) -> list[Gen | Select]:
        return [op for op in self.ops if isinstance(op, Gen | Select)]


def asked(answer: str, *types: Any, **options: Any) -> tuple[Any, list[Gen | Select]]:
    """The value of one generation, and the operations that asked for it."""
    backend = Recorder(answer)

    @rt.function
    def program(s: rt.State) -> Any:
        return s.gen(*types, **options).get()

    return program.using(backend=backend)().result(WAIT), backend.calls


def schema(value: object) -> JsonSchema:
    return JsonSchema(json.dumps(value))


NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CLOSED = {**NAME, "additionalProperties": False}


@pytest.mark.parametrize(
    ("options", "answer", "constraint"),
    [
        ({}, "x", None),
        ({"regex": r"\d+"}, "42", Regex(r"\d+")),
        ({"json_schema": NAME}, "{}", schema(NAME)),
        ({"json_schema": json.dumps(NAME)}, "{}", schema(NAME)),
        ({"json_schema": json.dumps(NAME, indent=3)}, "{}", schema(NAME)),
        ({"json_schema": True}, "1", schema(True)),
        ({"json_schema": Row}, "{}", schema(CLOSED)),
        ({"json_schema": list[int]}, "[]", schema({"type": "array", "items": {"type": "integer"}})),
        ({"json_schema": True, "json_whitespace": "flexible"}, "[ 1]", JsonSchema("true", "flexible")),
        ({"grammar": 'start: "a" | "::="'}, "a", Grammar('start: "a" | "::="', "lark")),
        ({"grammar": "# a\nroot ::= [a-z]"}, "a", Grammar("# a\nroot ::= [a-z]", "ebnf")),
        ({"choices": ["a", "b"], "temperature": 0.5}, "b", Choices(("a", "b"))),
    ],
)
def test_a_constraint_leaves_a_text(options: Any, answer: str, constraint: object) -> None:
    value, [op] = asked(answer, **options)
    assert value == answer
    assert isinstance(op, Gen)
    assert (op.constraint, op.jump) == (constraint, "canonical")


def test_schemas_of_models_and_jumps() -> None:
    _, [op] = asked("{}", json_schema=Model, jump="exact")
    assert isinstance(op, Gen)
    assert isinstance(op.constraint, JsonSchema)
    assert json.loads(op.constraint.schema)["additionalProperties"] is False
    assert op.jump == "exact"
    _, [op] = asked("5", int, jump="off")
    assert isinstance(op, Gen)
    assert op.jump == "off"


@pytest.mark.parametrize(
    ("type_", "answer", "value"),
    [
        (int, "-42", -42),
        (int, "42\nand so on", 42),
        (int, "7 apples", 7),
        (float, "2.5e3", 2500.0),
        (float, "3", 3.0),
        (Annotated[int, Ge(1)], "5", 5),
        (City, '{"name": "Rome", "people": 3}', City("Rome", 3)),
        (list[City], '[{"name": "Rome", "people": 3}]', [City("Rome", 3)]),
        (Row, '{"name": "Rome"}', {"name": "Rome"}),
        (Model, '{"name": "Rome"}', Model(name="Rome")),
        (int | None, "null", None),
        (None, "null", None),
        (str, "free", "free"),
    ],
)
def test_a_type_makes_a_value(type_: Any, answer: str, value: object) -> None:
    found, [op] = asked(answer, type_)
    assert found == value
    assert type(found) is type(value)
    assert isinstance(op, Gen)


def test_numbers_end_where_a_model_ends_them() -> None:
    options = ["."]
    _, [op] = asked("7.", int, stop=options)
    assert op.sampling.stop == (".", " ", "\n")  # type: ignore[union-attr]
    assert options == ["."]

    @rt.function(stop=["!"])
    def program(s: rt.State) -> int:
        return s.gen(int).get()

    assert program.using(backend=rt.Mock("12! 3"))().result(WAIT) == 12


@given(st.integers(-(10**19) + 1, 10**19 - 1), st.sampled_from(["", " ", "\n"]))
def test_integers_have_their_pattern(number: int, end: str) -> None:
    assert re.fullmatch(NUMBERS[int].pattern, f"{number}{end}")


@given(st.floats(-1e15, 1e15).filter(lambda x: x == 0 or abs(x) > 1e-90).map(lambda x: f"{x:.6g}"))
def test_floats_have_their_pattern(text: str) -> None:
    assert re.fullmatch(NUMBERS[float].pattern, text)
    assert NUMBERS[float].read(text) == float(text)


@pytest.mark.parametrize("text", ["", "-", "01", "+1", "1_0", "1.", ".5", "1e", "0x1", "1" * 20, "nan", "1  "])
def test_what_is_no_number(text: str) -> None:
    assert not any(re.fullmatch(number.pattern, text) for number in NUMBERS.values())


@pytest.mark.parametrize("type_", [bool, Grade, Literal[1, 2]])
def test_few_values_are_chosen_by_likelihood_or_sampled(type_: Any) -> None:
    answer = "False" if type_ is bool else "2"
    value = False if type_ is bool else Grade.BAD if type_ is Grade else 2
    for options in ({}, {"temperature": 0}):
        found, [op] = asked(answer, type_, **options)
        assert found is value or found == value
        assert isinstance(op, Select)
    found, [op] = asked(answer, type_, temperature=0.7)
    assert found == value
    assert isinstance(op, Gen)
    assert isinstance(op.constraint, Choices)
    assert answer in op.constraint.choices
    found, ops = asked(answer, type_, n=3)
    assert found == [value] * 3
    assert [type(op) for op in ops] == [Gen] * 3


def test_samples_are_each_read() -> None:
    found, ops = asked('{"name": "Rome", "people": 3}', City, n=2, name="city")
    assert found == [City("Rome", 3)] * 2
    assert len(ops) == 2


def test_expressions_of_sglang_are_constrained() -> None:
    backend = Recorder({"r": "42", "j": "{}", "c": "b", "d": "False", "e": "True"})

    @rt.function
    def program(s: rt.State) -> None:
        s += rt.gen("r", regex=r"\d+") + rt.gen("j", json_schema=json.dumps(NAME))
        s += rt.gen("c", choices=["a", "b"], temperature=1.0) + rt.gen("d", dtype=bool)
        s += rt.gen("e", dtype="bool", n=2)

    run = program.using(backend=backend)()
    run.result(WAIT)
    assert (run["r"], run["c"], run["d"], run["e"]) == ("42", "b", "False", ["True", "True"])
    assert [getattr(op, "constraint", None) for op in backend.calls] == [
        Regex(r"\d+"),
        schema(NAME),
        Choices(("a", "b")),
        None,
        Choices(("True", "False")),
        Choices(("True", "False")),
    ]
    assert isinstance(backend.calls[3], Select)


def failing(answer: str, *types: Any, **options: Any) -> rt.ParseError:
    @rt.function
    def program(s: rt.State) -> Any:
        s += "Say:"
        return s.gen(*types, **options).get()

    with pytest.raises(rt.ParseError) as caught:
        program.using(backend=rt.Mock(answer))().result(WAIT)
    assert caught.value.where.startswith("test_constraints.py:")
    assert caught.value.prompt_tail == "Say:"
    return caught.value


def test_a_value_that_max_tokens_cuts() -> None:
    error = failing('{"name": "Rome", "people": 3}', City, max_tokens=3)
    assert isinstance(error, rt.TruncatedError)
    assert error.partial == error.text == '{"name": "Rome", "people":'
    assert "is no City: max_tokens ended it; raise max_tokens" in error.message
    assert isinstance(failing("1 2", list[int], max_tokens=1), rt.TruncatedError)


def test_a_value_that_its_type_refuses() -> None:
    error = failing('{"name": "Rome", "people": "many"}', City)
    assert not isinstance(error, rt.TruncatedError)
    assert error.message.endswith("is no City: at /people: expected an integer, got 'many'")
    error = failing('{"name": 5}', Model)
    assert "is no Model: at /name: Input should be a valid string" in error.message
    long = json.dumps({"name": "x" * 1000, "people": None})
    assert len(failing(long, City).message) < 300


def test_other_values_stand_when_one_does_not() -> None:
    @rt.function
    def program(s: rt.State) -> Any:
        branches = s.fork(["1", "oops", "3"])
        for branch in branches:
            branch += str(branch.item)
            branch.gen(Annotated[int, Ge(2)], name="x")
        return branches.gather("x", on_error="return")

    found = program.using(backend=rt.Mock(lambda prompt, var: "2" if prompt != "oops" else "1"))().result(WAIT)
    assert found[0] == found[2] == 2
    assert isinstance(found[1], rt.ParseError)


@pytest.mark.parametrize(
    ("answer", "options", "says"),
    [
        ("x", {"regex": r"\d+"}, "'x' for 'v' does not match regex="),
        ("x", {"choices": ["a"], "temperature": 1}, r"is none of choices=\['a'\]"),
        ("x", {"json_schema": True}, "is no JSON, as json_schema=true asks for"),
        ("x", {"type": int}, "does not match regex="),
        ("x", {"type": City}, "is no JSON"),
    ],
)
def test_the_mock_keeps_constraints(answer: str, options: Any, says: str) -> None:
    with pytest.raises(rt.GenerationError, match=f"the mock's answer {says}" if says[0] == "'" else says):
        asked(answer, name="v", **options)


def test_a_mock_that_is_cut_short_breaks_nothing() -> None:
    assert asked("a b", regex="a b c", max_tokens=1)[0] == "a"
    assert asked("a b", regex="a b c", stop="b")[0] == "a "


def test_what_was_found_valid_is_found_once() -> None:
    seen: list[object] = []

    @rt.function
    def program(s: rt.State) -> None:
        for _ in range(3):
            s.gen(City)
            s.gen(regex="a*")
        for branch in s.fork(2):
            branch.gen(City)
        seen.append(s._core.known)

    program.using(backend=rt.Mock(lambda prompt, var: '{"name": "", "people": 1}' * (var[-1] in "024")))().error()
    assert len(seen[0]) == 2  # type: ignore[arg-type]


def test_arguments_that_look_alike_are_told_apart() -> None:
    @rt.function
    def program(s: rt.State) -> None:
        s.gen(json_schema=True)
        s.gen(json_schema=1)

    with pytest.raises(rt.ConstraintError, match="1 is no type"):
        program.using(backend=rt.Mock("1"))().result(WAIT)


def test_the_users_schema_is_not_changed() -> None:
    mine = {"type": "array", "items": {"type": "integer"}}
    before = json.dumps(mine)
    want = wanted(str, {"json_schema": mine}, "")
    mine["type"] = "object"
    assert isinstance(want.constraint, JsonSchema)
    assert want.constraint.schema == before
