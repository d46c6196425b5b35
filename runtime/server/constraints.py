"""What a request's output must be, in every client's spelling, as one `ir.Constraint`.

In: fields of a body: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`, SGLang's `regex`,
`json_schema`, `ebnf` and `structural_tag`, llama.cpp's `grammar`, Ollama's `format`, Anthropic's `output_format`. Out:
the constraint under the name that the client used for it, or a `Failure` 400 that names the client's field. Whatever
constrains is enforced or refused, never ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.server.failures import Failure, bad, unsupported

ANY_OBJECT = '{"type": "object"}'
SGLANG_ANY = "$$ANY$$"  # SGLang's word for it, where a schema stands
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_RULE = re.compile(r"^\s*[A-Za-z_][\w-]*\s*::=", re.MULTILINE)  # what a rule of EBNF begins with, and none of Lark's
_WORD = re.compile(r"(?:regex|json_schema|grammar|choices|structure)(?=[=:])")  # what a compiler's message begins with
_TAG = re.compile(  # of a tool
    r'structure: at "[^"]*/tags/(\d+)/content(?:/(?:json_schema|pattern|grammar))?": (?:\w+: )?(.*)', re.DOTALL
)
Whitespace = Literal["fixed", "flexible"]
Reader = Callable[[object, str], ir.Constraint | None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A constraint, and the client's name of the field that it came from."""

    constraint: ir.Constraint
    field: str


def constraint_of(fields: Mapping[str, object]) -> Wanted | None:
    """The one constraint among `fields`; None without one. Null and empty texts ask for nothing; an empty schema asks
    for any JSON. What a pattern or a schema says is left to the compiler's process: a short one can take half a second
    to read, and this is the thread of all streams. Raises `Failure` 400, also for two constraints at once."""
    found: list[Wanted] = []
    for name, read in _SPELLINGS.items():
        value = fields.get(name)
        if value is None or value == "":
            continue
        constraint = read(value, name)
        if constraint is not None:
            found.append(Wanted(constraint, name))
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise bad(f"`{first}` and `{second}` both constrain the output: give one of them", second)
    return found[0] if found else None


def jump_of(fields: Mapping[str, object]) -> ir.Jump:
    """The field `jump`: what becomes of text that a constraint leaves no choice about. Raises `Failure` 400."""
    value = fields.get("jump")
    if value is None:
        return "canonical"
    for jump in _JUMPS:
        if value == jump:
            return jump
    raise bad(f"`jump` must be one of {', '.join(_JUMPS)}", "jump")


def refused(error: ConstraintError, field: str, places: Sequence[str] = ()) -> Failure:
    """400: a constraint that cannot be compiled, under the client's name for it: `field` or, of tools, the one of
    `places` where the wrong one says what it takes."""
    of_tool = _TAG.match(error.message)
    if of_tool is not None and int(of_tool[1]) < len(places):
        place = places[int(of_tool[1])]
        return Failure(400, f"{place}: {of_tool[2]}", code="invalid_constraint", param=place)
    return Failure(400, _WORD.sub(field, error.message, count=1), code="invalid_constraint", param=field)


def concerns(error: ConstraintError) -> bool:
    """Whether an error of the compiler is about a constraint, and not about another argument."""
    return _WORD.match(error.message) is not None


# -- values


def _schema(value: object, field: str, whitespace: Whitespace = "fixed") -> ir.JsonSchema:
    """A schema as an object, or as the JSON text of one."""
    if value == SGLANG_ANY:
        return ir.JsonSchema(ANY_OBJECT, whitespace)
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise bad(f"`{field}` is not the JSON text of a schema: {error}", field, "invalid_constraint") from None
    if not isinstance(value, Mapping):
        raise bad(f"`{field}` must be a JSON schema: an object, or its JSON text", field)
    text = json.dumps(value, ensure_ascii=False)
    _encodable(text, field)
    return ir.JsonSchema(text, whitespace)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise bad(f"`{field}` must be a string", field)
    _encodable(value, field)
    return value


