"""Python types as texts: which texts a value of the type has, and how a text becomes the value.

In: the type of `gen(type)`. Out: a finite set of texts with their values (`Literal`, `Enum`, `bool`); numbers; or JSON,
with a schema and a reader; nothing for `str`. `ConstraintError` for what is no such type.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import SELECT_METHODS, SelectMethod
from ramet.frontend.scalars import Read, Written, no_number
from ramet.frontend.shapes import NeedsPydantic, Unsupported, enum_value, shape_of, shown

_MOST_DIGITS = 19


@dataclass(frozen=True)
class JsonType:
    """A type whose values are written as JSON. `schema` is a JSON schema (Draft 2020-12); `read` makes a value of a
    text, and raises `ValueError`, which says where in the text what was expected."""

    schema: dict[str, Any]
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Number:
    """A type of numbers that are written as they are: `pattern` is the regular expression of its texts, after which
    one space or newline (`ends`) may follow, at which the generation stops: what a model writes after a number."""

    pattern: str
    read: Callable[[str], Any]
    ends: tuple[str, ...] = (" ", "\n")


NUMBERS: dict[Any, Number] = {
    int: Number(rf"-?(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}})[ \n]?", int),
    float: Number(
        rf"-?(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}})(?:\.[0-9]{{1,{_MOST_DIGITS}}})?(?:[eE][-+]?[0-9]{{1,2}})?[ \n]?",
        float,
    ),
}


def finite(type_: Any, where: str) -> dict[str, Any] | None:
    """Text → value of a type of finitely many values; None for every other type."""
    if type_ is bool:
        return {"True": True, "False": False}
    if get_origin(type_) is Literal:
        return _distinct([(_text(value), value) for value in get_args(type_)], type_, where)
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return _distinct([(_text(member), member) for member in type_], type_, where)
    return None


def _text(value: Any) -> str:
    return str(enum_value(value)) if isinstance(value, enum.Enum) else str(value)


def _distinct(pairs: Sequence[tuple[str, Any]], type_: Any, where: str) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ConstraintError(f"{type_!r}: two of its values have the same text", where=where)
    check_choices(list(table), where)
    return table


def json_type(type_: Any, where: str) -> JsonType:
    """The schema and the reader of a type. Raises `ConstraintError` for types without JSON, and for what is no type."""
    if isinstance(type_, str):
        raise ConstraintError(f"gen({type_!r}): the first argument is a type; write gen(name={type_!r})", where=where)
    try:
        shape = shape_of(type_)
    except NeedsPydantic:
        return _of_pydantic(type_, where)
    except Unsupported as error:
        raise ConstraintError(f"type={shown(type_)}: {error}", where=where) from None
    except RecursionError:  # a recursive alias, or a type that is nested beyond all measure
        remedy = "it contains itself other than through a class; make it a dataclass"
        raise ConstraintError(f"type={shown(type_)}: {remedy}", where=where) from None
    return JsonType(shape.schema, _reader(shape.read))


def _of_pydantic(type_: Any, where: str) -> JsonType:
    from ramet.frontend.pydantic_types import schema_and_reader

    try:
        return JsonType(*schema_and_reader(type_))
    except Unsupported as error:
        raise ConstraintError(f"type={shown(type_)}: {error}", where=where) from None


def _reader(read: Read) -> Callable[[str], Any]:
    def whole(text: str) -> Any:
        try:
            value = json.loads(text, parse_float=Written.read, parse_constant=no_number)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return read(value, "")

    return whole


def schema_of(type_: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type's values. Raises `ConstraintError`."""
    return json_type(type_, where).schema


def check_choices(choices: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """The choices as a tuple. Raises `ConstraintError` when there are none, or when they are not distinct non-empty
    strings."""
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise ConstraintError(f"choices={choices!r}: must be a list of strings", where=where)
    if not choices:
        raise ConstraintError("choices=[]: give at least one", where=where)
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise ConstraintError(f"choices contain {choice!r}: each must be a non-empty string", where=where)
    if len(set(choices)) != len(choices):
        twice = next(choice for choice in choices if list(choices).count(choice) > 1)
        raise ConstraintError(f"choices contain {twice!r} twice: they must be distinct", where=where)
    return tuple(choices)


def check_method(method: Any, where: str, field: str = "choices_method") -> SelectMethod:
    """The select method, or `ConstraintError` with the names that exist."""
    if method not in SELECT_METHODS:
        raise ConstraintError(f"{field}={method!r}: must be one of {', '.join(SELECT_METHODS)}", where=where)
    return method  # type: ignore[no-any-return]
