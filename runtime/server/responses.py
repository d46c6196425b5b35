"""OpenAI's responses.

In: `POST /v1/responses`: text, or items, after an earlier response if one is named. Out: a response, or the events of
its making, numbered; it is kept for a while in memory, where the caller can read, continue and delete it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field, ValidationError

from ramet.frontend import ir
from ramet.runtime.server import forms
from ramet.runtime.server.call import Call, Caller, Chat, Message
from ramet.runtime.server.constraints import constraint_of, jump_of
from ramet.runtime.server.conversation import ChatMessage, Part, chat_of
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.nested import RESPONSES
from ramet.runtime.server.recall import Recall
from ramet.runtime.server.response_answers import Asked, events, whole
from ramet.runtime.server.sampling import given, sampling_of
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.speech import Manner
from ramet.runtime.server.status import check_model
from ramet.runtime.server.toolcalls import response_offer
from ramet.runtime.server.toolhistory import Ledger, Told
from ramet.runtime.server.wire import SSE, Body, StrictRoute, attended, caller_of, noted, reply, sse, unfinished

Who = Depends(caller_of)
LOGPROBS = "message.output_text.logprobs"
_INCLUDES = frozenset(  # what may be asked to be included; all but the first belong to tools and to reasoning
    (
        LOGPROBS,
        "reasoning.encrypted_content",
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    )
)
_REFUSED: Mapping[str, str] = {
    "background": "ask for a stream, or wait for the answer",
    "conversation": "use previous_response_id",
    "prompt": "prompts are not kept here; send their text",
    "context_management": "nothing is ever left out of a conversation",
    "n": "a response is one; /v1/chat/completions has `n`",
}
# items of calls and of their outputs → the type of the call and its field
_MADE = {"function_call": ("function", "arguments"), "custom_tool_call": ("custom", "input")}
_OUTPUTS = frozenset(("function_call_output", "custom_tool_call_output"))
_HINTS = frozenset(("reasoning", "max_tool_calls", "stream_options", "image", "access_programs"))


class Item(Body):
    """An item of the input: a message, a call of a tool that was made, or its output."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None


class ResponseRequest(Body):
    """A response."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": "Why is the sky blue?", "max_output_tokens": 64}]},
    )

    input: str | list[Item]
    model: str | None = Field(default=None, description="a served name (see /v1/models); left out: the model that is")
    instructions: str | None = Field(default=None, description="the system message, of this response alone")
    previous_response_id: str | None = Field(default=None, description="a kept response to go on from")
    store: bool | None = Field(default=None, description="false: do not keep it")
    max_output_tokens: int | None = Field(default=None, description="left out: until a stop or the context's end")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(default=None, description="0 to 20")
    text: dict[str, Any] | None = Field(default=None, description='{"format": {"type": "text"}} or nothing')
    tools: list[dict[str, Any]] | None = Field(default=None, description="functions, and custom tools; at most 128")
    tool_choice: Any = Field(default=None, description='"auto", "none", "required", or a tool')
    parallel_tool_calls: bool | None = Field(default=None, description="false: one call at most")
    metadata: dict[str, str] | None = None
    truncation: str | None = Field(default=None, description='"disabled"; nothing is ever truncated')
    stream: bool | None = None
    cache_salt: str | None = Field(default=None, description="a prefix cache of its own")
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31, description="higher goes first")
    timeout: float | None = Field(default=None, description="seconds, the queue included")
    rid: str | None = Field(default=None, description="an id by which the request can be aborted")
    request_id: str | None = Field(default=None, description="the same")


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["openai"])
    recall = Recall(time.monotonic)
    manner = Manner.of(service.template)

    @routes.post("/v1/responses", responses=SSE)
    async def responses(body: ResponseRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer an input, or a conversation that goes on."""
        notes = noted(body, settings, ignored=forms.silent(body) | _HINTS | frozenset(_REFUSED), inside=RESPONSES)
        caller = forms.labelled(caller, given(body), service)
        asked, more = asked_of(body, manner, service, settings, recall, caller)
        more += await service.compiled(asked.call)
        store = body.store is not False
        if body.stream:
            made = events(service, asked, caller, recall if store else None, partial(unfinished, request.scope))
            return await sse(made, request, caller, done=None, notes=(*notes, *more))
        response, kept = whole(await attended(request, service.complete(asked.call, caller)), asked)
        if store:
            recall.keep(caller.namespace, response["id"], kept)
        return reply(response, caller, (*notes, *more))

    @routes.get("/v1/responses/{id}")
    async def response(id: str, caller: Caller = Who, stream: bool = False) -> Response:
        """A response that is kept."""
        if stream:
            raise unsupported("stream", "a kept response is not streamed again; leave `stream` out")
        found = recall.find(caller.namespace, id)
        if found is None:
            raise _missing(id)
        return reply(msgspec.Raw(found.response), caller)

    @routes.delete("/v1/responses/{id}")
    async def delete_response(id: str, caller: Caller = Who) -> Response:
        """Forget a response."""
        if not recall.forget(caller.namespace, id):
            raise _missing(id)
        return reply({"id": id, "object": "response", "deleted": True}, caller)

    return routes


def _missing(id: str) -> Failure:
    return Failure(
        404, f"there is no response {id[:80]!r}; responses are kept for an hour", code="not_found", param="id"
    )


# -- in


