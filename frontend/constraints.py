"""What a generation must be: from the arguments of `gen` to a constraint, and to what reads its text.

In: a type, or one of regex, json_schema, grammar, choices; jump and json_whitespace. Out: a `Wanted`, or a
`ConstraintError` at the user's line. What can be known of a pattern or a schema without a model is checked here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_origin

from ramet.frontend.entries import Entry
from ramet.frontend.errors import ConstraintError, ParseError, TruncatedError
from ramet.frontend.ir import JUMPS, Choices, Constraint, Grammar, JsonSchema, Jump, Meta, Regex
from ramet.frontend.scalars import short
from ramet.frontend.shapes import shown
from ramet.frontend.types import NUMBERS, check_choices, finite, json_type

KINDS = ("regex", "json_schema", "grammar", "choices")
ARGUMENTS = (*KINDS, "jump", "json_whitespace")
Whitespace = Literal["fixed", "flexible"]
_EBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_DTYPES: dict[str, tuple[str, tuple[str, ...]]] = {  # SGLang's patterns, and where it ends a number
    "int": (r"[-+]?[0-9]+[ \n]*", (" ", "\n")),
    "float": (r"[-+]?[0-9]*\.?[0-9]+[ \n]*", (" ", "\n")),
    "str": (r'"[\w\d\s]*"', ()),
}
_SHOWN = 200  # characters of a text that an error shows


@dataclass(frozen=True)
class Wanted:
    """What a generation must be.

    `choices` are all its texts, if they are few: it is then chosen by likelihood where it need not be sampled. `read`
    makes the value of the text and of how it went; it raises `ValueError`, which becomes a `ParseError` about `name`.
    `kind` is the class of every such value, if they have one. `stop` ends the text too.
    """

    constraint: Constraint | None = None
    jump: Jump = "canonical"
    choices: tuple[str, ...] = ()
    read: Callable[[str, Meta], Any] | None = None
    name: str = "str"
    kind: type | None = None
    stop: tuple[str, ...] = ()


def wanted(type_: Any, arguments: Mapping[str, Any], where: str) -> Wanted:
    """What `gen(type, regex=..., json_schema=..., grammar=..., choices=..., jump=..., json_whitespace=...)` asks for.
    `arguments` that are None are not given."""
    given = [name for name in KINDS if arguments.get(name) is not None]
    if len(given) + (type_ is not str) > 1:
        both = [f"type={shown(type_)}"] if type_ is not str else []
        both += [f"{name}={short(arguments[name])}" for name in given]
        raise ConstraintError(
            f"{', '.join(both)}: a generation has one constraint; give one of type, {', '.join(KINDS)}", where=where
        )
    jump, whitespace = arguments.get("jump"), arguments.get("json_whitespace")
    _one_of("jump", jump, JUMPS, where)
    _one_of("json_whitespace", whitespace, ("fixed", "flexible"), where)
    if given:
        found = _explicit(given[0], arguments[given[0]], whitespace or "fixed", where)
    else:
        found = typed(type_, whitespace or "fixed", where)
    if whitespace is not None and not isinstance(found.constraint, JsonSchema):
        raise ConstraintError(f"json_whitespace={whitespace!r}: the text is no JSON here; leave it out", where=where)
    return replace(found, jump=cast(Jump, jump)) if jump else found


def typed(type_: Any, whitespace: Whitespace, where: str) -> Wanted:
    """What `gen(type)` asks for. Numbers are written as they are, texts freely, everything else as JSON."""
    if type_ is str:
        return Wanted()
    table = finite(type_, where)
    if table is not None:
        texts = dict(table)
        return Wanted(Choices(tuple(texts)), choices=tuple(texts), read=_looked_up(texts), name=shown(type_))
    number = NUMBERS.get(type_) if isinstance(type_, type) else None
    if number is not None:
        return Wanted(
            Regex(number.pattern), read=_plainly(number.read), name=shown(type_), kind=type_, stop=number.ends
        )
    json_of = json_type(type_, where)
    constraint = _schema(json_of.schema, whitespace, f"type={shown(type_)}: ", where)
    return Wanted(constraint, read=_plainly(json_of.read), name=shown(type_), kind=_kind(type_))


def _kind(type_: Any) -> type | None:
    """The class of all values that are read of JSON; None where they may be of several."""
    kind = get_origin(type_) or type_
    if not isinstance(kind, type):
        return None
    record = dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    return kind if record or kind in (list, tuple, dict, set, frozenset) else None


def dtyped(kind: object, type_: Any, arguments: Mapping[str, Any], where: str) -> Wanted:
    """SGLang's `dtype`: the text is of the kind, and stays a text. The other arguments as of `wanted`."""
    others = [name for name in (*KINDS, "json_whitespace") if arguments.get(name) is not None]
    others += ["type"] if type_ is not str else []
    if others:
        raise ConstraintError(f"dtype={kind!r}, {others[0]}=: a generation has one constraint; give one", where=where)
    jump = arguments.get("jump")
    _one_of("jump", jump, JUMPS, where)
    found = _of_dtype(kind, where)
    return replace(found, jump=cast(Jump, jump)) if jump else found