def _encodable(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad(f"`{field}` holds a lone surrogate: it is not text", field) from None


def _regex(value: object, field: str) -> ir.Regex:
    return ir.Regex(_text(value, field))


def _grammar(value: object, field: str) -> ir.Grammar:
    """In EBNF when it has a rule of the kind `name ::= ...`, else in Lark's notation."""
    text = _text(value, field)
    return ir.Grammar(text, "ebnf" if _RULE.search(text) else "lark")


def _ebnf(value: object, field: str) -> ir.Grammar:
    return ir.Grammar(_text(value, field), "ebnf")


def _choice(value: object, field: str) -> ir.Choices:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) and each for each in value):
        raise bad(f"`{field}` must be a list of at least one string, none of them empty", field)
    for n, each in enumerate(value):
        _encodable(each, f"{field}[{n}]")
    return ir.Choices(tuple(dict.fromkeys(value)))


def _any_object(value: object, field: str) -> ir.JsonSchema | None:
    """A flag: true asks for any JSON object."""
    if not isinstance(value, bool):
        raise bad(f"`{field}` must be true or false", field)
    return ir.JsonSchema(ANY_OBJECT) if value else None


def _structure(value: object, field: str) -> ir.Structure:
    """A structural tag as an object, or as its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise bad(f"`{field}` is not the JSON text of a structural tag: {error}", field) from None
    if not isinstance(value, Mapping):
        raise bad(f"`{field}` must be a structural tag: an object, or its JSON text", field)
    text = json.dumps(value, ensure_ascii=False)
    _encodable(text, field)
    return ir.Structure(text)


# -- objects that hold a constraint


def _object(value: object, field: str, known: frozenset[str]) -> Mapping[str, Any]:
    """An object without unknown fields: they might constrain."""
    if not isinstance(value, Mapping):
        raise bad(f"`{field}` must be an object", field)
    for name in value:
        if name not in known:
            text = f"`{field}.{str(name)[:64]}` is not known; fields: {', '.join(sorted(known))}"
            raise Failure(400, text, code="unknown_parameter", param=f"{field}.{str(name)[:64]}")
    return value


_OUTPUTS: Mapping[str, Reader] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _any_object,
    "structural_tag": _structure,
}
_OUTPUT_OPTIONS = ("disable_any_whitespace", "whitespace_pattern", "disable_additional_properties", "disable_fallback")


def _structured_outputs(value: object, field: str) -> ir.Constraint | None:
    """vLLM's: one constraint, and how JSON is written."""
    given = _object(value, field, frozenset((*_OUTPUTS, *_OUTPUT_OPTIONS)))
    for name in ("whitespace_pattern", "disable_additional_properties"):
        if given.get(name):
            why = "JSON is written as json.dumps does" if name == "whitespace_pattern" else "the schema says so itself"
            raise unsupported(f"{field}.{name}", f"`{field}.{name}` is not supported: {why}; leave it out")
    found = {n: read(given[n], f"{field}.{n}") for n, read in _OUTPUTS.items() if given.get(n) not in (None, "")}
    asked = {name: constraint for name, constraint in found.items() if constraint is not None}
    if len(asked) > 1:
        first, second = list(asked)[:2]
        raise bad(f"`{field}.{first}` and `{field}.{second}` both constrain the output: give one of them", field)
    fixed = given.get("disable_any_whitespace")
    if not isinstance(fixed, bool | None):
        raise bad(f"`{field}.disable_any_whitespace` must be true or false", field)
    for constraint in asked.values():
        if isinstance(constraint, ir.JsonSchema) and fixed is False:
            return ir.JsonSchema(constraint.schema, "flexible")
        return constraint
    return None


_FORMATS: Mapping[str, frozenset[str]] = {  # type of a response format → its fields
    "text": frozenset(),
    "json_object": frozenset(("schema",)),
    "json_schema": frozenset(("json_schema",)),
    "structural_tag": frozenset(("format", "structures", "triggers")),
    "regex": frozenset(("regex", "pattern")),
    "grammar": frozenset(("grammar",)),
}
_NAMED = frozenset(("name", "schema", "strict", "description"))


