"""How short and how long the texts of a constraint are, without a model.

In: a constraint. Out: a shortest text; whether there is a longest; whether a stop string can, or must, stand in one.
All answers err on the side of not knowing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ramet.frontend import charsets, regular
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import Choices, Constraint, JsonSchema, Regex
from ramet.frontend.patterns import parse
from ramet.frontend.schema_refs import Document, step

_LIMIT = 1 << 16  # bytes
_FORMATS = {"date": "2000-01-01", "time": "00:00:00Z", "date-time": "2000-01-01T00:00:00Z", "uuid": "0" * 36}


def shortest(constraint: Constraint) -> str | None:
    """A text that no other of the constraint is shorter than (of a schema: a bound, with the values' own keywords
    taken together where `allOf` is used). None: not known."""
    if isinstance(constraint, Choices):
        return min(constraint.choices, key=len, default=None)
    if isinstance(constraint, Regex):
        raw = regular.shortest(parse(constraint.pattern), _LIMIT)
        return None if raw is None else raw.decode()
    if isinstance(constraint, JsonSchema):
        return _Values(constraint).shortest("#", ())
    return None


def finite(constraint: Constraint) -> bool:
    """No text of it is longer than some number that is known here."""
    if isinstance(constraint, Choices):
        return True
    if isinstance(constraint, Regex):
        return regular.longest(parse(constraint.pattern)) is not None
    return isinstance(constraint, JsonSchema) and _Values(constraint).finite("#", ())


def never(constraint: Constraint, stop: str) -> bool:
    """No text of the constraint contains `stop`."""
    if isinstance(constraint, Choices):
        return not any(stop in choice for choice in constraint.choices)
    if isinstance(constraint, Regex):
        known = _alphabet(parse(constraint.pattern))
        return any(not charsets.contains(known, ord(char)) for char in stop)
    return isinstance(constraint, JsonSchema) and constraint.whitespace == "fixed" and min(stop) < " "


def always(constraint: Constraint, stop: str) -> bool:
    """Every text of the constraint contains `stop`."""
    if isinstance(constraint, Choices):
        return all(stop in choice for choice in constraint.choices)
    if isinstance(constraint, Regex):
        return any(stop in piece for piece in _fixed(parse(constraint.pattern)))
    return isinstance(constraint, JsonSchema) and any(stop in piece for piece in _Values(constraint).pieces())


def _alphabet(node: regular.Node) -> charsets.Ranges:
    """The characters of a tree's texts."""
    if isinstance(node, regular.Chars):
        return node.ranges
    if isinstance(node, regular.Text):
        return charsets.characters(node.text)
    if isinstance(node, regular.Times):
        return _alphabet(node.item)
    items = node.items if isinstance(node, regular.Cat | regular.Union) else ()
    return charsets.union(*map(_alphabet, items))


def _fixed(node: regular.Node) -> Iterator[str]:
    """Pieces that stand in every text."""
    run = ""
    for item in node.items if isinstance(node, regular.Cat) else (node,):
        text = _only(item)
        if text is None:
            yield run
            run = ""
        else:
            run += text
    yield run


def _only(node: regular.Node) -> str | None:
    """The one text of a tree that has no other."""
    if isinstance(node, regular.Text):
        return node.text
    if isinstance(node, regular.Chars) and len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
        return chr(node.ranges[0][0])
    if isinstance(node, regular.Cat):
        parts = [_only(item) for item in node.items]
        known = [part for part in parts if part is not None]
        return "".join(known) if len(known) == len(parts) else None
    if isinstance(node, regular.Times) and node.low == node.high:
        once = _only(node.item)
        return None if once is None or len(once) * node.low > _LIMIT else once * node.low
    return None