def _of_dtype(kind: object, where: str) -> Wanted:
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    if name == "bool":
        return Wanted(Choices(("True", "False")), choices=("True", "False"))
    if name not in _DTYPES:
        raise ConstraintError(f"dtype={kind!r}: must be one of int, float, bool, str", where=where)
    pattern, stop = _DTYPES[name]
    return Wanted(Regex(pattern), stop=stop)


def read_text(entry: Entry, want: Wanted, text: str) -> Any:
    """The value of a generation's text. Raises `TruncatedError` where max_tokens cut it short, else `ParseError`."""
    assert want.read is not None and entry.meta is not None
    try:
        return want.read(text, entry.meta)
    except ValueError as error:
        cut = entry.meta.finish_reason == "length"
        tail = text if len(text) <= _SHOWN else "..." + text[-_SHOWN:]
        why = "max_tokens ended it; raise max_tokens, or ask for less" if cut else str(error)
        kind: type[ParseError] = TruncatedError if cut else ParseError
        before = entry.seq.tail_before(entry)
        raise kind(
            f"{tail!r} is no {want.name}: {why}",
            text=text,
            where=entry.where,
            branch=entry.seq.path,
            prompt_tail=before,
        ) from (None if cut else error)  # where a text breaks off is no riddle to solve in a JSON parser's frames


def _explicit(kind: str, value: Any, whitespace: Whitespace, where: str) -> Wanted:
    if kind == "regex":
        return Wanted(_regex(value, where))
    if kind == "json_schema":
        return Wanted(_json_schema(value, whitespace, where))
    if kind == "grammar":
        return Wanted(_grammar(value, where))
    choices = check_choices(value, where)
    return Wanted(Choices(choices), choices=choices)


def _regex(pattern: Any, where: str) -> Regex:
    if not isinstance(pattern, str):
        raise ConstraintError(f"regex={pattern!r}: must be a str (flags stand in it, as in '(?i)yes|no')", where=where)
    from ramet.frontend.patterns import check

    try:
        check(pattern)
    except ConstraintError as error:
        raise ConstraintError(error.message, where=where) from None
    return Regex(pattern)


def _json_schema(schema: Any, whitespace: Whitespace, where: str) -> JsonSchema:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ConstraintError(f"json_schema={schema[:_SHOWN]}: is no JSON: {error}", where=where) from None
    elif not isinstance(schema, Mapping | bool):  # a model, a dataclass, a TypedDict, or any other type
        schema = json_type(schema, where).schema
    return _schema(schema, whitespace, "", where)


def _schema(schema: Any, whitespace: Whitespace, about: str, where: str) -> JsonSchema:
    from ramet.frontend.schemas import check

    try:
        check(schema)
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except ConstraintError as error:
        raise ConstraintError(about + error.message, where=where) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"{about}json_schema: is no JSON: {error}", where=where) from None
    return JsonSchema(text, whitespace)


def _grammar(text: Any, where: str) -> Grammar:
    if not isinstance(text, str) or not text.strip():
        raise ConstraintError(
            f"grammar={text!r}: must be a text in Lark's notation or in EBNF (root ::= ...)", where=where
        )
    return Grammar(text, "ebnf" if _EBNF.search(text) else "lark")


def _one_of(name: str, value: Any, known: Sequence[str], where: str) -> None:
    if value is not None and value not in known:
        raise ConstraintError(f"{name}={value!r}: must be one of {', '.join(known)}", where=where)


def _looked_up(table: Mapping[str, Any]) -> Callable[[str, Meta], Any]:
    def read(text: str, meta: Meta) -> Any:
        if text not in table:
            raise ValueError(f"it must be one of {', '.join(map(repr, table))}")
        return table[text]

    return read


def _plainly(read: Callable[[str], Any]) -> Callable[[str, Meta], Any]:
    return lambda text, meta: read(text)