def asked_of(
    body: ResponseRequest, manner: Manner, service: Service, settings: Settings, recall: Recall, caller: Caller
) -> tuple[Asked, tuple[str, ...]]:
    """What a body asks for, and sentences about what was left out of it. Raises `Failure` 400, 404."""
    check_model(service, service.names[0] if body.model is None else body.model)
    fields = given(body)
    _refuse(body, fields, thinks=manner.thinking is not None)
    told = manner.told()
    before = _previous(body, recall, caller, told.ledger)
    chat, notes = _input(body, told, service, settings)
    said = (*before, *chat.messages)
    leading = (Message("system", body.instructions),) if body.instructions else ()
    logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    sampling = sampling_of({**fields, "logprobs": logprobs}, protocol="responses", default_max_tokens=None)
    spelled = {**fields, "text.format": (body.text or {}).get("format")}
    chat, hearing = manner.hearing(
        replace(chat, messages=(*leading, *said)), response_offer(fields), constraint_of(spelled), fields
    )
    call = Call(
        prompts=(chat,),
        sampling=sampling,
        salt=forms.salt_of(body.cache_salt),
        priority=body.priority or 0,
        timeout=forms.seconds_of(body.timeout),
        jump=jump_of(fields),
        limit="max_output_tokens",
        **hearing.held,
    )
    base = _base(body, sampling, fields, body.model or service.names[0])
    return Asked(call, hearing, said, told.ledger.calls, base, service.tokenizer, logprobs), notes


def _refuse(body: ResponseRequest, fields: Mapping[str, Any], *, thinks: bool) -> None:
    forms.refuse_others(fields, thinks=thinks)
    for name, why in _REFUSED.items():
        value = fields.get(name)
        if value is not None and value is not False and not (name == "n" and value == 1):
            raise unsupported(name, f"`{name}` is not supported: {why}")
    if body.truncation not in (None, "disabled"):
        raise unsupported(
            "truncation", "`truncation` is not supported: a conversation is never cut; shorten it yourself"
        )
    for name in body.include or ():
        if name not in _INCLUDES:
            raise bad(f"`include`: {name[:60]!r} is not known", "include")
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise bad(f"max_output_tokens={body.max_output_tokens}: must be at least 1", "max_output_tokens")
    pairs = (body.metadata or {}).items()
    if len(pairs) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in pairs):
        raise bad("`metadata` has at most 16 pairs, of 64 and 512 characters", "metadata")


def _input(body: ResponseRequest, told: Told, service: Service, settings: Settings) -> tuple[Chat, tuple[str, ...]]:
    if isinstance(body.input, str):
        return Chat((Message("user", body.input),)), ()
    messages: list[ChatMessage] = []
    places: list[str] = []
    for n, item in enumerate(body.input):
        if item.type == "reasoning":
            continue  # of another turn: no template shows it
        made = _message(item, f"input[{n}]")
        calls = made.tool_calls
        if calls and messages and messages[-1].role == "assistant":  # one message of the model's is several items here
            messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), *calls]
            continue
        messages.append(made)
        places.append(f"input[{n}]")
    return chat_of(
        messages, context=service.context, strict=settings.strict_requests, at="input", told=told, places=places
    )


def _message(item: Item, at: str) -> ChatMessage:
    """An item of a history as a message of a chat's."""
    extra = item.model_extra or {}
    if item.type == "message":
        if item.role is None:
            raise bad(f"`{at}.role` is required", f"{at}.role")
        if not isinstance(extra.get("tool_calls"), list | None):
            raise bad(f"`{at}.tool_calls` must be a list", f"{at}.tool_calls")
        return ChatMessage(role=item.role, content=item.content, **extra)
    if item.type in _MADE:
        kind, field = _MADE[item.type]
        for name in ("call_id", "name", field):
            if not isinstance(extra.get(name), str) or not (extra[name] or name == field):
                raise bad(f"`{at}.{name}` is required, a string", f"{at}.{name}")
        call = {"id": extra.get("call_id"), "type": kind, kind: {"name": extra.get("name"), field: extra.get(field)}}
        return ChatMessage(role="assistant", tool_calls=[call])
    if item.type in _OUTPUTS:
        try:
            result = Item.model_validate({"content": extra.get("output")})
        except ValidationError:
            raise bad(f"`{at}.output` is required, a string or a list of parts of text", f"{at}.output") from None
        return ChatMessage(role="tool", content=result.content, tool_call_id=extra.get("call_id"))
    raise unsupported(
        at, f"`{at}`: items of type {item.type[:40]!r} are not supported; send messages, calls and outputs"
    )


def _previous(body: ResponseRequest, recall: Recall, caller: Caller, ledger: Ledger) -> tuple[Message, ...]:
    name = body.previous_response_id
    if name is None:
        return ()
    found = recall.find(caller.namespace, name)
    if found is None:
        raise bad(
            f"there is no response {name[:80]!r} to go on from; they are kept for an hour, unless `store` is false",
            "previous_response_id",
            "previous_response_not_found",
        )
    for call, tool in found.calls:
        ledger.made(call, tool)
    return found.messages


def _base(body: ResponseRequest, sampling: ir.Sampling, fields: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What stays the same from the first event to the last."""
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": [_shown_tool(tool) for tool in body.tools or ()],
        "top_logprobs": max(0, sampling.logprobs),
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"strict": None, "parameters": None, **tool} if tool.get("type") == "function" else tool
