"""Messages as OpenAI's clients write them, as a `Chat` in the roles of the model's own template.

In: lists of messages, their contents strings or parts. Out: a `Chat`, and a sentence about whatever was left out of it;
a `Failure` 400 with the message's place for what cannot be said to this model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ConfigDict, Field

from ramet.runtime.server.call import Chat, Message
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.wire import Body

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
_SILENT = frozenset(("id", "type", "status", "phase", "annotations", "tool_call_id", "refusal", "cache_control"))
_TOOLS = ("tool_calls", "function_call", "audio")
_OPEN = ("prefix", "partial")  # of other vendors: this message is to be continued


class Part(Body):
    """A part of a message's content."""

    model_config = ConfigDict(strict=True)

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(Body):
    """A message: text by a role."""

    model_config = ConfigDict(strict=True)

    role: str = Field(description="system, developer, user, assistant or tool", examples=["user"])
    content: str | list[Part] | None = Field(default=None, examples=["Why is the sky blue?"])


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


def message_of(message: ChatMessage, place: str, notes: list[str], *, strict: bool) -> Message:
    """One message. `notes` gets a sentence about each field that has no place in a chat template (`strict`: a `Failure`
    400 instead)."""
    if message.role not in ROLES:
        raise bad(f"`{place}.role`={message.role[:40]!r}: must be one of {', '.join(ROLES)}", f"{place}.role")
    for name, value in (message.model_extra or {}).items():
        if name in _SILENT or name in _OPEN or value in (None, [], {}, ""):
            continue
        if name in _TOOLS:
            raise unsupported(
                f"{place}.{name}", f"`{place}.{name}` is not supported: the model's template has text alone"
            )
        if strict:
            text = f"`{place}.{name[:64]}` has no place in the model's chat template"
            raise Failure(400, text, code="unknown_parameter", param=f"{place}.{name[:64]}")
        notes.append(f"`{place}.{name[:64]}` has no place in the model's chat template and was left out")
    if message.content is None and message.role != "assistant":
        raise bad(f"`{place}.content` is required", f"{place}.content")
    return Message(ROLES[message.role], content_of(message.content, f"{place}.content"))


def chat_of(
    messages: Sequence[ChatMessage],
    *,
    context: int,
    continue_final: bool | None = None,
    begin_reply: bool | None = None,
    strict: bool = False,
    at: str = "messages",
) -> tuple[Chat, tuple[str, ...]]:
    """The conversation, and sentences about what was left out. `context`, in tokens, bounds the number of messages:
    each takes at least one. `at` is the field that they come from. Raises `Failure` 400."""
    if not messages:
        raise bad(f"`{at}` must have at least one message", at)
    if len(messages) > context:
        most = f"This model's maximum context length is {context} tokens. However, you sent {len(messages)} messages."
        raise Failure(400, f"{most} Please reduce their number.", code="context_length_exceeded", param=at)
    notes: list[str] = []
    said = tuple(message_of(each, f"{at}[{n}]", notes, strict=strict) for n, each in enumerate(messages))
    if continue_final is None:
        continue_final = any((messages[-1].model_extra or {}).get(name) is True for name in _OPEN)
    if continue_final and begin_reply:
        raise bad("`continue_final_message` and `add_generation_prompt` exclude each other", "add_generation_prompt")
    if continue_final and said[-1].role != "assistant":
        raise bad("`continue_final_message` continues a message of the assistant; the last one is not", at)
    return Chat(said, continue_final=continue_final, begin_reply=begin_reply is not False), tuple(notes[:8])
