"""Types of single JSON values: what each looks like in a schema, and how a JSON value becomes one.

In: a JSON value and its place. Out: a str, int, float, bool, None, date, datetime, time, UUID, Decimal, or `Mismatch`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

Read = Callable[[Any, str], Any]  # a JSON value and where it stands ("/cities/0/name") → the value


class Mismatch(ValueError):
    """A JSON value is not one of the type; says where and what was expected."""

    def __init__(self, at: str, problem: str) -> None:
        super().__init__(f"at {at or '/'}: {problem}")


class Written(float):
    """A number of a JSON text, and how it is written there: what a Decimal is made of."""

    text: str

    @classmethod
    def read(cls, text: str) -> Written:
        """The number that a text writes; a `parse_float` of `json.loads`."""
        number = cls(text)
        number.text = text
        return number


class Shape(NamedTuple):
    """A JSON schema, and the reader of values that are valid under it."""

    schema: dict[str, Any]
    read: Read


def no_number(name: str) -> NoReturn:
    """NaN and infinities, which JSON does not have; a `parse_constant` of `json.loads`. Raises `ValueError`."""
    raise ValueError(f"{name} is no JSON")


def expect(kind: Any, name: str, value: Any, at: str) -> Any:
    """The value itself, when it is of a kind. Raises `Mismatch`. True is no integer here."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Mismatch(at, f"expected {name}, got {short(value)}")
    return value


def short(value: Any) -> str:
    """How a value shows in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _integer(value: Any, at: str) -> int:
    whole = isinstance(value, float) and value.is_integer()  # 1.0 is an integer of JSON
    return int(value if whole else expect(int, "an integer", value, at))


def _scalar(kind: Any, name: str, make: Callable[[Any], Any]) -> Read:
    def read(value: Any, at: str) -> Any:
        try:
            return make(expect(kind, name, value, at))
        except (ValueError, ArithmeticError) as error:
            if isinstance(error, Mismatch):
                raise
            raise Mismatch(at, f"expected {name}, got {short(value)}") from None

    return read


def _format(name: str, make: Callable[[str], Any]) -> Shape:
    return Shape({"type": "string", "format": name}, _scalar(str, f"a {name}", make))


def _decimal(value: Any) -> Decimal:
    return Decimal(value.text if isinstance(value, Written) else value)


def _unwritten(value: Any) -> Any:
    """The same JSON value with ordinary floats."""
    if isinstance(value, list):
        return [_unwritten(each) for each in value]
    if isinstance(value, dict):
        return {key: _unwritten(each) for key, each in value.items()}
    return float(value) if isinstance(value, Written) else value


ANYTHING = Shape({}, lambda value, at: _unwritten(value))
SCALARS: dict[Any, Shape] = {
    str: Shape({"type": "string"}, _scalar(str, "a string", str)),
    int: Shape({"type": "integer"}, _integer),
    float: Shape({"type": "number"}, _scalar((int, float), "a number", float)),
    bool: Shape({"type": "boolean"}, _scalar(bool, "true or false", bool)),
    type(None): Shape({"type": "null"}, _scalar(type(None), "null", lambda value: value)),
    object: ANYTHING,
    date: _format("date", date.fromisoformat),
    datetime: _format("date-time", datetime.fromisoformat),
    time: _format("time", time.fromisoformat),
    UUID: _format("uuid", UUID),
    Decimal: Shape({"type": "number"}, _scalar((int, float), "a number", _decimal)),
}
