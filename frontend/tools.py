"""Tools: what a program offers a model to call, and the calls that the model makes.

In: functions, classes, schemas in OpenAI's shape. Out: `ir.Tool`s, derived from signatures, annotations and docstrings;
and of a model's reply its content and its calls, with arguments converted as the annotations say.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ramet.frontend import docstrings
from ramet.frontend.constraints import Wanted
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import JUMPS, Calls, Jump, Meta, Tool, ToolCall
from ramet.frontend.toolcalls import parse
from ramet.frontend.types import json_type

MOST_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_MODES = ("auto", "none", "required")


@dataclass(frozen=True)
class Call:
    """A call that the model asks for: the tool's `name`, its `arguments` (converted as the function's annotations say),
    and `text`, the same as the model wrote them, in JSON. `function` is None for a tool that was given as a schema."""

    name: str
    arguments: dict[str, Any]
    text: str
    function: Callable[..., Any] | None = None

    def run(self) -> Any:
        """Call the function here and now (of an async one: the coroutine). `State.run_tools` does it off the body."""
        if self.function is None:
            raise ConstraintError(f"the tool {self.name!r} was declared without a function: nothing can be run")
        return self.function(**self.arguments)


@dataclass(frozen=True)
class ToolReply:
    """An assistant's message: `content` is what it says beside its `calls`; `text` is all of it, as it was written."""

    content: str
    calls: tuple[Call, ...]
    text: str

    def __str__(self) -> str:
        return self.content


@dataclass(frozen=True)
class Offered:
    """A tool, what runs it, and what makes its arguments of JSON text (raises `ValueError`)."""

    tool: Tool
    function: Callable[..., Any] | None
    read: Callable[[str], dict[str, Any]]


def tool_of(fn: Any, where: str = "") -> Tool:
    """The tool that a function (sync or async), a class (pydantic model, dataclass, `TypedDict`), a dict in OpenAI's
    shape or a `Tool` stands for. Raises `ConstraintError` for what cannot be offered."""
    return offered(fn, where).tool


def offered(fn: Any, where: str = "") -> Offered:
    """The tool, with its function and the reader of its arguments."""
    if isinstance(fn, Tool):
        found = Offered(fn, None, _object)
    elif isinstance(fn, Mapping):
        found = Offered(_of_dict(fn, where), None, _object)
    elif isinstance(fn, type):
        found = _of_class(fn, where)
    elif callable(fn):
        found = _of_function(fn, where)
    else:
        raise ConstraintError(
            f"tools: {fn!r} is no tool; give a function, a class, or a schema in OpenAI's shape", where=where
        )
    name = found.tool.name
    if not NAME.fullmatch(name):
        raise ConstraintError(
            f"tools: {name[:80]!r} is no name of a tool: 1 to 64 letters, digits, '_', '-' or '.'", where=where
        )
    return found


