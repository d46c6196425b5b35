"""What a request says of tools, in the words of each protocol, as `ir.Tool`s and what may be called.

In: `tools`, `tool_choice`, `parallel_tool_calls`, `functions` and their likes, as JSON values. Out: an `Offer`; a
`Failure` 400 that names the field for what cannot be offered. Schemas bind whether a client calls them strict or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.server.constraints import Wanted
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.reasoning import Begin, constrained_answer, format_of
from ramet.runtime.tools import ANY_TEXT as ANY_PATTERN
from ramet.runtime.tools import ToolFormat

MAX_TOOLS = 128
MAX_NAME, MAX_ANTHROPIC_NAME = 64, 128  # characters
MAX_SPEC = 64_000  # bytes of one schema or grammar (R4)
MAX_DESCRIPTION = 1 << 16  # characters
NAME = re.compile(r"[A-Za-z0-9_-]+")
ANY_TEXT = ir.Regex(ANY_PATTERN)
Fields = Mapping[str, object]
Tools = tuple[tuple[ir.Tool, str], ...]  # each with the place in the request that says what it takes
Reader = Callable[[object, str], tuple[ir.Tool, str]]  # of a tool, at its place in the request
Choice = Literal["auto", "none", "required"]


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that the model is told of, and the calls that it may make. `legacy`: the request spoke of functions,
    and its answer does too. `places` are those in the request that say what each tool takes."""

    tools: tuple[ir.Tool, ...] = ()
    calls: ir.Calls | None = None
    legacy: bool = False
    places: tuple[str, ...] = ()

    @property
    def custom(self) -> frozenset[str]:
        """Names of the tools whose input is text instead of arguments."""
        return frozenset(tool.name for tool in self.tools if tool.input is not None)

    @property
    def callable(self) -> bool:
        """Whether a call may be made."""
        return self.calls is not None and self.calls.choice != "none"

    @property
    def called(self) -> tuple[str, ...]:
        """The places of the tools that a call can be of, in the order of their tags in a structure."""
        if self.calls is None:
            return ()
        named = dict(zip((tool.name for tool in self.tools), self.places, strict=True))
        return tuple(named[tool.name] for tool in self.calls.tools if self.calls.only in ("", tool.name))

    @property
    def required(self) -> bool:
        """Whether a call must be made, and nothing else can come."""
        return self.calls is not None and self.calls.choice == "required"


NOTHING = Offer()


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A tool choice: its mode, the one tool that must be called or "", the only ones that may be or None for all."""

    mode: Choice = "auto"
    only: str = ""
    allowed: tuple[str, ...] | None = None


def bound(
    offer: Offer, wanted: Wanted | None, format: ToolFormat, begin: Begin = "outside"
) -> tuple[ir.Constraint | None, str]:
    """What holds the whole text of an answer that begins at `begin`, and the field that asked for it. Where a call is
    possible and `wanted` says what an answer without one must be, the text is either. Raises `Failure` 400."""
    calls = offer.calls if offer.callable else None
    try:
        if calls is None:
            return (None, "") if wanted is None else (constrained_answer(wanted.constraint, begin), wanted.field)
        if wanted is None or offer.required:
            if begin == "outside":
                return calls, "tools"
            structure = format.structure(calls)
            return None if structure is None else constrained_answer(structure, begin), "tools"
        called = format.structure(msgspec.structs.replace(calls, choice="required"))
        assert called is not None, "a call that is required has a structure"
        either = {"type": "or", "elements": [format_of(wanted.constraint), format_of(called)]}
        spec = msgspec.json.encode({"type": "structural_tag", "format": either}).decode()
        return constrained_answer(ir.Structure(spec), begin), wanted.field
    except ConstraintError as error:
        raise bad(error.message, "tools", "invalid_constraint") from None


# -- requests


def chat_offer(fields: Fields) -> Offer:
    """What a chat completion offers: `tools` with `tool_choice` and `parallel_tool_calls`, or the older `functions`
    with `function_call`. Raises `Failure` 400."""
    if fields.get("functions"):
        return _functions(fields)
    if fields.get("function_call") not in (None, "none", "auto"):
        raise bad("`function_call` is only allowed when `functions` are given", "function_call")
    tools = _list_of(fields.get("tools"), "tools", _chat_tool)
    chosen = _openai_choice(fields.get("tool_choice"), nested=True)
    return _offer(tools, chosen, _flag(fields, "parallel_tool_calls", True))


def response_offer(fields: Fields) -> Offer:
    """What a response offers: the same, with flat tools. Raises `Failure` 400."""
    tools = _list_of(fields.get("tools"), "tools", _response_tool)
    chosen = _openai_choice(fields.get("tool_choice"), nested=False)
    return _offer(tools, chosen, _flag(fields, "parallel_tool_calls", True))


def anthropic_offer(fields: Fields) -> Offer:
    """What a message of Anthropic's offers: `tools` with an `input_schema`, and `tool_choice`. Raises `Failure` 400."""
    tools = _list_of(fields.get("tools"), "tools", _anthropic_tool)
    value = fields.get("tool_choice")
    if value is None:
        return _offer(tools, _Chosen(), True)
    choice = _object(value, "tool_choice")
    kind = _text(choice, "type", "tool_choice")
    modes: Mapping[str, Choice] = {"auto": "auto", "any": "required", "none": "none", "tool": "required"}
    if kind not in modes:
        raise bad(f"`tool_choice.type`={kind[:40]!r}: must be one of {', '.join(modes)}", "tool_choice.type")
    only = _text(choice, "name", "tool_choice") if kind == "tool" else ""
    parallel = not _flag(choice, "disable_parallel_tool_use", False, "tool_choice.")
    return _offer(tools, _Chosen(modes[kind], only), parallel)


