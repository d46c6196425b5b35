"""How a conversation's edges change when the model is told of tools, and where a template has no tool role.

In: a chat template, tools, roles. Out: the text that begins or ends a message there. A template with a place for tools
renders them itself; any other gets the preamble of its tool format in its first system message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, ContextOverflow, ModelError
from ramet.runtime.tools import check_tools, described

if TYPE_CHECKING:
    from ramet.runtime.template import ChatTemplate

Edge = Literal["begin", "end"]
Edges = Callable[[Sequence[str], str, Edge], str]
PROBE = ir.Tool("ramet_probe", "None.", '{"type":"object","properties":{"probe":{"type":"string"}}}')
_RESULT = ("<tool_response>\n", "\n</tool_response>")  # as Hermes and Qwen write a tool's result
_SHORT = 8  # messages up to which a history with tools is not shortened
RECENT = 4  # messages at the end of a history that are never left out when an edge is looked up


class Telling:
    """The edges of one template's conversations with `tools`. Immutable; may be used from any thread.

    Raises `ConstraintError` for tools that cannot be told (a name of a control token in their text: it would become
    that token) and `ContextOverflow` for tools that are longer than any prompt may be.
    """

    def __init__(self, template: ChatTemplate, tools: Sequence[ir.Tool]) -> None:
        check_tools(tools)
        self._template = template
        self._longest = template.longest
        objects = [described(tool) for tool in tools]
        for tool, each in zip(tools, objects, strict=True):
            name = template.control_in(json.dumps(each, ensure_ascii=False))
            if name is not None:
                raise ConstraintError(
                    f"tools: the text of {tool.name!r} contains {name!r}, a control token of the model; leave it out"
                )
        self._preamble = template.tool_format.preamble(tools)
        self._fits(self._preamble)
        native = template.supports_tools and template.tool_format.told_by_template(tools)
        self._native = template.with_tools(objects) if native else None

    def edge(self, history: Sequence[str], role: str, edge: Edge) -> str:
        """See `ChatTemplate.edge`."""
        if self._native is None:
            return self._worded(history, role, edge)
        try:
            if len(history) > _SHORT and self._template.local_with_tools:
                history = shortened(history)
            return self._fits(self._native.edge(history, role, edge))
        except ModelError as error:
            raise ContextOverflow(f"tools: {error}") from None

    def later(self, history: Sequence[str]) -> tuple[str, str]:
        """The role and the content of a message that tells of the tools after messages of the roles `history`."""
        for role in ("system", "user"):
            if _taken(self._template.edge, history, role):
                return role, self._preamble
        raise ConstraintError(
            f"tools: the model's chat template takes neither a system nor a user message after {', '.join(history)}; "
            "declare the tools before the first message"
        )

    def _worded(self, history: Sequence[str], role: str, edge: Edge) -> str:
        """With the preamble at the end of the first system message, in one of its own, or before the first user's."""
        template, first = self._template, history[0] if history else role
        if first == "system":
            text = template.edge(history, role, edge)
            return f"\n\n{self._preamble}{text}" if not history and edge == "end" else text
        if _taken(template.edge, (), "system") and _taken(template.edge, ("system",), first):
            text = template.edge(("system", *history), role, edge)
            if history or edge == "end":
                return text
            begin, end = (template.edge((), "system", each) for each in ("begin", "end"))
            return begin + self._preamble + end + text
        if first == "user":
            text = template.edge(history, role, edge)
            return f"{text}{self._preamble}\n\n" if not history and edge == "begin" else text
        raise ConstraintError(
            f"tools: the model's chat template has no place for them before a first message of {first!r}; begin with "
            "a system or a user message"
        )

    def _fits(self, text: str) -> str:
        if len(text) > self._longest:
            raise ContextOverflow(
                f"tools: they take {len(text)} characters, more than {self._longest} that any prompt may have; "
                "declare fewer, or describe them in less"
            )
        return text


def shortened(history: Sequence[str]) -> tuple[str, ...]:
    """A history without repeated turns: of two equal runs of 2 or of 4 roles that follow each other, one is left out
    (an even number, for templates that count), except among the last `RECENT` messages."""
    kept: list[str] = []
    for role in history[: max(0, len(history) - RECENT)]:
        kept.append(role)
        for run in (2, 4):
            if kept[-run:] == kept[-2 * run : -run]:
                del kept[-run:]
    return (*kept, *history[max(0, len(history) - RECENT) :])


def with_results(edges: Edges, history: Sequence[str], role: str, edge: Edge) -> str:
    """`edges`, also where the template has no tool role: results that follow each other are one user message then, each
    in <tool_response> tags. That message ends where the next one of another role begins."""
    try:
        return edges(history, role, edge)
    except ConstraintError as error:
        if role != "tool" and "tool" not in history:
            raise
        try:
            return _results_as_user(edges, history, role, edge)
        except ConstraintError:
            raise error from None


def _results_as_user(edges: Edges, history: Sequence[str], role: str, edge: Edge) -> str:
    known = _without_results(history)
    inside = bool(history) and history[-1] == "tool"
    if edge == "end":
        return _RESULT[1] if role == "tool" else edges(known, role, "end")
    if role == "tool":
        return ("\n" if inside else edges(known, "user", "begin")) + _RESULT[0]
    closing = edges(known[:-1], "user", "end") if inside else ""
    return closing + edges(known, role, "begin")


def _without_results(history: Sequence[str]) -> tuple[str, ...]:
    roles: list[str] = []
    for n, role in enumerate(history):
        if role != "tool":
            roles.append(role)
        elif not n or history[n - 1] != "tool":
            roles.append("user")
    return tuple(roles)


def _taken(edges: Edges, history: Sequence[str], role: str) -> bool:
    try:
        edges(history, role, "begin")
    except ConstraintError:
        return False
    return True
