"""JSON schemas at the user's line: what is wrong with one before anything is compiled.

In: a schema as a JSON value, Draft 2020-12 or an older spelling (4, 6, 7, 2019-09). Out: nothing, or a
`ConstraintError` that begins with the place: `json_schema: at "#/properties/a/pattern": ...`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from ramet.frontend import patterns
from ramet.frontend.errors import ConstraintError
from ramet.frontend.schema_refs import IN_PLACE_LISTS, IN_PLACE_ONE, Document, refusal, step, subschemas

MOST_BYTES: Final = 64 * 1024
MOST_DEPTH: Final = 64
MOST_NODES: Final = 10_000
MOST_VALUES: Final = 10_000
MOST_BITS: Final = 1_024
MOST_EXPONENT: Final = 308
TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")

Effect = Literal["enforced", "annotation", "refused"]


@dataclass(frozen=True)
class Keyword:
    """What is done about a keyword, and what its value must be (a name in `_SHAPES`). `remark` says where an enforced
    one has limits, or what to do instead of a refused one."""

    effect: Effect
    value: str = "any"
    remark: str = ""


def _annotations(*names: str) -> dict[str, Keyword]:
    return {name: Keyword("annotation") for name in names}


def _enforced(value: str, *names: str, remark: str = "") -> dict[str, Keyword]:
    return {name: Keyword("enforced", value, remark) for name in names}


KEYWORDS: Final[dict[str, Keyword]] = {
    **_annotations("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"),
    **_annotations("contentMediaType", "contentEncoding", "contentSchema", "$schema", "$vocabulary"),
    **_annotations("$recursiveAnchor", "$dynamicAnchor"),
    **_enforced("string", "$id", "$anchor", "$ref"),
    **_enforced("schemas map", "$defs", "definitions", "properties"),
    **_enforced("schemas map", "patternProperties", remark="at most 4 patterns for one object"),
    **_enforced("schema", "additionalProperties", "propertyNames", "additionalItems", "then", "else"),
    **_enforced("schema", "not", "if", remark="where the opposite can be written as a schema"),
    **_enforced("schema", "contains", remark="one for each array, with small counts"),
    **_enforced("count", "minContains", "maxContains"),
    **_enforced("schemas", "allOf", "anyOf", "prefixItems"),
    **_enforced("schemas", "oneOf", remark="where its branches exclude each other, or can be made to"),
    **_enforced("schemas map", "dependentSchemas"),
    **_enforced("names map", "dependentRequired"),
    **_enforced("dependencies", "dependencies"),
    **_enforced("schema or schemas", "items"),
    **_enforced("types", "type"),
    **_enforced("values", "enum"),
    **_enforced("any", "const"),
    **_enforced("names", "required"),
    **_enforced("count", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    **_enforced("number", "minimum", "maximum"),
    **_enforced("number or flag", "exclusiveMinimum", "exclusiveMaximum"),
    **_enforced("positive", "multipleOf"),
    **_enforced("string", "pattern", remark="without look-around and back-references"),
    **_enforced("string", "format", remark="formats that are not in FORMATS are annotations"),
    **_enforced("flag", "uniqueItems", remark="for items of up to 60 known values"),
    "unevaluatedProperties": Keyword("refused", remark="list all properties in one place, with additionalProperties"),
    "unevaluatedItems": Keyword("refused", remark="use items, with prefixItems"),
    "$recursiveRef": Keyword("refused", remark="use $ref"),
    "$dynamicRef": Keyword("refused", remark="use $ref"),
    "extends": Keyword("refused", remark="use allOf (this is Draft 3)"),
    "disallow": Keyword("refused", remark="use not (this is Draft 3)"),
    "divisibleBy": Keyword("refused", remark="use multipleOf (this is Draft 3)"),
}


def check(schema: object) -> None:
    """Raise `ConstraintError` unless `schema` is a JSON schema within the limits (64 kB as JSON text, 64 levels,
    10,000 values, 10,000 values of an `enum`) that uses no refused keyword, whose keywords have values of the right
    types, and whose references stay inside it and do not go in circles. Keywords that no draft defines are
    annotations, as the specification says. Whether values exist that are valid is not found out here."""
    _measure(schema)
    size = len(json.dumps(schema, ensure_ascii=False, default=str).encode())
    if size > MOST_BYTES:
        raise refusal("#", f"the schema has {size} bytes; at most {MOST_BYTES} (limit: specification size)")
    examine(Document(schema))


def examine(document: Document) -> None:
    """The part of `check` that looks at keywords and references."""
    todo = ["#"]
    edges: dict[str, list[str]] = {}
    while todo:
        pointer = todo.pop()
        if pointer in edges:
            continue
        schema = document[pointer]
        if not isinstance(schema, dict | bool):
            raise refusal(pointer, f"a schema is an object, true or false, not {_named(schema)}")
        edges[pointer] = []
        if isinstance(schema, dict):
            todo.extend(place for place, _ in subschemas(schema, pointer))
            _keywords(schema, pointer)
            edges[pointer] = list(_same_place(schema, pointer))
            if "$ref" in schema:
                target = document.resolve(pointer)
                edges[pointer].append(target)
                todo.append(target)
    _circles(edges)


def unknown(document: Document) -> list[str]:
    """The keywords in `document` that no draft defines, and that therefore have no effect."""
    found = {
        key for pointer in document.pointers() if isinstance(document[pointer], dict) for key in document[pointer]
    } - KEYWORDS.keys()
    return sorted(key for key in found if key != "id")


def _measure(schema: object) -> None:
    """Everything is JSON, no deeper and no more than the limits; iterative, so that no nesting can hurt."""
    nodes = 0
    todo: list[tuple[Any, str, int]] = [(schema, "#", 1)]
    while todo:
        value, pointer, depth = todo.pop()
        nodes += 1
        if nodes > MOST_NODES:
            raise refusal("#", f"the schema has more than {MOST_NODES} values (limit: nodes)")
        if depth > MOST_DEPTH:
            raise refusal(pointer, f"nested deeper than {MOST_DEPTH} levels (limit: depth)")
        if isinstance(value, dict):
            todo.extend(_members(value, pointer, depth))
        elif isinstance(value, list | tuple):
            if len(value) > MOST_VALUES:
                raise refusal(pointer, f"has {len(value)} entries; at most {MOST_VALUES} (limit: enum)")
            plain = pointer.endswith("/enum")  # its scalars are not nodes: they have a limit of their own
            for i, one in enumerate(value):
                if plain and not isinstance(one, dict | list | tuple):
                    _scalar(one, step(pointer, i))
                else:
                    todo.append((one, step(pointer, i), depth + 1))
        else:
            _scalar(value, pointer)


def _members(value: dict[Any, Any], pointer: str, depth: int) -> Iterator[tuple[Any, str, int]]:
    for key, one in value.items():
        if not isinstance(key, str):
            raise refusal(pointer, f"the key {key!r} is not a string")
        _scalar(key, pointer)
        yield one, step(pointer, key), depth + 1


def _scalar(value: object, pointer: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise refusal(pointer.encode(errors="replace").decode(), "has a lone surrogate, which is not text")
        return
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise refusal(pointer, f"a number of {value.bit_length()} bits is beyond every reader (limit: numbers)")
        return
    if isinstance(value, float | Decimal):
        if isinstance(value, Decimal) and value.is_finite() and value and abs(value.adjusted()) > MOST_EXPONENT:
            raise refusal(pointer, f"{value} is beyond every reader (limit: numbers)")
        if not math.isfinite(value):
            raise refusal(pointer, f"{value} is not a JSON number")
        return
    raise refusal(pointer, f"a value of type {type(value).__name__} is not JSON")


def _keywords(schema: dict[str, Any], pointer: str) -> None:
    for key, value in schema.items():
        keyword = KEYWORDS.get(key)
        if keyword is None or keyword.effect == "annotation":
            continue
        if keyword.effect == "refused":
            if value is True and key.startswith("unevaluated"):
                continue
            raise refusal(step(pointer, key), f"{key} is not supported; {keyword.remark}")
        right, wanted = _SHAPES[keyword.value]
        if not right(value):
            raise refusal(step(pointer, key), f"must be {wanted}, not {_named(value)}")
        if key == "pattern":
            _pattern(value, step(pointer, key))
        elif key == "patternProperties":
            for one in value:
                _pattern(one, step(pointer, key, one))


def _pattern(pattern: str, pointer: str) -> None:
    try:
        patterns.check(pattern)
    except ConstraintError as error:
        raise refusal(pointer, error.message.removeprefix("regex=").strip()) from None


def _same_place(schema: dict[str, Any], pointer: str) -> Iterator[str]:
    """Pointers of the subschemas that describe the same value as `schema`."""
    yield from (step(pointer, key) for key in IN_PLACE_ONE if key in schema)
    for key in IN_PLACE_LISTS:
        yield from (step(pointer, key, i) for i in range(len(schema.get(key, ()))))
    yield from (step(pointer, "dependentSchemas", name) for name in schema.get("dependentSchemas", ()))
    needs = schema.get("dependencies", {})
    yield from (step(pointer, "dependencies", name) for name in needs if not isinstance(needs[name], list))


def _circles(edges: dict[str, list[str]]) -> None:
    """Refuse references that lead back to themselves without a property or an item in between."""
    done: set[str] = set()
    for start in edges:
        open_: dict[str, Iterator[str]] = {}
        todo = [start] if start not in done else []
        while todo:
            here = todo[-1]
            if here not in open_:
                open_[here] = iter(edges.get(here, ()))
            for target in open_[here]:
                if target in open_:
                    raise refusal(target, "refers to itself with nothing in between: no value can be checked by it")
                if target not in done:
                    todo.append(target)
                    break
            else:
                done.add(here)
                del open_[todo.pop()]


def _named(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)  # type: ignore[operator, call-overload]


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(n, str) for n in value) and len(set(value)) == len(value)


def _is_types(value: object) -> bool:
    return value in TYPES if isinstance(value, str) else _is_names(value) and bool(value) and set(value) <= set(TYPES)  # type: ignore[call-overload]


def _is_map(value: object, inner: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(inner(one) for one in value.values())


def _is_list(value: object, inner: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(inner(one) for one in value)


_SHAPES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "any": (lambda value: True, "anything"),
    "string": (lambda value: isinstance(value, str), "a string"),
    "flag": (lambda value: isinstance(value, bool), "true or false"),
    "number": (_is_number, "a number"),
    "number or flag": (lambda value: _is_number(value) or isinstance(value, bool), "a number (in Draft 4 a boolean)"),
    "positive": (lambda value: _is_number(value) and value > 0, "a number above 0"),  # type: ignore[operator]
    "count": (_is_count, "an integer that is not negative"),
    "schema": (_is_schema, "a schema (an object, true or false)"),
    "schemas": (lambda value: _is_list(value, _is_schema), "a list of schemas that is not empty"),
    "schemas map": (lambda value: _is_map(value, _is_schema), "an object of schemas"),
    "schema or schemas": (
        lambda value: _is_schema(value) or value == [] or _is_list(value, _is_schema),
        "a schema or a list of schemas",
    ),
    "names": (_is_names, "a list of distinct strings"),
    "names map": (lambda value: _is_map(value, _is_names), "an object of lists of distinct strings"),
    "dependencies": (
        lambda value: _is_map(value, lambda one: _is_schema(one) or _is_names(one)),
        "an object of schemas or lists of distinct strings",
    ),
    "types": (_is_types, f"one or several of {', '.join(TYPES)}"),
    "values": (lambda value: _is_list(value, lambda one: True), "a list of values that is not empty"),
}
