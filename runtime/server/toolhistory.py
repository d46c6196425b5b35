"""Calls of tools and their results in a conversation's history.

In: the calls that assistants made and the answers that tools gave, as each protocol writes them. Out: `ir.ToolCall`s,
and a `Failure` 400 for an answer to a call that was never made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.server.call import Message
from ramet.runtime.server.failures import bad
from ramet.runtime.tools import ToolFormat

MAX_CALLS = 128  # of one message
_OPEN, _CLOSE = "<tool_response>\n", "\n</tool_response>"


class Ledger:
    """The calls of a conversation by their ids, so that each result is one of a call that was made."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._functions: set[str] = set()

    def made(self, id: str, name: str) -> None:
        """A call of tool `name`."""
        self._names[id] = name
        self._functions.add(name)

    @property
    def calls(self) -> tuple[tuple[str, str], ...]:
        """All of them: id and tool."""
        return tuple(self._names.items())

    def answered(self, id: object, at: str) -> str:
        """The tool whose call `id` is answered. Raises `Failure` 400."""
        if not isinstance(id, str):
            raise bad(f"`{at}` is required: the id of the call that is answered", at)
        if id not in self._names:
            raise bad(f"`{at}`={id[:80]!r}: no message before it made a call of that id", at)
        return self._names[id]

    def known(self, name: object, at: str) -> str:
        """The tool `name`, which a result of the older kind names instead of a call. Raises `Failure` 400."""
        if not isinstance(name, str) or name not in self._functions:
            raise bad(f"`{at}` must name a function that a message before it called", at)
        return name


class Told:
    """Writes the calls of one history and their results into messages, as `format` has them. A template with tools of
    its own wraps results by itself; elsewhere they are a user's message with tags around them."""

    def __init__(self, format: ToolFormat) -> None:
        self.ledger = Ledger()
        self._format = format

    def calls(self, content: str, calls: Sequence[ir.ToolCall], at: str) -> str:
        """The text of an assistant's message that made calls. Raises `Failure` 400."""
        try:
            return self._format.message_text(content, calls)
        except ConstraintError as error:
            raise bad(f"`{at}`: {error.message}", at) from None

    def result(self, text: str, *, failed: bool = False) -> Message:
        """The message of a tool's result."""
        text = f"Error: {text}" if failed else text
        return Message("tool", text) if self._format.native else Message("user", tool_result(text))

    def joined(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, with results in tags that follow each other in one."""
        done: list[Message] = []
        for message in messages:
            if done and _is_result(done[-1]) and _is_result(message):
                done[-1] = Message("user", f"{done[-1].content}\n{message.content}")
            else:
                done.append(message)
        return tuple(done)


def _is_result(message: Message) -> bool:
    return message.role == "user" and message.content.startswith(_OPEN) and message.content.endswith(_CLOSE)


def tool_result(text: str) -> str:
    """A result in the tags that Hermes and Qwen models are trained on."""
    return f"{_OPEN}{text}{_CLOSE}"


def openai_calls(value: object, at: str, ledger: Ledger) -> tuple[ir.ToolCall, ...]:
    """The `tool_calls` of an assistant's message: functions and custom tools. Raises `Failure` 400."""
    found = []
    for n, item in enumerate(_list(value, at)):
        here = f"{at}[{n}]"
        call = _object(item, here)
        kind = call.get("type", "function")
        if kind not in ("function", "custom"):
            raise bad(f'`{here}.type` must be "function" or "custom"', f"{here}.type")
        inner = _object(call.get(kind), f"{here}.{kind}")
        made = _custom(inner, f"{here}.{kind}") if kind == "custom" else function_call(inner, f"{here}.{kind}")
        ledger.made(_string(call, "id", here), made.name)
        found.append(made)
    return tuple(found)


def function_call(value: object, at: str) -> ir.ToolCall:
    """`{"name", "arguments"}`, the arguments a JSON text. Raises `Failure` 400."""
    call = _object(value, at)
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        raise bad(f"`{at}.arguments` is required, a JSON text", f"{at}.arguments")
    return ir.ToolCall(_string(call, "name", at), arguments.strip() or "{}")


def _custom(call: Mapping[str, object], at: str) -> ir.ToolCall:
    text = call.get("input")
    if not isinstance(text, str):
        raise bad(f"`{at}.input` is required, a string", f"{at}.input")
    return ir.ToolCall(_string(call, "name", at), text, custom=True)


def ollama_calls(value: object, at: str) -> tuple[ir.ToolCall, ...]:
    """The `tool_calls` of a message of Ollama's, their arguments objects. Raises `Failure` 400."""
    found = []
    for n, item in enumerate(_list(value, at)):
        function = _object(_object(item, f"{at}[{n}]").get("function"), f"{at}[{n}].function")
        arguments = function.get("arguments")
        name = _string(function, "name", f"{at}[{n}].function")
        found.append(encoded(name, arguments, f"{at}[{n}].function.arguments"))
    return tuple(found)


def encoded(name: str, arguments: object, at: str) -> ir.ToolCall:
    """A call whose arguments are a value, written as models write it. Raises `Failure` 400."""
    value = {} if arguments is None else _object(arguments, at)
    return ir.ToolCall(name, json.dumps(value, ensure_ascii=False))


def _list(value: object, at: str) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > MAX_CALLS:
        raise bad(f"`{at}` must be a list of at most {MAX_CALLS} calls", at)
    return value


def _object(value: object, at: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise bad(f"`{at}` must be an object", at)
    return value


def _string(value: Mapping[str, object], name: str, at: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise bad(f"`{at}.{name}` is required, a string", f"{at}.{name}")
    return text
