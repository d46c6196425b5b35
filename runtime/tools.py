"""How one model is told of tools and writes its calls.

In: the source of its chat template, tools, what may be called. Out: the notation of its calls, the structure that its
text is held to, the text that tells it of tools, and its calls read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.frontend.toolcalls import (
    HERMES,
    LLAMA,
    LONGEST_NAME,
    MISTRAL,
    NEMOTRON,
    CallReader,
    Notation,
    message_text,
    parse,
)

ANY_TEXT = r"[\s\S]*"  # the pattern of a custom tool that takes any text
# keywords under which a narrower part of a schema may allow more, or nothing at all
_UNSURE = frozenset(
    (
        *("not", "oneOf", "if", "allOf", "$dynamicRef", "unevaluatedProperties", "unevaluatedItems", "contains"),
        *("patternProperties", "propertyNames", "minProperties", "dependentSchemas", "dependentRequired"),
    )
)
_NAMING = frozenset(("properties", "anyOf", "$ref"))  # side by side, each would forbid what the other names


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls. `native`: its own template tells it so; otherwise `preamble` has to.

    Calls are written in plain text alone: where a template writes a special token first (Mistral's [TOOL_CALLS],
    Llama's <|python_tag|>), it is left out, for special tokens are never generated under a constraint nor read from
    text. Tools that take text are written in the hermes notation, whatever the model's own is.
    """

    notation: Notation = HERMES
    native: bool = False

    def structure(self, calls: ir.Calls) -> ir.Structure | None:
        """What the model's text is held to, as a structural tag (XGrammar's format); None when it is free (choice
        "none"). Arguments are held to each tool's schema always. After the first call only further calls may come, with
        "auto" any text may stand before it. Raises `ConstraintError` for tools that cannot be called."""
        if calls.choice == "none":
            return None
        check_tools(calls.tools)
        tools = [tool for tool in calls.tools if calls.only in ("", tool.name)]
        if not tools:
            known = ", ".join(tool.name for tool in calls.tools) or "none"
            raise ConstraintError(f"tools: there is no tool {calls.only!r} to be called; known: {known}")
        notation = self._notation_for(tools)
        several = {
            "type": "tags_with_separator",
            "tags": [_tag(tool, notation) for tool in tools],
            "separator": notation.separator,
            "at_least_one": True,
            "stop_after_first": not calls.parallel,
        }
        if calls.choice == "required":
            parts = [_const(notation.begin), several, *([_const(notation.last)] if notation.last else [])]
            return _structure({"type": "sequence", "elements": parts})
        tag = {"type": "tag", "begin": notation.begin, "content": several, "end": notation.last}
        triggered = {"type": "triggered_tags", "triggers": [notation.trigger], "tags": [tag]}
        return _structure({**triggered, "at_least_one": False, "stop_after_first": True})

    def told_by_template(self, tools: Sequence[ir.Tool]) -> bool:
        """Whether the model's template can tell of these tools (it knows none that take text)."""
        return self.native and all(tool.input is None for tool in tools)

    def preamble(self, tools: Sequence[ir.Tool]) -> str:
        """The text of a system message that tells of `tools` and of how to call them."""
        notation = self._notation_for(tools)
        lines = [json.dumps(described(tool), ensure_ascii=False) for tool in tools]
        call = f"NAME{notation.between}ARGUMENTS"
        again = f"write\n{notation.begin}{call}{notation.next}{call}{notation.end}"
        text = "\n".join(
            (
                "You can call tools. Each line between <tools> and </tools> describes one of them.\n<tools>",
                *lines,
                f"</tools>\nTo call one, write\n{notation.begin}{call}{notation.end}",
                "with its name and, for ARGUMENTS, a JSON object that is valid under its parameters. To make several "
                f"calls, {'write several of these' if notation is HERMES else again}.",
                "The results come in the next message. Answer in plain text when no tool is needed.",
            )
        )
        if any(tool.input is not None for tool in tools):
            text += (
                f"\nTo call a tool that takes text, write\n{notation.begin}NAME{notation.text}TEXT\n{notation.end}\n"
                "with the text as it is, not as JSON."
            )
        return text

    def message_text(self, content: str | None, calls: Sequence[ir.ToolCall]) -> str:
        """An assistant's message of the history, with the calls that it made. Raises `ConstraintError`."""
        custom = any(call.custom for call in calls)
        return message_text(content, calls, HERMES if custom else self.notation)

    def call_text(self, calls: Sequence[ir.ToolCall]) -> str:
        """The calls alone, as the model would have written them. Raises `ConstraintError`."""
        return self.message_text(None, calls)

    def parse(self, text: str, tools: Sequence[ir.Tool] = ()) -> tuple[str | None, tuple[ir.ToolCall, ...]]:
        """The content and the calls of a whole text that was held to `structure` of these tools."""
        return parse(text, self._notation_for(tools))

    def reader(self, tools: Sequence[ir.Tool] = ()) -> CallReader:
        """`parse` for a text that comes in pieces."""
        return CallReader(self._notation_for(tools))

    def _notation_for(self, tools: Sequence[ir.Tool]) -> Notation:
        return self.notation if all(tool.input is None for tool in tools) else HERMES


_BARE_LIST = re.compile(r"""(?:^|[\s"'`])\[\{\\?"name\\?": ?\\?"[^\]]*\\?"arguments\\?\"""")  # no tag in front of it
_NAME_FIRST = re.compile(r"""\[TOOL_CALLS\]['"]\s*[+~][^}]*\bname\b""")


