"""Anthropic's Messages: `POST /v1/messages` and `/v1/messages/count_tokens`.

In: a system prompt, messages as strings or blocks, sampling. Out: a message, or its events; errors in Anthropic's own
shape. The same call as every other protocol's. Caching needs no `cache_control`: equal prefixes are found anyway.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.frontend import ir
from ramet.runtime.server.call import Answer, Begun, Call, Caller, Chat, Message
from ramet.runtime.server.dialect import DialectRoute, chat_of, opened, tool_call, tool_result
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.sampling import length_of, refuse_constraints, sampling_of
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.status import check_model
from ramet.runtime.server.vendor_errors import ANTHROPIC_FAILURES, anthropic_error
from ramet.runtime.server.wire import Body, Event, attended, caller_of, noted, reply, sse

Who = Depends(caller_of)
# Fields that change nothing here: accounts, hints of caching and of effort.
_NO_EFFECT = frozenset(
    ("cache_control", "metadata", "service_tier", "inference_geo", "user_profile_id", "workspace_id", "speed", "betas")
)
_REFUSED = {
    "mcp_servers": "the server opens no connections",
    "container": "there are no containers here",
    "thread": "conversations are not stored; send all messages",
    "output_format": "this server does not constrain output yet",
}
_THOUGHTS = ("thinking", "redacted_thinking")  # of earlier turns: models are not shown them again


class Block(Body):
    """A part of a message. Text is read; calls and results of tools in a history become text; the rest is refused."""

    model_config = ConfigDict(strict=True)

    type: str = Field(examples=["text"])
    text: str | None = None
    name: str | None = None
    input: Any = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Turn(Body):
    """A message. A `system` message may stand anywhere; a last message of the assistant is continued."""

    model_config = ConfigDict(strict=True)

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Counted(Body):
    """What is counted: everything that the model reads."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={"example": {"model": "default", "messages": [{"role": "user", "content": "Hello"}]}},
    )

    model: str
    messages: list[Turn]
    system: str | list[Block] | None = None
    thinking: dict[str, Any] | None = Field(default=None, description="accepted; this server's models answer at once")
    tools: list[Any] | None = Field(default=None, description="refused unless it is empty")
    tool_choice: dict[str, Any] | None = Field(default=None, description="auto or none")
    output_config: dict[str, Any] | None = Field(default=None, description="`format` is refused")


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

    @routes.post("/v1/messages")
    async def messages(body: MessagesRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer a conversation."""
        notes = _checked(body, service, settings)
        call = await _call(body, service)
        if body.stream:
            events = _events(service, call, caller, body.model)
            return await sse(events, request, caller, done=None, failed=lambda f: _error(f, caller), notes=notes)
        answer = await attended(request, service.complete(call, caller))
        return reply(_message(answer, caller, body.model), caller, notes)

    @routes.post("/v1/messages/count_tokens")
    async def count_tokens(body: Counted, request: Request, caller: Caller = Who) -> Response:
        """Tokens that the model would read, the template's own included."""
        notes = _checked(body, service, settings)
        chat = await _chat(body, service)
        return reply({"input_tokens": await attended(request, service.count(chat))}, caller, notes)

    return routes


# -- in


def _checked(body: Counted, service: Service, settings: Settings) -> tuple[str, ...]:
    """Refuse what is not offered; sentences about what has no effect."""
    check_model(service, body.model)
    extra = body.model_extra or {}
    refuse_constraints({**extra, "tools": body.tools})
    for name, why in _REFUSED.items():
        if extra.get(name):
            raise unsupported(name, f"`{name}` is not supported: {why}; leave it out")
    if (body.tool_choice or {}).get("type", "auto") not in ("auto", "none"):
        raise unsupported("tool_choice", "`tool_choice` is not supported: tools are not offered yet; leave it out")
    if (body.output_config or {}).get("format") is not None:
        raise unsupported("output_config", "`output_config.format`: this server does not constrain output yet")
    notes = noted(body, settings, ignored=_NO_EFFECT)
    if (body.thinking or {}).get("type", "disabled") != "disabled":
        notes += ("`thinking` has no effect: the model answers without it",)
    return notes


async def _call(body: MessagesRequest, service: Service) -> Call:
    chat = await _chat(body, service)
    fields: Mapping[str, object] = {
        name: getattr(body, name) for name in ("max_tokens", "stop_sequences", "temperature", "top_k", "top_p")
    }
    sampling = sampling_of(fields, protocol="anthropic", default_max_tokens=None, logprobs=-1, allow_zero=True)
    generate = length_of(fields, protocol="anthropic", default=None) != 0
    return Call((chat,), sampling, generate=generate)


async def _chat(body: Counted, service: Service) -> Chat:
    if not body.messages:
        raise bad("`messages` must have at least one message", "messages")
    said = [] if not body.system else [Message("system", _text(body.system, "system"))]
    said += [Message(turn.role, _text(turn.content, f"messages[{n}].content")) for n, turn in enumerate(body.messages)]
    return await chat_of(service, said)


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
    if block.type == "tool_use":
        if block.name is None:
            raise bad(f"`{place}.name` is required", f"{place}.name")
        return tool_call(block.name, block.input if block.input is not None else {})
    if block.type == "tool_result":
        inner = _text(block.content or "", f"{place}.content")
        return tool_result(inner, failed=bool(block.is_error))
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


def _stop(meta: ir.Meta | None) -> dict[str, Any]:
    """Why a message ended; without `meta` nothing was to be generated."""
    if meta is None or meta.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if isinstance(meta.matched, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": meta.matched}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _shell(caller: Caller, model: str) -> dict[str, Any]:
    return {"id": f"msg_{caller.label}", "type": "message", "role": "assistant", "model": model}


def _message(answer: Answer, caller: Caller, model: str) -> dict[str, Any]:
    (prompt,) = answer.prompts
    done = prompt.completions[0] if prompt.completions else None
    return {
        **_shell(caller, model),
        "content": [] if done is None else [{"type": "text", "text": done.text}],
        **_stop(None if done is None else done.meta),
        "usage": _usage(answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens),
    }


def _named(type: str, **fields: Any) -> Event:
    return Event(type, {"type": type, **fields})


def _error(failure: Failure, caller: Caller) -> Event:
    return Event("error", anthropic_error(failure, caller.label))


async def _events(service: Service, call: Call, caller: Caller, model: str) -> AsyncGenerator[Event, None]:
    """message_start, then (unless nothing is generated) a block: start, ping, deltas, stop; then message_delta and
    message_stop. Usage in message_delta is of the whole message."""
    begun = Begun(0, 0, 0)
    meta: ir.Meta | None = None
    async with aclosing(opened(service, call, caller)) as outs:
        async for out in outs:
            if isinstance(out, Begun):
                begun = out
                usage = _usage(begun.prompt_tokens, begun.cached_tokens, 0)
                ends = {"stop_reason": None, "stop_sequence": None}
                yield _named("message_start", message={**_shell(caller, model), "content": [], **ends, "usage": usage})
                if call.generate:
                    block = {"type": "text", "text": ""}
                    yield _named("content_block_start", index=0, content_block=block)
                    yield _named("ping")
                continue
            if out.text:
                yield _named("content_block_delta", index=0, delta={"type": "text_delta", "text": out.text})
            meta = out.meta or meta
    if call.generate:
        yield _named("content_block_stop", index=0)
    cached = begun.cached_tokens if meta is None else meta.cached_tokens
    completion = 0 if meta is None else meta.completion_tokens
    yield _named("message_delta", delta=_stop(meta), usage=_usage(begun.prompt_tokens, cached, completion))
    yield _named("message_stop")
