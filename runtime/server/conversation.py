"""Messages as OpenAI's clients write them, as a `Chat` in the roles of the model's own template.

In: lists of messages, their contents strings or parts. Out: a `Chat`, and a sentence about whatever was left out of it;
a `Failure` 400 with the message's place for what cannot be said to this model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ramet.frontend import ir
from ramet.runtime.server.call import Chat, Message
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.toolhistory import Ledger, Told, function_call, openai_calls
from ramet.runtime.server.wire import Body
from ramet.runtime.tools import ToolFormat

ROLES: Mapping[str, str] = {  # OpenAI's → the template's
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXTS: Mapping[str, str] = {  # types of parts that are text → the field that holds it
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_SILENT = frozenset(  # earlier thoughts, which agents echo, are not shown to a model again
    (
        *("id", "type", "status", "phase", "annotations", "refusal", "cache_control"),
        *("reasoning", "reasoning_content", "reasoning_details"),
    )
)
_OPEN = ("prefix", "partial")  # of other vendors: this message is to be continued


class Part(Body):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(Body):
    """A message: text by a role. One of the assistant's may have made calls, one of a tool's answers one of them."""

    role: str = Field(description="system, developer, user, assistant or tool", examples=["user"])
    content: str | list[Part] | None = Field(default=None, examples=["Why is the sky blue?"])
    tool_calls: list[Any] | None = Field(default=None, description="calls of tools that the assistant made")
    tool_call_id: Any = Field(default=None, description="of a tool's message: the call that it answers")
    function_call: Any = Field(default=None, description="the older kind of a call")


def content_of(content: str | Sequence[Part] | None, place: str) -> str:
    """The text of a content: its parts follow each other with nothing between them. Raises `Failure` 400 for images and
    whatever else is not text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for n, part in enumerate(content):
        at = f"{place}[{n}]"
        if part.type not in TEXTS:
            raise unsupported(at, f"`{at}`: the model reads text alone; a part of type {part.type[:40]!r} is not text")
        text = getattr(part, TEXTS[part.type])
        if text is None:
            raise bad(f"`{at}.{TEXTS[part.type]}` is required", at)
        texts.append(text)
    return "".join(texts)


def message_of(message: ChatMessage, place: str, notes: list[str], told: Told, *, strict: bool) -> Message:
    """One message; `told` writes calls and their results. `notes` gets a sentence about each field that has no place in
    a chat template (`strict`: a `Failure` 400 instead)."""
    if message.role not in ROLES:
        raise bad(f"`{place}.role`={message.role[:40]!r}: must be one of {', '.join(ROLES)}", f"{place}.role")
    _check_extra(message, place, notes, strict=strict)
    calls = _calls(message, place, told.ledger)
    if message.content is None and message.role != "assistant":
        raise bad(f"`{place}.content` is required", f"{place}.content")
    content = content_of(message.content, f"{place}.content")
    if message.role == "tool":
        told.ledger.answered(message.tool_call_id, f"{place}.tool_call_id")
        return told.result(content)
    if message.role == "function":
        told.ledger.known((message.model_extra or {}).get("name"), f"{place}.name")
        return told.result(content)
    return Message(ROLES[message.role], told.calls(content, calls, place) if calls else content)


def _check_extra(message: ChatMessage, place: str, notes: list[str], *, strict: bool) -> None:
    for name, value in (message.model_extra or {}).items():
        if name in _SILENT or name in _OPEN or value in (None, [], {}, ""):
            continue
        if name == "name" and message.role in ("tool", "function"):
            continue  # the name of the tool, which the call says too
        if name == "audio":
            raise unsupported(f"{place}.{name}", f"`{place}.{name}` is not supported: the model reads text alone")
        if strict:
            text = f"`{place}.{name[:64]}` has no place in the model's chat template"
            raise Failure(400, text, code="unknown_parameter", param=f"{place}.{name[:64]}")
        notes.append(f"`{place}.{name[:64]}` has no place in the model's chat template and was left out")


def _calls(message: ChatMessage, place: str, ledger: Ledger) -> tuple[ir.ToolCall, ...]:
    if not message.tool_calls and message.function_call is None:
        return ()
    if message.role != "assistant":
        name = "tool_calls" if message.tool_calls else "function_call"
        raise bad(f"`{place}.{name}`: calls are made by the assistant", f"{place}.{name}")
    if message.tool_calls:
        return openai_calls(message.tool_calls, f"{place}.tool_calls", ledger)
    call = function_call(message.function_call, f"{place}.function_call")
    ledger.made("", call.name)
    return (call,)


def chat_of(
    messages: Sequence[ChatMessage],
    *,
    context: int,
    continue_final: bool | None = None,
    begin_reply: bool | None = None,
    strict: bool = False,
    at: str = "messages",
    told: Told | None = None,
    places: Sequence[str] = (),
) -> tuple[Chat, tuple[str, ...]]:
    """The conversation, and sentences about what was left out of it. `context`, in tokens, bounds the number of
    messages: each takes at least one. `at` is the field that they come from (`places`: the place of each in it). `told`
    writes calls of tools and their results, in the default notation unless it is given. Raises `Failure` 400."""
    if not messages:
        raise bad(f"`{at}` must have at least one message", at)
    if len(messages) > context:
        most = f"This model's maximum context length is {context} tokens. However, you sent {len(messages)} messages."
        raise Failure(400, f"{most} Please reduce their number.", code="context_length_exceeded", param=at)
    notes: list[str] = []
    told = told or Told(ToolFormat())
    places = places or [f"{at}[{n}]" for n in range(len(messages))]
    said = told.joined(
        [message_of(each, place, notes, told, strict=strict) for each, place in zip(messages, places, strict=True)]
    )
    if continue_final is None:
        continue_final = any((messages[-1].model_extra or {}).get(name) is True for name in _OPEN)
    if continue_final and begin_reply:
        raise bad("`continue_final_message` and `add_generation_prompt` exclude each other", "add_generation_prompt")
    if continue_final and said[-1].role != "assistant":
        raise bad("`continue_final_message` continues a message of the assistant; the last one is not", at)
    return Chat(said, continue_final=continue_final, begin_reply=begin_reply is not False), tuple(notes[:8])
