"""Python types as constraints: which texts a value of the type has, and how a text becomes the value.

In: the type of `gen(type)`. Out: a finite set of choices with their values (`Literal`, `Enum`, `bool`), or nothing
for `str`. All other types need constrained decoding, which this version does not have: `ConstraintError`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import SELECT_METHODS, SelectMethod

MISSING = "constrained decoding is not built into this version; ask for str and parse it, or use select"


def refuse_constraint(where: str, **constraints: Any) -> None:
    """Raise `ConstraintError` if any of the constraints is given."""
    for name, value in constraints.items():
        if value is not None:
            shown = value if isinstance(value, str) else repr(value)
            raise ConstraintError(f"{name}={shown}: {MISSING}", where=where)


def finite(type_: Any, where: str) -> dict[str, Any] | None:
    """Text → value of a type of finitely many values; None for `str`. Raises `ConstraintError` for every other type."""
    if type_ is str:
        return None
    if type_ is bool:
        return {"True": True, "False": False}
    if get_origin(type_) is Literal:
        return _distinct([(str(value), value) for value in get_args(type_)], type_, where)
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return _distinct([(_enum_text(member), member) for member in type_], type_, where)
    if isinstance(type_, str):
        raise ConstraintError(f"gen({type_!r}): the first argument is a type; write gen(name={type_!r})", where=where)
    shown = type_.__name__ if isinstance(type_, type) and not get_args(type_) else repr(type_)
    raise ConstraintError(f"type={shown}: {MISSING}", where=where)


def _enum_text(member: enum.Enum) -> str:
    return str(member.value) if isinstance(member.value, str | int) else member.name


def _distinct(pairs: Sequence[tuple[str, Any]], type_: Any, where: str) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ConstraintError(f"{type_!r}: two of its values have the same text", where=where)
    check_choices(list(table), where)
    return table


def converter(table: Mapping[str, Any]) -> Callable[[str], Any]:
    """From the chosen text to the value that it stands for."""
    return lambda text: table[text]


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
