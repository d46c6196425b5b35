"""What a JSON schema says about values of one type, and the intersection of two such sayings.

In: nothing. Out: frozen shapes, one class for each JSON type. A schema is a union of shapes; the parts of arrays and
objects are not shapes but states: sets of atoms that a part must all satisfy, expanded when they are needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final, Literal, TypeVar

from ramet.frontend.errors import ConstraintError

# An atom: ("at", pointer, holds) a subschema that holds or must not hold, ("is", JSON text, holds) a value.
Atom = tuple[Literal["at", "is", "false"], str, bool]
State = frozenset[Atom]

T = TypeVar("T")

ANYTHING: Final[State] = frozenset()
NOTHING: Final[State] = frozenset({("false", "", True)})


class Unenforced(ConstraintError):
    """What a keyword demands cannot be written as a grammar. The place is found by the keyword (and its value)."""

    def __init__(self, keyword: str, why: str, value: object = None) -> None:
        super().__init__(f"json_schema: {keyword}: {why}")
        self.keyword, self.why, self.value = keyword, why, value


@dataclass(frozen=True)
class Null:
    """null."""


@dataclass(frozen=True)
class Bool:
    """true or false, or one of them."""

    values: frozenset[bool] = frozenset((True, False))


@dataclass(frozen=True)
class Num:
    """Numbers. `kind` "fraction" leaves out what is integral. `only` are the values, if there is such a list."""

    kind: Literal["any", "integer", "fraction"] = "any"
    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    multiples: frozenset[Decimal] = frozenset()
    only: frozenset[Decimal] | None = None
    excluded: frozenset[Decimal] = frozenset()


@dataclass(frozen=True)
class Str:
    """Strings of `low` to `high` characters in which `patterns` are found and `others` are not, in all `formats`."""

    low: int = 0
    high: int | None = None
    patterns: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    formats: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Items:
    """States of the first items, and of the rest."""

    prefix: tuple[State, ...] = ()
    rest: State = ANYTHING

    def at(self, index: int) -> State:
        """The state of one item."""
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True)
class Contains:
    """`low` to `high` items are in `state`; `rest` is its opposite (needed only with `high`)."""

    state: State
    rest: State
    low: int = 1
    high: int | None = None


@dataclass(frozen=True)
class Arr:
    """Arrays of `low` to `high` items, each of which is in the states that all `parts` give it."""

    parts: tuple[Items, ...] = ()
    low: int = 0
    high: int | None = None
    contains: tuple[Contains, ...] = ()
    unique: bool = False

    def at(self, index: int) -> State:
        """The state of one item."""
        return unite(part.at(index) for part in self.parts)

    @property
    def prefix(self) -> int:
        """From which item on all have the same state."""
        return max((len(part.prefix) for part in self.parts), default=0)


@dataclass(frozen=True)
class Members:
    """States of named properties, of those whose names a pattern is found in, and of all others."""

    named: tuple[tuple[str, State], ...] = ()
    patterns: tuple[tuple[str, State], ...] = ()
    rest: State = ANYTHING
    names: dict[str, State] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.names.update(self.named)

    def at(self, name: str) -> State:
        """The state of a property."""
        found = [state for pattern, state in self.patterns if re.search(pattern, name)]
        if name in self.names:
            found.append(self.names[name])
        return unite(found) if found else self.rest

    def matching(self, patterns: frozenset[str]) -> State:
        """The state of properties that are not named and whose names match exactly these patterns of all."""
        found = [state for pattern, state in self.patterns if pattern in patterns]
        return unite(found) if found else self.rest


@dataclass(frozen=True)
class Obj:
    """Objects of `low` to `high` properties, `required` among them, each in the states that all `parts` give it; their
    names are in the state `keys`."""

    parts: tuple[Members, ...] = ()
    required: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None
    keys: State = ANYTHING

    def at(self, name: str) -> State:
        """The state of a property."""
        return unite(part.at(name) for part in self.parts)


Shape = Null | Bool | Num | Str | Arr | Obj
EVERY: Final[tuple[Shape, ...]] = (Null(), Bool(), Num(), Str(), Arr(), Obj())


def unite(states: Iterable[State]) -> State:
    """The state of what is in all of these."""
    found = frozenset[Atom]().union(*states)
    return NOTHING if found & NOTHING else found


def meet(a: Shape, b: Shape) -> Shape | None:
    """The values of both shapes; None where it is plain that there are none."""
    if isinstance(a, Null) and isinstance(b, Null):
        return a
    if isinstance(a, Bool) and isinstance(b, Bool):
        both = a.values & b.values
        return Bool(both) if both else None
    if isinstance(a, Num) and isinstance(b, Num):
        return _numbers(a, b)
    if isinstance(a, Str) and isinstance(b, Str):
        return _strings(a, b)
    if isinstance(a, Arr) and isinstance(b, Arr):
        high = _least(a.high, b.high)
        low = max(a.low, b.low)
        if high is not None and low > high:
            return None
        parts, contains = _join(a.parts, b.parts), _join(a.contains, b.contains)
        return Arr(parts, low, high, contains, a.unique or b.unique)
    if isinstance(a, Obj) and isinstance(b, Obj):
        high = _least(a.high, b.high)
        required = _join(a.required, b.required)
        low = max(a.low, b.low)
        if high is not None and max(low, len(required)) > high:
            return None
        return Obj(_join(a.parts, b.parts), required, low, high, unite((a.keys, b.keys)))
    return None


def _join(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*a, *b)))


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _numbers(a: Num, b: Num) -> Num | None:
    if {a.kind, b.kind} == {"integer", "fraction"}:
        return None
    kind = b.kind if a.kind == "any" else a.kind
    lows = [(n.low, n.low_open) for n in (a, b) if n.low is not None]
    highs = [(-n.high, n.high_open) for n in (a, b) if n.high is not None]
    low, low_open = max(lows, default=(None, False))
    high, high_open = max(highs, default=(None, False))
    both = Num(
        kind,
        low,
        low_open,
        None if high is None else -high,
        high_open,
        a.multiples | b.multiples,
        excluded=a.excluded | b.excluded,
    )
    lists = [n.only for n in (a, b) if n.only is not None]
    if lists:
        values = frozenset(value for value in frozenset.intersection(*lists) if holds(both, value))
        return Num(only=values) if values else None
    return normal(both)


def holds(number: Num, value: Decimal) -> bool:
    """Whether a value is within everything but `only`."""
    integral = value == value.to_integral_value()
    if (number.kind != "any" and integral != (number.kind == "integer")) or value in number.excluded:
        return False
    if number.low is not None and (value < number.low or (number.low_open and value == number.low)):
        return False
    if number.high is not None and (value > number.high or (number.high_open and value == number.high)):
        return False
    return all((value / multiple) == (value / multiple).to_integral_value() for multiple in number.multiples)


def normal(number: Num) -> Num | None:
    """Integral bounds for integers; None for an interval without numbers."""
    low, high = number.low, number.high
    if number.kind == "integer":
        if low is not None:
            whole = Decimal(math.ceil(low))
            low = whole + 1 if number.low_open and whole == low else whole
        if high is not None:
            whole = Decimal(math.floor(high))
            high = whole - 1 if number.high_open and whole == high else whole
        number = replace(number, low=low, high=high, low_open=False, high_open=False)
    if low is not None and high is not None and (low > high or (low == high and (number.low_open or number.high_open))):
        return None
    if low is not None and low == high:
        return Num(only=frozenset((low,))) if holds(number, low) else None
    return number


def _strings(a: Str, b: Str) -> Str | None:
    low, high = max(a.low, b.low), _least(a.high, b.high)
    if high is not None and low > high:
        return None
    both = Str(
        low, high, a.patterns | b.patterns, a.others | b.others, a.formats | b.formats, None, a.excluded | b.excluded
    )
    lists = [s.only for s in (a, b) if s.only is not None]
    if not lists:
        return both
    values = frozenset(text for text in frozenset.intersection(*lists) if fits(both, text))
    return Str(only=values, formats=both.formats) if values else None


def fits(string: Str, text: str) -> bool:
    """Whether a text has the right length and patterns, and is not excluded. Formats are left to the automaton."""
    if len(text) < string.low or (string.high is not None and len(text) > string.high) or text in string.excluded:
        return False
    return all(re.search(p, text) for p in string.patterns) and not any(re.search(p, text) for p in string.others)
