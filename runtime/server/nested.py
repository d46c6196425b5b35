"""Fields inside the values of a body, and those among them that nobody knows.

In: values of JSON, or objects of a body. Out: the place of each field that is not known, with the names that are. What
is known is what the vendors' own clients send; of that some has no effect here, and none of it constrains.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Known:
    """What an object may have: `fields` (an object of a body has its own as well), and `inside` some of them again what
    is told there. `open`: others are spoken of elsewhere. Of a list it is said of each item."""

    fields: frozenset[str]
    inside: Mapping[str, Known]
    open: bool = False


class Stranger(NamedTuple):
    """A field that is not known: its place in the request, its name, and the names that are known there."""

    place: str
    name: str
    known: frozenset[str]


def known(*fields: str, open: bool = False, **inside: Known) -> Known:
    """A `Known` of fields that are not looked into, and of those that are."""
    return Known(frozenset((*fields, *inside)), inside, open)


def strangers(value: object, here: Known, at: str) -> Iterator[Stranger]:
    """The fields in a value at the place `at` that are not known. Null and empty ones ask for nothing."""
    if isinstance(value, list):
        for n, each in enumerate(value):
            yield from strangers(each, here, f"{at}[{n}]")
        return
    own: Collection[str] = ()
    given = value
    if isinstance(value, BaseModel):
        own, given = type(value).model_fields, value.model_extra or {}
    if not isinstance(given, Mapping):
        return
    for name, inner in here.inside.items():
        yield from strangers(getattr(value, name, None) if own else given.get(name), inner, f"{at}.{name}")
    for name, each in () if here.open else given.items():
        if name not in here.fields and each not in (None, [], {}, ""):
            yield Stranger(f"{at}.{name[:64]}", name[:64], here.fields.union(own))


_HINTS = ("allowed_callers", "async", "cache_control", "defer_loading", "eager_input_streaming", "input_examples")
_TOOL = ("type", "name", "description", "strict", "output_schema", *_HINTS)
_GRAMMAR = known("syntax", "definition")
_FUNCTION = known(*_TOOL, "parameters")
_CUSTOM = known(*_TOOL, format=known("type", "syntax", "definition", grammar=_GRAMMAR))
_PART = known(
    *("type", "text", "refusal", "annotations", "cache_control", "id", "index", "logprobs", "prompt_cache_breakpoint"),
    "status",
)
_NAMED = known("name")
_CHOICE = known("type", "name", "mode", "tools", allowed_tools=known("mode", "tools"), function=_NAMED, custom=_NAMED)
_RESULT = known("cache_control", "citations", "signature", "thinking", "data", "caller", "toolset_name")
_BLOCK = Known(_RESULT.fields, {"content": _RESULT})

# Of the bodies of each protocol: field → what is known of its value.
OPENAI: Mapping[str, Known] = {
    "messages": known(open=True, content=_PART),
    "tools": known("type", "strict", *_HINTS, function=_FUNCTION, custom=_CUSTOM),
    "functions": _FUNCTION,
    "tool_choice": _CHOICE,
}
RESPONSES: Mapping[str, Known] = {
    "input": known(open=True, content=_PART, output=_PART),
    "text": known("format", "verbosity"),
    "tools": known(*_TOOL, "parameters", format=known("type", "syntax", "definition")),
    "tool_choice": _CHOICE,
}
ANTHROPIC: Mapping[str, Known] = {
    "messages": known("clear_at", "output_config", content=_BLOCK),
    "system": _BLOCK,
    "tools": known(*_TOOL, "input_schema"),
    "tool_choice": known("type", "name", "disable_parallel_tool_use"),
    "output_config": known("format", "effort", "task_budget"),
}
OLLAMA: Mapping[str, Known] = {"messages": known(), "tools": OPENAI["tools"]}
DECISIONS: Mapping[str, Known] = {"questions": known(options=known())}
