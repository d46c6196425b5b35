"""JSON schemas as constraints: every text is a JSON value that is valid under the schema.

In: a schema as JSON text (Draft 2020-12, or the spellings of 4, 6, 7 and 2019-09). Out: a `Translation`.

What is enforced is enforced exactly: no text of the grammar is an invalid value. The converse is narrower, as a
generator needs one spelling of a value and not all of them:
- Keys come in the order of `properties` (of several schemas that apply at once: of the first that names them), then
  required keys that are not among them, then all others. Without `additionalProperties` others are allowed.
- Declared keys never repeat. No grammar can tell other keys apart: one of those may be written twice, which leaves the
  value valid, as each of its values is.
- Whitespace is that of `json.dumps`, or flexible: one space, or a line end and up to 64 spaces (16 tabs) of indent.
- Strings with a pattern, a format or excluded values, and keys, are written without needless escapes; `pattern` is
  searched for and means what ECMA 262 and Python both take it for.
- Numbers: see json_scalars.py. Values of `const` and `enum` are written in one way.
`$ref` applies beside its siblings in every draft. Formats that are not in `json_patterns.FORMATS` and keywords that no
draft defines are annotations, as the specification says; they are named in `notes`.
"""

from __future__ import annotations

import json
from decimal import Context, Decimal, localcontext
from typing import Any, Final

from ramet.frontend.errors import ConstraintError
from ramet.frontend.schema_refs import Document, refusal, step
from ramet.frontend.schemas import check, unknown
from ramet.runtime.grammar.json_bound import longest
from ramet.runtime.grammar.json_emit import Emitter
from ramet.runtime.grammar.json_layout import Whitespace
from ramet.runtime.grammar.json_patterns import FORMATS, PatternRefused
from ramet.runtime.grammar.json_shapes import Unenforced
from ramet.runtime.grammar.translation import Translation

_DIGITS: Final = 2_000  # of intermediate results: more than any two numbers of a schema need


def translate(
    schema: str, whitespace: Whitespace = "fixed", prefix: str = "json", *, marks: bool = True
) -> Translation:
    """The grammar of a schema. Names of its rules (but `start`) and terminals begin with `prefix`. `marks`: those that
    may get lanes (lanes.py) are marked; only for a text that is told apart from all others where it begins, in a
    program whose other texts need no control characters. Raises `ConstraintError` for what is no schema, is too large,
    cannot be enforced, or has no valid value at all."""
    with localcontext(Context(prec=_DIGITS)):
        value = read(schema)
        check(value)
        document = Document(value)
        try:
            return _translated(Emitter(document, whitespace, prefix, marks), document)
        except Unenforced as error:
            raise refusal(_place(document, error), error.why) from None


def _translated(emitter: Emitter, document: Document) -> Translation:
    _patterns(document, emitter)
    root = emitter.expander.state("#")
    emitter.explore(root)
    if not emitter.alive(root):
        raise refusal("#", "no value is valid under this schema (its demands contradict each other)")
    start = emitter.write(root)
    lines = [f"start: {start}", *emitter.rules.lines()]
    lines += emitter.terms.used(lines)
    text = emitter.text(root)
    shortest = None if text is None else text.encode()
    return Translation("\n".join(lines) + "\n", shortest, longest(emitter, root), tuple(_notes(document)))


def _place(document: Document, error: Unenforced) -> str:
    """The first place of a keyword (with the value that was refused, if that is known)."""
    for pointer in document.pointers():
        schema = document[pointer]
        if isinstance(schema, dict) and error.keyword in schema and error.value in (None, schema[error.keyword]):
            return step(pointer, error.keyword)
    return "#"


def read(text: str) -> Any:
    """The schema that JSON text holds; numbers stay exact. Refuses what Python's `json` lets through: NaN and its
    like, keys that occur twice."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_members)
    except RecursionError:
        raise refusal("#", "nested too deeply (limit: depth)") from None
    except ValueError as error:
        raise ConstraintError(f"json_schema: is not JSON: {error}") from None


def _no_number(name: str) -> float:
    raise refusal("#", f"{name} is not a JSON number")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:i]))
        raise refusal("#", f"the key {twice[:100]!r} occurs twice in one object")
    return found


def _patterns(document: Document, emitter: Emitter) -> None:
    """Refuse, with its place, a pattern that cannot be enforced."""
    for pointer in document.pointers():
        schema = document[pointer]
        if isinstance(schema, dict):
            places = [(step(pointer, "pattern"), schema["pattern"])] if "pattern" in schema else []
            places += [(step(pointer, "patternProperties", one), one) for one in schema.get("patternProperties", ())]
            for place, pattern in places:
                try:
                    emitter.terms.search(pattern)
                except PatternRefused as error:
                    raise refusal(place, error.message) from None


def _notes(document: Document) -> list[str]:
    notes = []
    formats = {
        schema["format"]
        for schema in map(document.__getitem__, document.pointers())
        if isinstance(schema, dict) and isinstance(schema.get("format"), str)
    } - FORMATS.keys()
    if formats:
        notes.append("json_schema: formats that are not checked: " + ", ".join(sorted(formats)))
    strange = unknown(document)
    if strange:
        notes.append("json_schema: keywords without effect: " + ", ".join(strange[:20]))
    return notes