def ollama_offer(fields: Fields) -> Offer:
    """What a chat of Ollama's offers: `tools`, which may be called. Raises `Failure` 400."""
    return _offer(_list_of(fields.get("tools"), "tools", _chat_tool), _Chosen(), True)


def _functions(fields: Fields) -> Offer:
    if fields.get("tools"):
        raise bad("`functions` and `tools` exclude each other; `functions` is the older name", "functions")
    tools = _list_of(fields.get("functions"), "functions", lambda value, at: _function(value, at, "parameters"))
    value = fields.get("function_call")
    chosen = _Chosen()
    if isinstance(value, Mapping):
        chosen = _Chosen("required", _text(value, "name", "function_call"))
    elif value == "none":
        chosen = _Chosen("none")
    elif value not in (None, "auto"):
        raise bad('`function_call` must be "none", "auto" or {"name": ...}', "function_call")
    return replace(_offer(tools, chosen, False, "function_call"), legacy=True)


def _offer(given: Tools, chosen: _Chosen, parallel: bool, field: str = "tool_choice") -> Offer:
    """Tools and a choice among them."""
    tools = tuple(tool for tool, _ in given)
    if not tools:
        if chosen.mode == "required" or chosen.allowed is not None:
            raise bad(f"`{field}` asks for a call, and no tools are given", field)
        return NOTHING
    known = {tool.name for tool in tools}
    for name in (*(chosen.allowed or ()), *([chosen.only] if chosen.only else ())):
        if name not in known:
            raise bad(f"`{field}`: there is no tool {name[:MAX_NAME]!r} in this request", field)
    usable = tuple(tool for tool in tools if chosen.allowed is None or tool.name in chosen.allowed)
    mode: Choice = chosen.mode if usable else "none"
    single = bool(chosen.only) or not parallel
    calls = ir.Calls(tools=usable, choice=mode, only=chosen.only, parallel=not single)
    return Offer(tools, calls, places=tuple(place for _, place in given))


# -- tools