def format_of(source: str | None) -> ToolFormat:
    """The format of a chat template, by its source. A template without tools, or with a notation that is none of
    Hermes' (Qwen's), Llama 3's JSON, Mistral's list of calls (xLAM writes it too) and Nemotron's, gets the hermes
    notation and our own preamble: Python-like calls, XML for each parameter, and what is made of special tokens."""
    if source is None or "tools" not in source:
        return ToolFormat()
    if "[TOOL_CALLS]" in source:  # since its version 11 a name and [ARGS], a special token, instead of a list
        named = "[ARGS]" in source or _NAME_FIRST.search(source)
        return ToolFormat() if named else ToolFormat(MISTRAL, native=True)
    if "<TOOLCALL>[" in source and "arguments" in source:
        return ToolFormat(NEMOTRON, native=True)
    # Qwen3-Coder and GLM write XML for each parameter between the same tags.
    if "<tool_call>" in source and "arguments" in source and "<function=" not in source and "<arg_key>" not in source:
        return ToolFormat(HERMES, native=True)
    if re.search(r'\{\\?"name\\?":', source) and re.search(r'\\?"parameters\\?":', source) and "ipython" in source:
        return ToolFormat(LLAMA, native=True)
    return ToolFormat(MISTRAL, native=True) if _BARE_LIST.search(source) else ToolFormat()


def described(tool: ir.Tool) -> dict[str, Any]:
    """A tool as OpenAI's API and chat templates describe it."""
    about: dict[str, Any] = {"name": tool.name, "description": tool.description}
    match tool.input:
        case None:
            return {"type": "function", "function": {**about, "parameters": arguments_schema(tool)}}
        case ir.Regex(pattern=pattern) if pattern != ANY_TEXT:
            about["input"] = {"regular_expression": pattern}
        case ir.Grammar(text=text, syntax=syntax):
            about["input"] = {"grammar": text, "syntax": syntax}
    return {"type": "custom", "custom": about}


def arguments_schema(tool: ir.Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, of type object. One that speaks of no properties stands for no arguments (as a
    schema it would let any be made up). Raises `ConstraintError`."""
    try:
        schema = json.loads(tool.parameters)
    except (ValueError, RecursionError):
        raise ConstraintError(f"tools: the parameters of {tool.name!r} are no JSON") from None
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise ConstraintError(f'tools: the parameters of {tool.name!r} must be a schema of "type": "object"')
    known = {"type": "object", **schema}
    if not known.get("properties") and not known.keys() - {"type", "properties", "required", "title", "description"}:
        known["additionalProperties"] = False
    return known


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of arguments whose objects have no other properties than those that it names, where it leaves that open:
    what a model would make up no tool knows. Every text that it allows, the schema allows. One in which a narrower part
    might allow more, or nothing at all, stays as it is."""
    return schema if _unsure(schema) else _close(schema)


def _unsure(value: Any) -> bool:
    if isinstance(value, dict):
        joined = len(_NAMING.intersection(value)) > 1
        return joined or not _UNSURE.isdisjoint(value) or any(map(_unsure, value.values()))
    return isinstance(value, list) and any(map(_unsure, value))


def _close(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    made = dict(value)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(value.get(key), dict):
            made[key] = {name: _close(each) for name, each in value[key].items()}
    for key in ("anyOf", "prefixItems"):
        if isinstance(value.get(key), list):
            made[key] = [_close(each) for each in value[key]]
    for key in ("items", "additionalProperties"):
        if key in value:
            made[key] = _close(value[key])
    properties, needed = value.get("properties"), value.get("required", [])
    if isinstance(properties, dict) and isinstance(needed, list) and properties.keys() >= set(map(str, needed)):
        made.setdefault("additionalProperties", False)
    return made


def check_tools(tools: Sequence[ir.Tool]) -> None:
    """Raise `ConstraintError` unless there are tools, of distinct names that can be written in a call."""
    if not tools:
        raise ConstraintError("tools: give at least one")
    seen: set[str] = set()
    for tool in tools:
        odd = any(c in '"\\' or ord(c) < 32 for c in tool.name)
        if odd or not 1 <= len(tool.name) <= LONGEST_NAME:
            raise ConstraintError(
                f"tools: {tool.name[:80]!r} is no name of a tool: 1 to {LONGEST_NAME} characters, no quotes"
            )
        if tool.name in seen:
            raise ConstraintError(f"tools: two are called {tool.name!r}; names must differ")
        seen.add(tool.name)


def _tag(tool: ir.Tool, notation: Notation) -> dict[str, Any]:
    """One tool's call, from its name to its end."""
    if tool.input is None:
        content: dict[str, Any] = {"type": "json_schema", "json_schema": closed(arguments_schema(tool))}
        return {"type": "tag", "begin": tool.name + notation.between, "content": content, "end": notation.close}
    begin, end = tool.name + notation.text, "\n" + notation.close
    if tool.input == ir.Regex(ANY_TEXT):
        content = {"type": "any_text"}
    elif isinstance(tool.input, ir.Regex):
        content = {"type": "regex", "pattern": tool.input.pattern}
    else:
        content = {"type": "grammar", "grammar": tool.input.text, "syntax": tool.input.syntax}
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def _structure(spec: dict[str, Any]) -> ir.Structure:
    return ir.Structure(json.dumps({"type": "structural_tag", "format": spec}, ensure_ascii=False))
