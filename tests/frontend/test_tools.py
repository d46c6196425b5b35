"""Tools in programs: schemas of signatures, arguments as the annotations say, turns that call and answer."""

import enum
import functools
import json
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypedDict

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

import ramet as rt
from ramet.frontend import ir
from ramet.frontend.docstrings import parameters, summary
from ramet.frontend.tools import Call, offered, tool_of

WAIT = 20.0


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclass
class Place:
    """A place."""

    name: str
    height: float = 0.0


class Order(BaseModel):
    """Orders goods.

    At once.
    """

    item: str
    count: int = 1


def weather(city: str, days: int = 3, unit: Unit | None = None, places: list[Place] = []) -> str:  # noqa: B006
    """The weather
    of a city.

    It is a forecast.

    Args:
        city (str): the city's name,
            in English
        days: how many days
        unit: of the temperatures

    Returns:
        str: a sentence
    """
    return f"{city} {days} {unit} {places}"


def schema(fn: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tool_of(fn).parameters)
    Draft202012Validator.check_schema(found)
    return found


# -- schemas


def test_a_signature_and_a_docstring_are_a_schema():
    tool = tool_of(weather)
    assert (tool.name, tool.description) == ("weather", "The weather of a city.")
    found = schema(weather)
    properties = found["properties"]
    assert list(properties) == ["city", "days", "unit", "places"]
    assert found["required"] == ["city"]
    assert found["additionalProperties"] is False
    assert properties["city"] == {"type": "string", "description": "the city's name, in English"}
    assert properties["days"] == {"type": "integer", "description": "how many days", "default": 3}
    validator = Draft202012Validator(found)
    assert validator.is_valid({"city": "Rome", "unit": "celsius", "places": [{"name": "a"}]})
    assert validator.is_valid({"city": "Rome", "unit": None})
    assert not validator.is_valid({"city": "Rome", "unit": "kelvin"})
    assert not validator.is_valid({"city": "Rome", "more": 1})
    assert not validator.is_valid({"days": 1})


@pytest.mark.parametrize(
    ("doc", "first", "said_of"),
    [
        (None, "", {}),
        ("One line.", "One line.", {}),
        (
            "Short.\n\nArgs:\n    a: first\n    *b (int, optional): second\n      goes on\n\nRaises:\n    E: x",
            "Short.",
            {"a": "first", "b": "second goes on"},
        ),
        (
            "Short.\n\nParameters\n----------\na : int\n    first\n    line\nb\n    second\n\nReturns\n---\nint\n  x",
            "Short.",
            {"a": "first line", "b": "second"},
        ),
        (
            "Short\nand on.\n\n:param a: first\n    goes on\n:param int b: second\n:returns: x",
            "Short and on.",
            {"a": "first goes on", "b": "second"},
        ),
        ("Args:\n    a: first", "", {"a": "first"}),
    ],
)
def test_docstrings(doc, first, said_of):
    assert summary(doc) == first
    assert parameters(doc) == said_of


def test_annotated_texts_describe_parameters():
    def f(a: Annotated[int, "the first"], b: Annotated[str, 3] = "x") -> None: ...

    assert schema(f)["properties"] == {
        "a": {"type": "integer", "description": "the first"},
        "b": {"type": "string", "default": "x"},
    }


def test_parameters_without_annotations_are_any_json():
    def f(a, b=None): ...

    assert schema(f) == {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]} | {
        "additionalProperties": False
    }
    assert offered(f).read('{"a": [1, "x"]}') == {"a": [1, "x"]}


def test_methods_partials_objects_and_async_functions_are_tools():
    class Shop:
        def buy(self, item: str) -> str:
            """Buys."""
            return item

        def __call__(self, item: str, count: int) -> str:
            return item * count

    async def later(seconds: float) -> None:
        """Waits."""

    assert list(schema(Shop().buy)["properties"]) == ["item"]
    assert tool_of(later).description == "Waits."
    assert tool_of(Shop()).name == "Shop"
    assert list(schema(Shop())["properties"]) == ["item", "count"]
    fixed = functools.partial(weather, unit=Unit.C)
    assert tool_of(fixed).name == "weather"
    assert schema(fixed)["required"] == ["city"]


def test_classes_are_tools_whose_arguments_are_their_fields():
    class Row(TypedDict):
        x: int

    class Pair(NamedTuple):
        left: int
        right: str = "r"

    for type_, text, arguments in [
        (Order, '{"item": "tea"}', {"item": "tea", "count": 1}),
        (Place, '{"name": "a", "height": 2}', {"name": "a", "height": 2.0}),
        (Row, '{"x": 1}', {"x": 1}),
        (Pair, '{"left": 1}', {"left": 1, "right": "r"}),
    ]:
        assert schema(type_)["type"] == "object"
        assert offered(type_).read(text) == arguments
    assert tool_of(Order).description == "Orders goods."
    assert tool_of(Place).description == "A place."
    assert Call("Order", {"item": "tea"}, "", Order).run() == Order(item="tea")


def test_a_function_with_a_pydantic_parameter():
    def place(order: Order, urgent: bool = False) -> str:
        """Places an order."""
        return order.item

    assert schema(place)["required"] == ["order"]
    read = offered(place).read('{"order": {"item": "tea", "count": 2}}')
    assert read == {"order": Order(item="tea", count=2)}


def test_schemas_in_openais_shape_pass_through():
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {}}}}
    expected = ir.Tool("f", "d", json.dumps(function["parameters"]))
    assert tool_of({"type": "function", "function": function}) == expected
    assert tool_of({"type": "function", **function}) == expected
    assert tool_of(expected) is expected
    assert tool_of({"name": "f"}) == ir.Tool("f")


def positional(a: int, /) -> None: ...


def variadic(*rest: int) -> None: ...


def keywords(**rest: int) -> None: ...


def unreadable(a: object, b: type) -> None: ...


def unknown(a: "Nowhere") -> None: ...  # noqa: F821


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (positional, "positional: the parameter 'a' cannot be given by name"),
        (variadic, r"variadic: the parameter '\*rest' cannot"),
        (keywords, r"keywords: the parameter '\*\*rest' cannot"),
        (unreadable, "unreadable: "),
        (unknown, "unknown: the annotation 'Nowhere' is not known"),
        (lambda a: a, "'<lambda>' is no name of a tool"),
        (3, "3 is no tool"),
        (list[int], "has no signature to read"),
        (Unit, "Unit is no record"),
        ({"type": "function"}, "must be in OpenAI's shape"),
        ({"name": "f", "parameters": {"type": "array"}}, "must be of type object"),
        ({"name": "f", "parameters": {"properties": {"a": {"type": "nope"}}}}, "tools: f: json_schema"),
        ({"name": "a b"}, "'a b' is no name"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_at_the_line(tool, message):
    @rt.function
    def program(s: rt.State) -> None:
        s.tools([tool])

    with pytest.raises(rt.ConstraintError, match=message) as caught:
        program.using(backend=rt.Mock()).run().result(WAIT)
    assert caught.value.where.startswith("test_tools.py:")
