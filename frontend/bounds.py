"""Bounds in `Annotated`: of annotated_types (`Gt`, `MinLen`, `Interval`, ...), of msgspec, of what names them alike.

In: one piece of metadata. Out: the keywords of JSON schema that say the same, and a check of values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sized
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

_COMPARED = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
_LENGTHS = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda value, bound: value > bound,
    "ge": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "le": lambda value, bound: value <= bound,
    "multiple_of": lambda value, bound: Decimal(str(value)) % Decimal(str(bound)) == 0,  # as decimals: 0.3 of 0.1
}


@dataclass(frozen=True)
class Bounds:
    """What a piece of metadata asks of a value. `compared` are bounds by name (gt, ge, lt, le, multiple_of)."""

    compared: dict[str, Any]
    shortest: int = 0
    longest: int | None = None
    pattern: str = ""
    holds: Callable[[Any], bool] | None = None

    @classmethod
    def of(cls, metadata: Any) -> Bounds | None:
        """The bounds that the metadata states; None for metadata about something else."""
        if isinstance(metadata, type):
            return None
        compared = {name: bound for name in _HOLDS if (bound := getattr(metadata, name, None)) is not None}
        pattern = getattr(metadata, "pattern", None)
        pattern = getattr(pattern, "pattern", pattern)  # it may be compiled
        predicate = getattr(metadata, "func", None) if type(metadata).__name__ == "Predicate" else None
        shortest, longest = getattr(metadata, "min_length", None), getattr(metadata, "max_length", None)
        if not (compared or pattern or predicate or shortest or longest is not None):
            return None
        return cls(compared, shortest or 0, longest, pattern if isinstance(pattern, str) else "", predicate)

    def added_to(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema, held to the bounds as far as its type has keywords for them."""
        if "anyOf" in schema:
            return {**schema, "anyOf": [self.added_to(each) for each in schema["anyOf"]]}
        kind, added = schema.get("type"), dict[str, Any]()
        if kind in ("integer", "number"):
            added = {_COMPARED.get(name, "multipleOf"): bound for name, bound in self.compared.items()}
        elif kind in _LENGTHS:
            low, high = _LENGTHS[kind]
            added = ({low: self.shortest} if self.shortest else {}) | (
                {high: self.longest} if self.longest is not None else {}
            )
        if kind == "string" and self.pattern:
            added["pattern"] = self.pattern
        return {**schema, **added}

    def problem(self, value: Any) -> str:
        """Why a value is out of bounds; "" when it is not."""
        if value is None:  # of an optional value, which needs no bounds then
            return ""
        for name, bound in self.compared.items():
            if not _HOLDS[name](value, bound):
                return f"{value!r} is not {name} {bound!r}"
        if isinstance(value, Sized):
            if len(value) < self.shortest:
                return f"{len(value)} elements or characters, at least {self.shortest} are needed"
            if self.longest is not None and len(value) > self.longest:
                return f"{len(value)} elements or characters, at most {self.longest} are allowed"
        if self.pattern and isinstance(value, str) and not re.search(self.pattern, value):
            return f"{value!r} does not match {self.pattern!r}"
        if self.holds is not None and not self.holds(value):
            return f"{value!r} does not satisfy {getattr(self.holds, '__name__', 'its predicate')}"
        return ""