def all_offered(tools: Any, where: str) -> tuple[Offered, ...]:
    """Each of `tools`; their names differ. Raises `ConstraintError`."""
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence | set | frozenset):
        raise ConstraintError(f"tools={tools!r}: must be a list of functions", where=where)
    if not 1 <= len(tools) <= MOST_TOOLS:
        raise ConstraintError(f"tools: {len(tools)} are given; give 1 to {MOST_TOOLS}", where=where)
    found = tuple(offered(each, where) for each in tools)
    names = [each.tool.name for each in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConstraintError(f"tools: two are called {twice!r}; names must differ", where=where)
    return found


def wanted_reply(offers: Sequence[Offered], choice: Any, parallel: Any, jump: Any, where: str) -> Wanted:
    """The constraint of a reply that may call `offers`, and the reader that makes a `ToolReply` of its text.

    `choice`: "auto", "none", "required", or the tool that must be called (its name or its function)."""
    names = [each.tool.name for each in offers]
    only = choice if isinstance(choice, str) and choice not in _MODES else ""
    if callable(choice):
        only = next((each.tool.name for each in offers if each.function is choice), "")
    if (only or not isinstance(choice, str)) and only not in names:
        known = ", ".join([*_MODES, *names])
        raise ConstraintError(f"tool_choice={choice!r}: must be one of {known}", where=where)
    if not isinstance(parallel, bool):
        raise ConstraintError(f"parallel_tool_calls={parallel!r}: must be True or False", where=where)
    if jump is not None and jump not in JUMPS:
        raise ConstraintError(f"jump={jump!r}: must be one of {', '.join(JUMPS)}", where=where)
    mode = "required" if only else cast(Literal["auto", "none", "required"], choice)
    calls = Calls(tuple(each.tool for each in offers), mode, only, parallel)
    return Wanted(calls, cast(Jump, jump or "canonical"), read=_reply_reader(offers, mode), name="reply")


def _reply_reader(offers: Sequence[Offered], mode: str) -> Callable[[str, Meta], ToolReply]:
    table = {each.tool.name: each for each in offers}

    def read(text: str, meta: Meta) -> ToolReply:
        content: str | None = text
        made: tuple[ToolCall, ...] = ()
        if mode != "none":
            known = bool(meta.calls) or meta.content is not None
            content, made = (meta.content, meta.calls) if known else parse(text)
        return ToolReply(content or "", tuple(_call(each, table) for each in made), text)

    return read


def _call(made: ToolCall, table: Mapping[str, Offered]) -> Call:
    found = table.get(made.name)
    if found is None:
        raise ValueError(f"it calls {made.name!r}, which is none of {', '.join(table)}")
    arguments = {"input": made.arguments} if made.custom else found.read(made.arguments)
    return Call(made.name, arguments, made.arguments, found.function)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("arguments are an object")
    return value


# --- from what users write ---


def _of_function(fn: Callable[..., Any], where: str) -> Offered:
    function = inspect.unwrap(fn)
    name = str(getattr(fn, "__name__", "") or getattr(getattr(fn, "func", None), "__name__", type(fn).__name__))
    doc = inspect.getdoc(fn)
    fields, defaults = _fields(fn, name, where)
    json_of = _named(name, lambda: json_type(_typed_dict(name, fields), where), where)
    schema = {key: value for key, value in json_of.schema.items() if key not in ("title", "description")}
    said = {**_annotated(function), **docstrings.parameters(doc)}
    properties = {key: dict(value) for key, value in schema.get("properties", {}).items()}
    for key, found in properties.items():
        found.pop("title", None)
        if key in said:
            found["description"] = said[key]
        if isinstance(defaults.get(key), str | int | float):
            found["default"] = defaults[key]
    parameters = {"type": "object", **schema, "properties": properties}
    tool = Tool(name, docstrings.summary(doc), _json(parameters, name, where))
    return Offered(tool, fn, json_of.read)


def _fields(fn: Callable[..., Any], name: str, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The types of a function's parameters (those with a default need not be given), and the defaults."""
    try:
        parameters = inspect.signature(fn).parameters.values()
        hints = _hints(fn)
    except NameError as error:
        message = f"tools: {name}: the annotation {error.name!r} is not known in its module; define that type there"
        raise ConstraintError(message, where=where) from None
    except (ValueError, TypeError) as error:
        raise ConstraintError(f"tools: {name} has no signature to read ({error})", where=where) from None
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in _VARIADIC or parameter.kind == inspect.Parameter.POSITIONAL_ONLY:
            raise ConstraintError(
                f"tools: {name}: the parameter {str(parameter).partition(':')[0]!r} cannot be given by name; the "
                "arguments of a call are named",
                where=where,
            )
        type_ = hints.get(parameter.name, Any)
        fields[parameter.name] = type_ if parameter.default is parameter.empty else typing.NotRequired[type_]
    return fields, {each.name: each.default for each in parameters if each.default is not each.empty}


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    found = inspect.unwrap(fn)
    found = getattr(found, "func", found)  # functools.partial
    if not inspect.isroutine(found):
        found = type(found).__call__  # an object that can be called
    return typing.get_type_hints(found, include_extras=True)


def _annotated(fn: Callable[..., Any]) -> dict[str, str]:
    """What `Annotated[int, "what it is"]` says of parameters."""
    found: dict[str, str] = {}
    for name, hint in _hints(fn).items():
        said = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, str)]
        if said:
            found[name] = said[0]
    return found


def _typed_dict(name: str, fields: dict[str, Any]) -> Any:
    """A `TypedDict` of these fields. Pydantic, where a field is its own, reads only those of typing_extensions on
    Python 3.11."""
    try:
        from typing_extensions import TypedDict
    except ImportError:
        from typing import TypedDict
    make: Any = TypedDict
    return make(name, fields)


def _of_class(type_: type, where: str) -> Offered:
    json_of = _named(type_.__name__, lambda: json_type(type_, where), where)
    schema = dict(json_of.schema)
    if schema.get("type") != "object":
        raise ConstraintError(f"tools: {type_.__name__} is no record: its values are no JSON objects", where=where)
    own = inspect.cleandoc(type_.__doc__ or "")
    own = "" if own.startswith(f"{type_.__name__}(") else own  # dataclasses and named tuples write their signature
    description = docstrings.summary(str(schema.pop("description", "") or own))
    schema.pop("title", None)
    return Offered(
        Tool(type_.__name__, description, _json(schema, type_.__name__, where)),
        type_,
        lambda text: _attributes(json_of.read(text)),
    )


def _attributes(value: Any) -> dict[str, Any]:
    """The fields of an instance, by name."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    as_dict = getattr(value, "_asdict", None)
    return dict(as_dict() if as_dict is not None else value)


def _of_dict(tool: Mapping[Any, Any], where: str) -> Tool:
    inner = tool.get("function") if tool.get("type") == "function" and "function" in tool else tool
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ConstraintError(
            "tools: a dict must be in OpenAI's shape: {'type': 'function', 'function': {'name', 'description', "
            "'parameters'}}",
            where=where,
        )
    name, schema = inner["name"], inner.get("parameters", inner.get("input_schema"))
    description = inner.get("description") or ""
    if not isinstance(description, str) or not isinstance(schema, Mapping | None):
        raise ConstraintError(f"tools: {name}: the description is a str, the parameters are a dict", where=where)
    if schema is None:
        return Tool(name, description)
    if schema.get("type", "object") != "object":
        raise ConstraintError(f"tools: {name}: the parameters must be of type object", where=where)
    return Tool(name, description, _json({"type": "object", **schema}, name, where))


def _json(schema: dict[str, Any], name: str, where: str) -> str:
    """A schema's text, when it is valid."""
    from ramet.frontend.schemas import check

    _named(name, lambda: check(schema), where)
    return json.dumps(schema, ensure_ascii=False)


def _named(name: str, make: Callable[[], Any], where: str) -> Any:
    """What `make` returns; its `ConstraintError` says of which tool it is."""
    try:
        return make()
    except ConstraintError as error:
        raise ConstraintError(f"tools: {name}: {error.message}", where=where) from None
