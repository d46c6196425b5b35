"""What single keywords of a JSON schema say about values, and what their opposites say.

In: the value of a keyword. Out: the union of shapes of the values that it allows, or that it forbids. Keywords that
apply other schemas are in json_expand.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from ramet.runtime.grammar.json_patterns import FORMATS
from ramet.runtime.grammar.json_shapes import (
    ANYTHING,
    EVERY,
    NOTHING,
    Arr,
    Atom,
    Bool,
    Items,
    Members,
    Null,
    Num,
    Obj,
    Shape,
    Str,
    holds,
    meet,
)

MOST_LISTED: Final = 64
Shapes = Sequence[Shape]
_TYPES: Final[dict[str, Shape]] = {
    "null": Null(),
    "boolean": Bool(),
    "integer": Num("integer"),
    "number": Num(),
    "string": Str(),
    "array": Arr(),
    "object": Obj(),
}


def value_text(value: object) -> str:
    """JSON text that is the same for equal values: integral numbers without a point, keys in order."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float | Decimal):
        number = value if isinstance(value, Decimal) else Decimal(repr(value))
        return format(number.to_integral_value() if number == number.to_integral_value() else number.normalize(), "f")
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(value_text(one) for one in value) + "]"
    assert isinstance(value, dict), "the frontend lets only JSON through"
    return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {value_text(v)}" for k, v in value.items()) + "}"


def others(kind: type[Shape]) -> Shapes:
    """All types but one: what a keyword of that type says nothing about."""
    return tuple(one for one in EVERY if not isinstance(one, kind))


def without(name: str) -> Obj:
    """Objects that lack a property."""
    return Obj((Members(((name, NOTHING),)),))


def _said_of(kind: type[Shape], said: Shape | None, opposite: Shape | None, holds: bool) -> Shapes:
    one = said if holds else opposite
    here = () if one is None else (one,)
    return (*others(kind), *here) if holds else here


def types(value: Any, holds: bool) -> Shapes:
    """`type`: the shapes of the named types, or of all others."""
    names = {value} if isinstance(value, str) else set(value)
    if holds:
        return tuple(_TYPES[name] for name in sorted(names))
    left = [one for name, one in _TYPES.items() if name not in names and name != "integer"]
    if "integer" in names and "number" not in names:
        left = [Num("fraction") if isinstance(one, Num) else one for one in left]
    return left


def values_of(values: Iterable[Any]) -> Shapes:
    """Scalars are gathered, so that a long list is one shape."""
    strings, numbers, flags, found = set(), set(), set(), dict[Shape, None]()
    for value in values:
        if value is None:
            found[Null()] = None
        elif isinstance(value, bool):
            flags.add(value)
        elif isinstance(value, str):
            strings.add(value)
        elif isinstance(value, list):
            states = tuple(frozenset({_is(one)}) for one in value)
            found[Arr((Items(states, NOTHING),), len(value), len(value))] = None
        elif isinstance(value, dict):
            named = tuple((name, frozenset({_is(one)})) for name, one in value.items())
            found[Obj((Members(named, (), NOTHING),), tuple(value))] = None
        else:
            numbers.add(_decimal(value))
    if flags:
        found[Bool(frozenset(flags))] = None
    if numbers:
        found[Num(only=frozenset(numbers))] = None
    if strings:
        found[Str(only=frozenset(strings))] = None
    return tuple(found)


def _is(value: object, holds: bool = True) -> Atom:
    return ("is", value_text(value), holds)


def _decimal(value: object) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(repr(value))


def not_value(value: Any) -> Shapes:
    """Every value but one."""
    if value is None:
        return others(Null)
    if isinstance(value, bool):
        return (*others(Bool), Bool(frozenset((not value,))))
    if isinstance(value, str):
        return (*others(Str), Str(excluded=frozenset((value,))))
    if isinstance(value, list):
        size = len(value)
        differ = [Arr((Items((*[ANYTHING] * i, frozenset({_is(v, False)}))),), i + 1) for i, v in enumerate(value)]
        fewer = [Arr(high=size - 1)] if size else []
        return (*others(Arr), *differ, *fewer, Arr(low=size + 1))
    if isinstance(value, dict):
        other = [Obj((Members(((name, frozenset({_is(v, False)})),)),), (name,)) for name, v in value.items()]
        # Objects with these members and more are left out: keys that are not declared cannot be counted.
        more = () if value else (Obj(low=1),)
        return (*others(Obj), *other, *(without(name) for name in value), *more)
    return (*others(Num), Num(excluded=frozenset((_decimal(value),))))