def _response_format(value: object, field: str) -> ir.Constraint | None:
    """OpenAI's, with what other servers add: a schema of a `json_object`, structural tags, `regex` and `grammar`."""
    kind = _kind(value, field, _FORMATS)
    given = _object(value, field, _FORMATS[kind] | {"type"})
    if kind == "json_object":
        schema = given.get("schema")
        return ir.JsonSchema(ANY_OBJECT) if schema is None else _schema(schema, f"{field}.schema")
    if kind == "json_schema":
        inner = f"{field}.json_schema"
        return _named(_object(_required(given, "json_schema", field), inner, _NAMED), inner)
    if kind == "structural_tag":
        return _structure(given, field)
    if kind == "regex":
        name = "pattern" if given.get("pattern") is not None else "regex"
        return _regex(_required(given, name, field), f"{field}.{name}")
    if kind == "grammar":
        return _grammar(_required(given, "grammar", field), f"{field}.grammar")
    return None


def _text_format(value: object, field: str) -> ir.Constraint | None:
    """The `text.format` of responses: a schema stands in it beside its name."""
    kind = _kind(value, field, ("text", "json_object", "json_schema"))
    given = _object(value, field, _NAMED | {"type"} if kind == "json_schema" else frozenset({"type"}))
    if kind == "json_schema":
        return _named(given, field)
    return ir.JsonSchema(ANY_OBJECT) if kind == "json_object" else None


def _output_format(value: object, field: str) -> ir.Constraint | None:
    """Anthropic's: a schema without a name."""
    _kind(value, field, ("json_schema",))
    given = _object(value, field, frozenset(("type", "schema")))
    return _schema(_required(given, "schema", field), f"{field}.schema")


def _ollama_format(value: object, field: str) -> ir.Constraint:
    """Ollama's: "json", or a schema."""
    if value == "json":
        return ir.JsonSchema(ANY_OBJECT)
    if not isinstance(value, Mapping):
        raise bad(f'`{field}` must be "json" or a JSON schema', field)
    return _schema(value, field)


def _kind(value: object, field: str, kinds: Mapping[str, object] | tuple[str, ...]) -> str:
    if not isinstance(value, Mapping):
        raise bad(f"`{field}` must be an object", field)
    kind = _required(value, "type", field)
    if not isinstance(kind, str) or kind not in kinds:
        raise bad(f"`{field}.type` is {str(kind)[:40]!r}: must be one of {', '.join(kinds)}", f"{field}.type")
    return kind


def _named(given: Mapping[str, Any], field: str) -> ir.JsonSchema:
    """A schema with a name, as OpenAI has them: always enforced, `strict` or not."""
    name = _required(given, "name", field)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad(f"`{field}.name` must have 1 to 64 characters out of a-z, A-Z, 0-9, _ and -", f"{field}.name")
    if not isinstance(given.get("strict"), bool | None):
        raise bad(f"`{field}.strict` must be true or false", f"{field}.strict")
    return _schema(_required(given, "schema", field), f"{field}.schema")


def _required(given: Mapping[Any, Any], name: str, field: str) -> object:
    value = given.get(name)
    if value is None:
        place = f"{field}.{name}"
        raise bad(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    return value


_JUMPS: tuple[ir.Jump, ...] = ("canonical", "exact", "off")
_SPELLINGS: Mapping[str, Reader] = {
    "response_format": _response_format,
    "text.format": _text_format,
    "format": _ollama_format,
    "output_format": _output_format,
    "output_config.format": _output_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_json_object": _any_object,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "regex": _regex,
    "json_schema": _schema,
    "ebnf": _ebnf,
    "grammar": _grammar,
    "structural_tag": _structure,
}
NAMES = frozenset(name for name in _SPELLINGS if "." not in name)  # fields that constrain
FIELDS = NAMES | {"jump"}  # all that is read here
