"""JSON schemas as parts of grammars and structures.

In: the JSON text of a schema. Out: an opaque node, with the characters that its texts may begin with and go on with.
"""

from __future__ import annotations

import json
from typing import Literal

from ramet.frontend import charsets
from ramet.runtime.grammar import json_schema
from ramet.runtime.grammar.rules import Opaque

_FIRST = {
    "object": "{",
    "array": "[",
    "string": '"',
    "number": "-0123456789",
    "integer": "-0123456789",
    "boolean": "tf",
    "null": "n",
}
_MORE = "0123456789.eE"  # what a number could go on with


def json_part(
    schema: str, whitespace: Literal["fixed", "flexible"] = "fixed", *, marks: bool = False
) -> tuple[Opaque, tuple[str, ...]]:
    """A schema as a node, and the notes of its translation; `marks`: as `json_schema.translate` has them. Raises
    `ConstraintError` (`json_schema: ...`)."""
    made = json_schema.translate(schema, whitespace, marks=marks)
    types = _types(json.loads(schema))
    return Opaque(
        made.lark,
        first=charsets.characters("".join(_FIRST[one] for one in types)),
        more=charsets.characters(_MORE if {"number", "integer"} & types else ""),
        shortest=made.shortest,
        longest=made.longest,
    ), made.notes


def _types(schema: object) -> set[str]:
    """The types that a schema's values may have, as far as `type` says."""
    declared = schema.get("type") if isinstance(schema, dict) else None
    named = [declared] if isinstance(declared, str) else declared
    known = {one for one in named if one in _FIRST} if isinstance(named, list) else set()
    return known or set(_FIRST)
