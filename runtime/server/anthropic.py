"""Anthropic's Messages: `POST /v1/messages` and `/v1/messages/count_tokens`.

In: a system prompt, messages as strings or blocks, sampling. Out: a message, or its events; errors in Anthropic's own
shape. The same call as every other protocol's. Caching needs no `cache_control`: equal prefixes are found anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.frontend import ir
from ramet.runtime.server.anthropic_blocks import Blocks, blocks, named
from ramet.runtime.server.call import Answer, Begun, Call, Caller, Chat, Message
from ramet.runtime.server.constraints import FIELDS, constraint_of, jump_of
from ramet.runtime.server.dialect import DialectRoute, chat_of
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.nested import ANTHROPIC
from ramet.runtime.server.sampling import length_of, refuse_unoffered, sampling_of
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.speech import Hearing, Manner, Said, use_id
from ramet.runtime.server.status import check_model
from ramet.runtime.server.toolcalls import anthropic_offer
from ramet.runtime.server.toolhistory import Ledger, Told, encoded
from ramet.runtime.server.vendor_errors import ANTHROPIC_FAILURES, anthropic_error
from ramet.runtime.server.wire import SSE, Batches, Body, Event, attended, caller_of, noted, reply, sse

Who = Depends(caller_of)
# Fields that change nothing here: accounts, hints of caching and of effort.
_NO_EFFECT = frozenset(
    ("cache_control", "metadata", "service_tier", "inference_geo", "user_profile_id", "workspace_id", "speed", "betas")
)
_REFUSED = {
    "mcp_servers": "the server opens no connections",
    "container": "there are no containers here",
    "thread": "conversations are not stored; send all messages",
}
_THOUGHTS = ("thinking", "redacted_thinking")  # of earlier turns: models are not shown them again


class Block(Body):
    """A part of a message. Text, uses of tools and their results are read; the rest is refused."""

    type: str = Field(examples=["text"])
    text: str | None = None
    id: str | None = None
    tool_use_id: Any = None
    name: str | None = None
    input: Any = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Turn(Body):
    """A message. A `system` message may stand anywhere; a last message of the assistant is continued."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Counted(Body):
    """What is counted: everything that the model reads."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "default", "messages": [{"role": "user", "content": "Hello"}]}},
    )

    model: str
    messages: list[Turn]
    system: str | list[Block] | None = None
    thinking: dict[str, Any] | None = Field(default=None, description="for models that think; left out: disabled")
    tools: list[Any] | None = Field(default=None, description="run by the client; at most 128")
    tool_choice: Any = Field(default=None, description="auto, any, tool or none")
    output_config: dict[str, Any] | None = Field(default=None, description="`format` is a JSON schema")


class MessagesRequest(Counted):
    """A request for a message. `max_tokens` 0 caches the prompt and generates nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "default",
                "max_tokens": 64,
                "system": "You are brief.",
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            }
        },
    )

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, description="0 to 1")
    top_k: int | None = None
    top_p: float | None = None


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=DialectRoute, tags=["anthropic"], responses=ANTHROPIC_FAILURES)
    manner = Manner.of(service.template)

    @routes.post("/v1/messages", responses=SSE)
    async def messages(body: MessagesRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer a conversation."""
        notes = _checked(body, manner, service, settings)
        call, hearing = await _call(body, manner, service)
        notes += await service.compiled(call)
        if body.stream:
            events = _events(service, call, hearing, caller, body.model)
            return await sse(events, request, caller, done=None, failed=lambda f: _error(f, caller), notes=notes)
        answer = await attended(request, service.complete(call, caller))
        return reply(_message(answer, hearing, caller, body.model), caller, notes)

    @routes.post("/v1/messages/count_tokens")
    async def count_tokens(body: Counted, request: Request, caller: Caller = Who) -> Response:
        """Tokens that the model would read, tools and the template's own included."""
        notes = _checked(body, manner, service, settings)
        chat, _ = await _chat(body, manner, service)
        return reply({"input_tokens": await attended(request, service.count(chat))}, caller, notes)

    return routes


# -- in


def _checked(body: Counted, manner: Manner, service: Service, settings: Settings) -> tuple[str, ...]:
    """Refuse what is not offered; sentences about what has no effect."""
    check_model(service, body.model)
    extra = body.model_extra or {}
    refuse_unoffered(extra)
    for name, why in _REFUSED.items():
        if extra.get(name):
            raise unsupported(name, f"`{name}` is not supported: {why}; leave it out")
    notes = noted(body, settings, ignored=_NO_EFFECT | FIELDS, inside=ANTHROPIC)
    if (body.thinking or {}).get("type", "disabled") != "disabled" and manner.thinking is None:
        notes += ("`thinking` has no effect: the model answers without it",)
    return notes


async def _call(body: MessagesRequest, manner: Manner, service: Service) -> tuple[Call, Hearing]:
    chat, hearing = await _chat(body, manner, service)
    fields: Mapping[str, object] = {
        name: getattr(body, name) for name in ("max_tokens", "stop_sequences", "temperature", "top_k", "top_p")
    }
    sampling = sampling_of(fields, protocol="anthropic", default_max_tokens=None, logprobs=-1, allow_zero=True)
    generate = length_of(fields, protocol="anthropic", default=None) != 0
    call = Call(
        (chat,),
        sampling,
        generate=generate,
        jump=jump_of(body.model_extra or {}),
        **hearing.held,
    )
    return call, hearing


async def _chat(body: Counted, manner: Manner, service: Service) -> tuple[Chat, Hearing]:
    """The conversation with its tools, and how its answer is read."""
    if not body.messages:
        raise bad("`messages` must have at least one message", "messages")
    told = manner.told()
    said = [] if not body.system else [Message("system", _text(body.system, "system"))]
    for n, turn in enumerate(body.messages):
        said += _messages(turn, f"messages[{n}].content", told)
    chat = await chat_of(service, said)
    wanted = constraint_of(
        {**(body.model_extra or {}), "output_config.format": (body.output_config or {}).get("format")}
    )
    offer = anthropic_offer({"tools": body.tools, "tool_choice": body.tool_choice})
    return manner.hearing(chat, offer, wanted, {"thinking": body.thinking or {"type": "disabled"}})


def _messages(turn: Turn, at: str, told: Told) -> list[Message]:
    """A turn as messages: the results of tools in it may be some of their own."""
    if isinstance(turn.content, str):
        return [Message(turn.role, turn.content)]
    texts: list[str] = []
    calls: list[ir.ToolCall] = []
    found: list[Message] = []

    def add(message: Message) -> None:
        if found and found[-1].role == message.role != "tool":
            found[-1] = Message(message.role, f"{found[-1].content}\n{message.content}")
        else:
            found.append(message)

    for n, block in enumerate(turn.content):
        place = f"{at}[{n}]"
        if block.type in _THOUGHTS:
            continue
        if block.type == "tool_use":
            calls.append(_use(turn, block, place, told.ledger))
        elif block.type == "tool_result":
            add(_result(turn, block, place, told))
        elif turn.role == "assistant":
            texts.append(_block(block, place))
        else:
            add(Message(turn.role, _block(block, place)))
    if turn.role == "assistant":
        text = "\n".join(texts)
        return [Message("assistant", told.calls(text, calls, at) if calls else text)]
    return found or [Message(turn.role, "")]


def _use(turn: Turn, block: Block, at: str, ledger: Ledger) -> ir.ToolCall:
    if turn.role != "assistant":
        raise bad(f"`{at}`: tools are used by the assistant", at)
    for name in ("id", "name"):
        if not getattr(block, name):
            raise bad(f"`{at}.{name}` is required", f"{at}.{name}")
    call = encoded(block.name or "", block.input, f"{at}.input")
    ledger.made(block.id or "", call.name)
    return call


def _result(turn: Turn, block: Block, at: str, told: Told) -> Message:
    if turn.role != "user":
        raise bad(f"`{at}`: results of tools come from the user", at)
    told.ledger.answered(block.tool_use_id, f"{at}.tool_use_id")
    return told.result(_text(block.content or "", f"{at}.content"), failed=bool(block.is_error))


def _text(content: str | Sequence[Block], place: str) -> str:
    """The text of a content: each block begins a line."""
    if isinstance(content, str):
        return content
    texts = [_block(block, f"{place}[{n}]") for n, block in enumerate(content) if block.type not in _THOUGHTS]
    return "\n".join(texts)


def _block(block: Block, place: str) -> str:
    if block.type == "text":
        if block.text is None:
            raise bad(f"`{place}.text` is required", f"{place}.text")
        return block.text
    message = f"`{place}`: the model reads text alone; a block of type {block.type[:40]!r} is not text"
    raise unsupported(place, message)


# -- out


def _usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """`input_tokens` are those that were computed, as Anthropic counts: the three kinds of input add up to the prompt.
    What is computed is cached too, at no price, so that none is told apart as `cache_creation_input_tokens`."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }


def _stop(meta: ir.Meta | None, said: Said) -> dict[str, Any]:
    """Why a message ended; without `meta` nothing was to be generated."""
    if meta is None or meta.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if said.calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(meta.matched, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": meta.matched}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _shell(caller: Caller, model: str) -> dict[str, Any]:
    return {"id": f"msg_{caller.label}", "type": "message", "role": "assistant", "model": model}


def _message(answer: Answer, hearing: Hearing, caller: Caller, model: str) -> dict[str, Any]:
    (prompt,) = answer.prompts
    done = prompt.completions[0] if prompt.completions else None
    speech = hearing.speech(use_id)
    if done is not None:
        speech.push(done.text, last=True)
    return {
        **_shell(caller, model),
        "content": [] if done is None else blocks(speech.said),
        **_stop(None if done is None else done.meta, speech.said),
        "usage": _usage(answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens),
    }


def _error(failure: Failure, caller: Caller) -> Event:
    return Event("error", anthropic_error(failure, caller.label))


async def _events(service: Service, call: Call, hearing: Hearing, caller: Caller, model: str) -> Batches:
    """message_start, then (unless nothing is generated) blocks, each of a start, deltas and a stop; then message_delta
    and message_stop. Usage in message_delta is of the whole message."""
    begun = Begun(0, 0, 0)
    meta: ir.Meta | None = None
    speech, written = hearing.speech(use_id), Blocks(eager=hearing.plain)
    async with aclosing(service.stream(call, caller)) as stream:
        async for outs in stream:
            events: list[Event] = []
            for out in outs:
                if isinstance(out, Begun):
                    begun = out
                    events += [_start(begun, caller, model), *(written.begin() if call.generate else ())]
                    continue
                events += written.take(speech.push(out.text, last=out.meta is not None), speech)
                meta = out.meta or meta
            if events:
                yield events
    cached = begun.cached_tokens if meta is None else meta.cached_tokens
    usage = _usage(begun.prompt_tokens, cached, 0 if meta is None else meta.completion_tokens)
    ended = written.close() if call.generate else []
    yield [*ended, named("message_delta", delta=_stop(meta, speech.said), usage=usage), named("message_stop")]


def _start(begun: Begun, caller: Caller, model: str) -> Event:
    ends = {"stop_reason": None, "stop_sequence": None}
    usage = _usage(begun.prompt_tokens, begun.cached_tokens, 0)
    return named("message_start", message={**_shell(caller, model), "content": [], **ends, "usage": usage})