def listed(shape: Shape) -> list[str] | None:
    """JSON texts of the values of a shape that has few; None for one that has not."""
    if isinstance(shape, Null):
        return ["null"]
    if isinstance(shape, Bool):
        return [value_text(value) for value in sorted(shape.values)]
    if isinstance(shape, Str | Num) and shape.only is not None:
        return sorted(value_text(value) for value in shape.only)
    if not isinstance(shape, Num) or shape.kind != "integer" or shape.low is None or shape.high is None:
        return None
    if shape.high - shape.low >= MOST_LISTED:
        return None
    span = (shape.low + i for i in range(int(shape.high - shape.low) + 1))
    return [value_text(value) for value in span if holds(shape, value)]


def gathered(shapes: Iterable[Shape]) -> list[Shape]:
    """The same union with the listed scalars in one shape of each type."""
    found: dict[Shape, None] = {}
    strings: set[str] = set()
    numbers: set[Decimal] = set()
    flags: set[bool] = set()
    for shape in shapes:
        if isinstance(shape, Str) and shape.only is not None and not shape.formats:
            strings |= shape.only
        elif isinstance(shape, Num) and shape.only is not None:
            numbers |= shape.only
        elif isinstance(shape, Bool):
            flags |= shape.values
        else:
            found[shape] = None
    some = [Bool(frozenset(flags))] if flags else []
    return [
        *found,
        *some,
        *([Num(only=frozenset(numbers))] if numbers else []),
        *([Str(only=frozenset(strings))] if strings else []),
    ]


def _enum(values: list[Any], holds: bool) -> Shapes:
    if holds:
        return values_of(values)
    found: Shapes = EVERY
    scalars = [value for value in values if not isinstance(value, list | dict)]
    for one in values_of(scalars):
        if isinstance(one, Null):
            found = [s for s in found if not isinstance(s, Null)]
        elif isinstance(one, Bool):
            left = Bool().values - one.values
            found = [Bool(left) if isinstance(s, Bool) else s for s in found if left or not isinstance(s, Bool)]
        elif isinstance(one, Num):
            found = [Num(excluded=one.only or frozenset()) if isinstance(s, Num) else s for s in found]
        elif isinstance(one, Str):
            found = [Str(excluded=one.only or frozenset()) if isinstance(s, Str) else s for s in found]
    for value in values:
        if isinstance(value, list | dict):
            pairs = (meet(a, b) for a in found for b in not_value(value))
            found = [one for one in pairs if one is not None]
    return found


def required(names: list[str], holds: bool) -> Shapes:
    """`required`: objects that have the properties, or lack one."""
    return (*others(Obj), Obj(required=tuple(names))) if holds else tuple(without(name) for name in names)


def bound(schema: dict[str, Any], key: str, holds: bool) -> Shapes:
    """A numeric bound. In Draft 4 exclusiveMinimum and exclusiveMaximum are flags of the other two."""
    lower = key in ("minimum", "exclusiveMinimum")
    value = schema[key]
    if isinstance(value, bool):
        return EVERY if holds else ()
    strict = key.startswith("exclusive") or schema.get("exclusiveMinimum" if lower else "exclusiveMaximum") is True
    limit = _decimal(value)
    if holds:
        one = Num(low=limit, low_open=strict) if lower else Num(high=limit, high_open=strict)
        return (*others(Num), one)
    return (Num(high=limit, high_open=not strict) if lower else Num(low=limit, low_open=not strict),)


def _counted(kind: type[Str] | type[Arr] | type[Obj], key: str) -> Callable[[Any, bool], Shapes | None]:
    def say(value: Any, holds: bool) -> Shapes:
        count = int(value)
        if key == "low":
            return _said_of(kind, kind(low=count), kind(high=count - 1) if count else None, holds)
        return _said_of(kind, kind(high=count), kind(low=count + 1), holds)

    return say


def _multiple(value: Any, holds: bool) -> Shapes | None:
    return _said_of(Num, Num(multiples=frozenset((_decimal(value),))), None, True) if holds else None


def _format(name: str, holds: bool) -> Shapes | None:
    if name not in FORMATS:
        return EVERY if holds else ()
    return _said_of(Str, Str(formats=frozenset((name,))), None, True) if holds else None


def _unique(value: bool, holds: bool) -> Shapes | None:
    if not value:
        return EVERY if holds else ()
    return (*others(Arr), Arr(unique=True)) if holds else None


SIMPLE: Final[dict[str, Callable[[Any, bool], Shapes | None]]] = {
    "type": types,
    "enum": _enum,
    "const": lambda value, holds: values_of([value]) if holds else not_value(value),
    "required": required,
    "minLength": _counted(Str, "low"),
    "maxLength": _counted(Str, "high"),
    "minItems": _counted(Arr, "low"),
    "maxItems": _counted(Arr, "high"),
    "minProperties": _counted(Obj, "low"),
    "maxProperties": _counted(Obj, "high"),
    "pattern": lambda value, holds: _said_of(
        Str, Str(patterns=frozenset((value,))), Str(others=frozenset((value,))), holds
    ),
    "format": _format,
    "multipleOf": _multiple,
    "uniqueItems": _unique,
}
