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
from ramet.frontend.types import finite

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
            return Opaque(trace, part, self.kind, trace.probe.text(part))
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
    table = finite(note, where)
    if table is not None:
        return Opened(Parameter(name, "finite", tuple(table)), note, table)
    origin = get_origin(note) or note
    if origin is typing.Annotated:
        return _opened(name, get_args(note)[0], where)
    return Opened(Parameter(name, "value"), origin)


def text_of(parameter: Parameter, value: object) -> str:
    """The text of an argument. Raises `PlanError`."""
    if parameter.kind == "text":
        if not isinstance(value, str):
            raise PlanError(f"{parameter.name}={value!r:.80}: must be a str")
        return value
    if parameter.kind == "value":
        return str(value)
    text = _finite_text(value)
    if text not in parameter.domain:
        raise PlanError(f"{parameter.name}={value!r:.80}: must be one of {', '.join(parameter.domain)}")
    return text


def _finite_text(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value) if isinstance(value.value, str | int) else value.name
    return str(value)