def _list_of(value: object, at: str, read: Reader) -> Tools:
    """The tools of a list, each by `read`. Names are distinct."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise bad(f"`{at}` must be a list of tools", at)
    if len(value) > MAX_TOOLS:
        raise bad(f"`{at}` has {len(value)} tools; at most {MAX_TOOLS}", at)
    tools = tuple(read(each, f"{at}[{n}]") for n, each in enumerate(value))
    seen: set[str] = set()
    for n, (tool, _) in enumerate(tools):
        if tool.name in seen:
            raise bad(f"`{at}[{n}]`: there is a tool {tool.name!r} already; names must differ", f"{at}[{n}]")
        seen.add(tool.name)
    return tools


def _chat_tool(value: object, at: str) -> tuple[ir.Tool, str]:
    """`{"type": "function", "function": {...}}` or `{"type": "custom", "custom": {...}}`."""
    tool = _object(value, at)
    kind = tool.get("type", "function")
    if kind == "function":
        return _function(tool.get("function"), f"{at}.function", "parameters")
    if kind == "custom":
        inner = _object(tool.get("custom"), f"{at}.custom")
        wanted = inner.get("format")
        if isinstance(wanted, Mapping) and wanted.get("type") == "grammar":
            grammar = _object(wanted.get("grammar"), f"{at}.custom.format.grammar")
            return _custom(inner, grammar, f"{at}.custom", f"{at}.custom.format.grammar")
        return _custom(inner, wanted, f"{at}.custom", f"{at}.custom.format")
    raise _unknown(kind, at)


def _response_tool(value: object, at: str) -> tuple[ir.Tool, str]:
    """`{"type": "function", "name": ...}` or `{"type": "custom", "name": ...}`."""
    tool = _object(value, at)
    kind = tool.get("type")
    if kind == "function":
        return _function(tool, at, "parameters")
    if kind == "custom":
        return _custom(tool, tool.get("format"), at, f"{at}.format")
    raise _unknown(kind, at)


def _anthropic_tool(value: object, at: str) -> tuple[ir.Tool, str]:
    """`{"name", "description", "input_schema"}`."""
    tool = _object(value, at)
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise _unknown(kind, at)
    if "input_schema" not in tool:
        raise bad(f"`{at}.input_schema` is required", f"{at}.input_schema")
    return _function(tool, at, "input_schema", longest=MAX_ANTHROPIC_NAME)


def _unknown(kind: object, at: str) -> Failure:
    if not isinstance(kind, str):
        return bad(f"`{at}.type` is required, a string", f"{at}.type")
    return unsupported(
        f"{at}.type", f"`{at}.type`={kind[:40]!r} is not supported: tools are run by the client; use a function"
    )


def _function(value: object, at: str, schema: str, *, longest: int = MAX_NAME) -> tuple[ir.Tool, str]:
    """A function: its name, its description, and under `schema` what its arguments are."""
    function = _object(value, at)
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise bad(f"`{at}.strict` must be true or false", f"{at}.strict")
    name, description = _name(function, at, longest), _description(function, at)
    parameters = _parameters(function.get(schema), f"{at}.{schema}")
    tool = ir.Tool(name, description) if parameters is None else ir.Tool(name, description, parameters)
    return tool, f"{at}.{schema}"


def _parameters(value: object, at: str) -> str | None:
    """The JSON text of a schema of an object; None where there is none."""
    if value is None:
        return None
    schema = dict(_object(value, at))
    kind = schema.setdefault("type", "object")
    if kind != "object":
        raise bad(f"`{at}.type`={str(kind)[:40]!r}: arguments are an object", f"{at}.type")
    text = msgspec.json.encode(schema)
    _fits(len(text), at)
    return text.decode()


def _custom(tool: Fields, wanted: object, at: str, place: str) -> tuple[ir.Tool, str]:
    """A tool that takes text: any, or (`wanted`) what a regular expression or a grammar accepts."""
    made = ir.Tool(name=_name(tool, at, MAX_NAME), description=_description(tool, at), input=_input(wanted, place))
    return made, f"{place}.definition"


def _input(wanted: object, at: str) -> ir.Regex | ir.Grammar:
    if wanted is None:
        return ANY_TEXT
    given = _object(wanted, at)
    if given.get("type") == "text":
        return ANY_TEXT
    syntax = given.get("syntax")
    if syntax not in ("lark", "regex"):
        raise bad(f'`{at}` must be of type "text", or have a syntax, "lark" or "regex"', at)
    definition = _text(given, "definition", at)
    _fits(len(definition.encode("utf-8", "surrogatepass")), f"{at}.definition")
    return ir.Grammar(definition) if syntax == "lark" else ir.Regex(definition)


def _fits(size: int, at: str) -> None:
    if size > MAX_SPEC:
        raise bad(f"`{at}` has {size} bytes; at most {MAX_SPEC}", at)


# -- choices


def _openai_choice(value: object, *, nested: bool) -> _Chosen:
    """OpenAI's `tool_choice`; `nested` as chat completions write it, with an object under the name of its type."""
    if value is None:
        return _Chosen()
    if isinstance(value, str):
        if value == "auto":
            return _Chosen("auto")
        if value == "none":
            return _Chosen("none")
        if value == "required":
            return _Chosen("required")
        text = f'`tool_choice`={value[:40]!r}: must be "none", "auto", "required" or name a tool'
        raise bad(text, "tool_choice")
    choice = _object(value, "tool_choice")
    kind = _text(choice, "type", "tool_choice")
    if kind in ("function", "custom"):
        return _Chosen("required", _chosen_name(choice, kind, "tool_choice", nested=nested))
    if kind == "allowed_tools":
        return _allowed(choice, nested=nested)
    raise unsupported("tool_choice.type", f"`tool_choice.type`={kind[:40]!r} is not supported: name a function")


