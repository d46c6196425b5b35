"""Constraints at backends that are not an engine: how servers elsewhere spell them, and whether an answer keeps one.

In: a constraint of a Gen. Out: fields of a request, refusals of what a server cannot be held to, what is wrong with a
text.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import Calls, Choices, Constraint, Gen, Grammar, JsonSchema, Meta, Regex, Structure
from ramet.frontend.scalars import no_number

Kind = Literal["ramet", "sglang", ""]  # whose server it is; "": another, which is taken to speak as vLLM's does
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def kind_of(info: object) -> Kind:
    """Whose server says this of itself at /server_info."""
    if not isinstance(info, dict):
        return ""
    return "ramet" if info.get("server") == "ramet" else "sglang" if "model_path" in info else ""


def named(constraint: Constraint) -> str:
    """How a constraint reads in messages: the argument that asked for it."""
    match constraint:
        case Regex(pattern):
            return f"regex={pattern}"
        case JsonSchema(schema):
            return f"json_schema={schema if len(schema) <= 80 else schema[:77] + '...'}"
        case Choices(choices):
            return f"choices={list(choices)!r}"
        case Grammar():
            return "grammar"
        case Structure():
            return "structure"
    return "tools"


def of_objects(constraint: JsonSchema) -> bool:
    """Whether the schema says that its values are objects."""
    schema = json.loads(constraint.schema)
    return isinstance(schema, dict) and schema.get("type") == "object"


def refuse_promises(op: Gen) -> None:
    """Raise `ConstraintError` for what no other server is asked to promise: tools, and how forced text is made."""
    if isinstance(op.constraint, Calls):
        raise ConstraintError("tools: this server is not known to hold to them; use ramet.Engine or a ramet server")
    if op.constraint is not None and op.jump != "canonical":
        raise ConstraintError(f"jump={op.jump!r}: this server does not promise it; use ramet.Engine or a ramet server")


def refuse_lark(constraint: Constraint | None) -> None:
    """Raise `ConstraintError` for grammars that SGLang does not read."""
    if isinstance(constraint, Grammar) and constraint.syntax != "ebnf":
        raise ConstraintError("grammar: this server takes EBNF (root ::= ...), and no Lark grammars")


def alternatives(choices: tuple[str, ...]) -> str:
    """The regular expression of several strings. Only what has a meaning in every dialect is escaped."""
    return "(?:" + "|".join(_SPECIAL.sub(r"\\\g<0>", choice) for choice in choices) + ")"


def sglang_fields(constraint: Constraint | None) -> dict[str, Any]:
    """Among the sampling parameters of SGLang's `/generate`."""
    match constraint:
        case Regex(pattern):
            return {"regex": pattern}
        case Choices(choices):
            return {"regex": alternatives(choices)}
        case JsonSchema(schema):
            return {"json_schema": schema}
        case Grammar(text):
            return {"ebnf": text}
        case Structure(spec):
            return {"structural_tag": spec}
    return {}


def chat_fields(constraint: Constraint | None, kind: Kind) -> dict[str, Any]:
    """In a request for a chat completion. A schema and a structure are OpenAI's `response_format` everywhere."""
    match constraint:
        case JsonSchema(schema):
            wrapped = {"name": "value", "schema": json.loads(schema), "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": wrapped}}
        case Structure(spec):
            return {"response_format": json.loads(spec)}
        case Regex() | Choices() | Grammar() if kind == "sglang":
            return sglang_fields(constraint)
        case Regex(pattern):
            return {"structured_outputs": {"regex": pattern}}
        case Choices(choices):
            return {"structured_outputs": {"choice": list(choices)}}
        case Grammar(text):
            return {"structured_outputs": {"grammar": text}}
    return {}


def broken(constraint: Constraint | None, text: str, meta: Meta, *, patterns: bool) -> str:
    """Why a text is not what the constraint asks for, as far as that is cheap to tell; "" where nothing is wrong or
    it was cut short. `patterns`: regular expressions are tried too, which takes long where text and pattern are made
    for it."""
    if constraint is None or meta.finish_reason != "stop" or meta.matched is not None:
        return ""
    match constraint:
        case Choices(choices) if text not in choices:
            return f"is none of {named(constraint)}"
        case Regex(pattern) if patterns and not re.fullmatch(pattern, text):
            return f"does not match {named(constraint)}"
        case JsonSchema():
            try:
                json.loads(text, parse_constant=no_number)
            except (ValueError, RecursionError) as error:
                return f"is no JSON, as {named(constraint)} asks for: {error}"
    return ""
