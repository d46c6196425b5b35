"""The parameters of a program that a plan leaves open.

In: a signature, its annotations, what is given statically. Out: per open parameter what stands in for it in a trace,
and how an argument of a run becomes its text.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from ramet.frontend.errors import ConstraintError, PlanError
from ramet.frontend.planned import Param, Parameter
from ramet.frontend.symbols import Opaque, Symbol
from ramet.frontend.tracing import Trace

_ARGUMENTS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Opened:
    """An open parameter. `table`: text → value, for one of finitely many."""

    parameter: Parameter
    kind: Any = str
    table: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.parameter.name

    def symbol(self, trace: Trace, where: str) -> Any:
        """What a traced body gets."""
        part = Param(self.name)
        if self.parameter.kind == "text":
            return Symbol.of(trace.probe.text(part), trace, part)
        if self.table is None:
            return Opaque.of(trace, part, self.kind, trace.probe.text(part))
        if all(type(value) is str for value in self.table.values()):
            return Symbol.of(trace.probe.text(part), trace, part, tuple(self.table))
        return self.table[trace.decide(part, tuple(self.table))]


def split(
    signature: inspect.Signature, hints: Mapping[str, Any], static: Mapping[str, Any], where: str
) -> tuple[list[Opened], dict[str, Any]]:
    """Open parameters, and the arguments that are compiled in: those given, and defaults. `...` leaves a parameter
    with a default open. Raises `ConstraintError`."""
    opened: list[Opened] = []
    fixed: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        value = static.get(name, parameter.default)
        if parameter.kind in _ARGUMENTS:
            if name in static:
                fixed[name] = static[name]
        elif value is inspect.Parameter.empty or value is ...:
            opened.append(_opened(name, hints.get(name, parameter.annotation), where))
        else:
            fixed[name] = value
    return opened, fixed


def hints_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function as types; those that cannot be read are left out."""
    try:
        return typing.get_type_hints(fn)
    except Exception:  # noqa: BLE001 - an annotation may be any expression: one that fails says nothing
        return {}


def _opened(name: str, note: Any, where: str) -> Opened:
    if note in (str, inspect.Parameter.empty, Any) or isinstance(note, str):
        return Opened(Parameter(name, "text"))
    if get_origin(note) in (typing.Union, types.UnionType):
        raise ConstraintError(
            f"{name}: {note}: which of its types an argument has cannot be left open; compile({name}=...)", where=where
        )
    table = _table(note)
    if table is not None:
        return Opened(Parameter(name, "finite", _Texts(table)), note, table)
    origin = get_origin(note) or note
    if origin is typing.Annotated:
        return _opened(name, get_args(note)[0], where)
    return Opened(Parameter(name, "value"), origin)


def _table(note: Any) -> dict[str, Any] | None:
    """Text → value of a type of finitely many values that differ in their texts; None for every other type."""
    if note is bool:
        values: list[Any] = [True, False]
    elif get_origin(note) is typing.Literal:
        values = list(get_args(note))
    elif isinstance(note, type) and issubclass(note, enum.Enum):
        values = list(note)
    else:
        return None
    table = {_finite_text(value): value for value in values}
    return table if table and len(table) == len(values) else None


class _Texts(tuple[str, ...]):
    """The texts of a parameter of few values, which also knows the values: those of a plan from a file do not."""

    table: Mapping[str, Any]

    def __new__(cls, table: Mapping[str, Any]) -> _Texts:
        texts = super().__new__(cls, table)
        texts.table = table
        return texts


def text_of(parameter: Parameter, value: object) -> str:
    """The text of an argument. Raises `PlanError`."""
    if parameter.kind == "text":
        if not isinstance(value, str):
            raise PlanError(f"{parameter.name}={value!r:.80}: must be a str")
        return _said(parameter.name, value, str.__str__(value))
    if parameter.kind == "value":
        return _said(parameter.name, value, str(value))
    text = _finite_text(value)
    table = parameter.domain.table if isinstance(parameter.domain, _Texts) else None
    known = value if table is None else table.get(text)
    if text not in parameter.domain or not _is(value, known):
        raise PlanError(f"{parameter.name}={value!r:.80}: must be one of {_listed(parameter.domain, table)}")
    return text


def _said(name: str, value: object, text: str) -> str:
    """The text of an argument, which a plan says wherever its program says the argument."""
    if type(value) is not str and not (str(value) == format(value) == text):
        raise PlanError(
            f"{name}={value!r:.80}: a {type(value).__name__} has several texts: {text!r:.80}, by str() "
            f"{str(value)!r:.80}, in an f-string {format(value)!r:.80}; give the text that is meant, or run the program"
        )
    return text


def _is(value: object, known: object) -> bool:
    """It is the one of few values that a program would take it for."""
    return value is known or (type(value) is type(known) and value == known)


def _listed(domain: tuple[str, ...], table: Mapping[str, Any] | None) -> str:
    members = table is not None and any(isinstance(value, enum.Enum) for value in table.values())
    return ", ".join(map(str, table.values()) if table is not None and members else domain)


def _finite_text(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value) if isinstance(value.value, str | int) else value.name
    return str(value)