def _allowed(choice: Fields, *, nested: bool) -> _Chosen:
    at = "tool_choice.allowed_tools" if nested else "tool_choice"
    inner = _object(choice.get("allowed_tools"), at) if nested else choice
    mode = inner.get("mode", "auto")
    if mode != "auto" and mode != "required":
        raise bad(f'`{at}.mode` must be "auto" or "required"', f"{at}.mode")
    named = inner.get("tools")
    if not isinstance(named, Sequence) or isinstance(named, str) or len(named) > MAX_TOOLS:
        raise bad(f"`{at}.tools` must be a list of at most {MAX_TOOLS} tools", f"{at}.tools")
    if mode == "required" and not named:
        raise bad(f"`{at}.tools` is empty, and a call is required", f"{at}.tools")
    names = []
    for n, each in enumerate(named):
        tool = _object(each, f"{at}.tools[{n}]")
        kind = tool.get("type", "function")
        if kind not in ("function", "custom"):
            raise _unknown(kind, f"{at}.tools[{n}]")
        names.append(_chosen_name(tool, str(kind), f"{at}.tools[{n}]", nested=nested))
    return _Chosen("required" if mode == "required" else "auto", allowed=tuple(dict.fromkeys(names)))


def _chosen_name(value: Fields, kind: str, at: str, *, nested: bool) -> str:
    if nested and kind in value:  # the flat form is read as well: some clients send it everywhere
        return _text(_object(value[kind], f"{at}.{kind}"), "name", f"{at}.{kind}")
    return _text(value, "name", at)


# -- fields


def _object(value: object, at: str) -> Fields:
    if not isinstance(value, Mapping):
        raise bad(f"`{at}` is required, an object" if value is None else f"`{at}` must be an object", at)
    return value


def _text(value: Fields, name: str, at: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise bad(f"`{at}.{name}` is required, a string", f"{at}.{name}")
    return text


def _flag(fields: Fields, name: str, default: bool, at: str = "") -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad(f"`{at}{name}` must be true or false", f"{at}{name}")
    return value


def _name(tool: Fields, at: str, longest: int) -> str:
    name = _text(tool, "name", at)
    if len(name) > longest or not NAME.fullmatch(name):
        most = f"1 to {longest} of a-z, A-Z, 0-9, _ and -"
        raise bad(f"`{at}.name`={name[:80]!r}: a name has {most}", f"{at}.name")
    return name


def _description(tool: Fields, at: str) -> str:
    text = tool.get("description")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise bad(f"`{at}.description` must be a string", f"{at}.description")
    if len(text) > MAX_DESCRIPTION:
        raise bad(f"`{at}.description` has more than {MAX_DESCRIPTION} characters", f"{at}.description")
    return text