class _Values:
    """The JSON texts that a schema allows, each with the separators of `json.dumps`."""

    def __init__(self, constraint: JsonSchema) -> None:
        self._document = Document(json.loads(constraint.schema))

    def _at(self, pointer: str) -> Any:
        return self._document[pointer]

    def _target(self, pointer: str) -> str:
        try:
            return self._document.resolve(pointer)
        except ConstraintError:  # the compiler says it better
            return pointer

    def shortest(self, pointer: str, inside: tuple[str, ...]) -> str | None:
        """A shortest text; None where every one would contain itself, or there is none."""
        schema = self._at(pointer)
        if pointer in inside or schema is False:
            return None
        if not isinstance(schema, dict):
            return "0"
        deeper = (*inside, pointer)
        if "const" in schema:
            return json.dumps(schema["const"], ensure_ascii=False)
        if "enum" in schema:
            return min((json.dumps(value, ensure_ascii=False) for value in schema["enum"]), key=len, default=None)
        found: list[str | None] = [self._typed(schema, pointer, deeper)]
        if "$ref" in schema:
            found.append(self.shortest(self._target(pointer), deeper))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                found.append(_least(self.shortest(f"{pointer}/{key}/{i}", deeper) for i in range(len(schema[key]))))
        found += [self.shortest(f"{pointer}/allOf/{i}", deeper) for i in range(len(schema.get("allOf", ())))]
        known = [text for text in found if text is not None]
        return max(known, key=len) if len(known) == len(found) else None

    def _typed(self, schema: dict[str, Any], pointer: str, inside: tuple[str, ...]) -> str | None:
        kinds = schema.get("type")
        if kinds is None:
            return "0"
        return _least(
            self._of(kind, schema, pointer, inside) for kind in ([kinds] if isinstance(kinds, str) else kinds)
        )

    def _of(self, kind: str, schema: dict[str, Any], pointer: str, inside: tuple[str, ...]) -> str | None:
        if kind == "string":
            body = _FORMATS.get(str(schema.get("format")), "")
            return f'"{body or "a" * schema.get("minLength", 0)}"'
        if kind in ("integer", "number"):
            return _number(schema)
        if kind == "array":
            return self._array(schema, pointer, inside)
        if kind == "object":
            return self._object(schema, pointer, inside)
        return {"boolean": "true", "null": "null"}.get(kind)

    def _array(self, schema: dict[str, Any], pointer: str, inside: tuple[str, ...]) -> str | None:
        first = len(schema.get("prefixItems", ()))
        items: list[str | None] = []
        for index in range(min(schema.get("minItems", 0), _LIMIT)):
            place = f"{pointer}/prefixItems/{index}" if index < first else f"{pointer}/items"
            known = index < first or isinstance(schema.get("items"), dict)
            items.append(self.shortest(place, inside) if known else "0")
            if items[-1] is None:
                return None
            if index >= first:  # the others are like it
                items += [items[-1]] * (min(schema["minItems"], _LIMIT) - index - 1)
                break
        return "[" + ", ".join(item for item in items if item is not None) + "]"

    def _object(self, schema: dict[str, Any], pointer: str, inside: tuple[str, ...]) -> str | None:
        members: list[str] = []
        for name in schema.get("required", ()):
            value: str | None = "0"
            if name in schema.get("properties", {}):
                value = self.shortest(step(pointer, "properties", name), inside)
            if value is None:
                return None
            members.append(f"{json.dumps(name, ensure_ascii=False)}: {value}")
        return "{" + ", ".join(members) + "}"

    def finite(self, pointer: str, inside: tuple[str, ...]) -> bool:
        """The texts have a longest. Numbers have none, unless they are bounded whole ones."""
        schema = self._at(pointer)
        if pointer in inside or not isinstance(schema, dict):
            return schema is False
        deeper = (*inside, pointer)
        if "const" in schema or "enum" in schema:
            return True
        ways = [self._finite_kinds(schema, pointer, deeper)]
        if "$ref" in schema:
            ways.append(self.finite(self._target(pointer), deeper))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                ways.append(all(self.finite(f"{pointer}/{key}/{i}", deeper) for i in range(len(schema[key]))))
        return any(ways) or any(
            self.finite(f"{pointer}/allOf/{i}", deeper) for i in range(len(schema.get("allOf", ())))
        )

    def _finite_kinds(self, schema: dict[str, Any], pointer: str, inside: tuple[str, ...]) -> bool:
        kinds = schema.get("type", [])
        named = [kinds] if isinstance(kinds, str) else kinds
        return bool(named) and all(self._finite_kind(kind, schema, pointer, inside) for kind in named)

    def _finite_kind(self, kind: str, schema: dict[str, Any], pointer: str, inside: tuple[str, ...]) -> bool:
        if kind == "string":
            return "maxLength" in schema or schema.get("format") in _FORMATS
        if kind == "integer":
            return _bounded(schema)
        if kind == "array":
            first = range(len(schema.get("prefixItems", ())))
            rest = schema.get("items") is False
            if not rest and "maxItems" in schema and isinstance(schema.get("items"), dict):
                rest = self.finite(f"{pointer}/items", inside)
            return rest and all(self.finite(f"{pointer}/prefixItems/{i}", inside) for i in first)
        if kind == "object":
            names = schema.get("properties", {})
            closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
            return closed and all(self.finite(step(pointer, "properties", name), inside) for name in names)
        return kind in ("boolean", "null")

    def pieces(self) -> Iterator[str]:
        """Pieces that stand in every text: of an object its braces and the keys that it must have."""
        schema = self._at(self._target("#")) if isinstance(self._at("#"), dict) and "$ref" in self._at("#") else None
        schema = schema if schema is not None else self._at("#")
        kind = schema.get("type") if isinstance(schema, dict) else None
        if kind == "object":
            yield from "{}"
            yield from (f"{json.dumps(name, ensure_ascii=False)}: " for name in schema.get("required", ()))
        elif kind == "array":
            yield from "[]"
        elif kind == "string":
            yield '"'


def _bounded(schema: dict[str, Any]) -> bool:
    return ("minimum" in schema or "exclusiveMinimum" in schema) and (
        "maximum" in schema or "exclusiveMaximum" in schema
    )


def _number(schema: dict[str, Any]) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if isinstance(low, int | float) and low > 0:
        return str(math.ceil(low))
    if isinstance(high, int | float) and high < 0:
        return str(math.floor(high))
    return "0"


def _least(texts: Iterator[str | None]) -> str | None:
    return min((text for text in texts if text is not None), key=len, default=None)
