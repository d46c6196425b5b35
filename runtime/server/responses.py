"""OpenAI's responses.

In: `POST /v1/responses`: text, or items, after an earlier response if one is named. Out: a response, or the events of
its making, numbered; it is kept for a while in memory, where the caller can read, continue and delete it.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.frontend import ir
from ramet.runtime.server import forms
from ramet.runtime.server.call import Begun, Call, Caller, Chat, Message
from ramet.runtime.server.conversation import ChatMessage, Part, chat_of
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.raw import opened
from ramet.runtime.server.recall import Kept, Recall
from ramet.runtime.server.sampling import given, sampling_of
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.status import check_model
from ramet.runtime.server.wire import Body, Event, StrictRoute, attended, caller_of, noted, reply, sse
from ramet.runtime.text import Tokenizer

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
_HINTS = frozenset(("reasoning", "max_tool_calls", "stream_options", "image", "access_programs"))


class Item(Body):
    """An item of the input: a message."""

    model_config = ConfigDict(strict=True)

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None


class ResponseRequest(Body):
    """A response."""

    model_config = ConfigDict(
        strict=True,
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
    tools: list[dict[str, Any]] | None = Field(default=None, description="not offered: an empty list or nothing")
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = Field(default=None, description='"disabled"; nothing is ever truncated')
    stream: bool | None = None
    cache_salt: str | None = Field(default=None, description="a prefix cache of its own")
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31, description="higher goes first")
    timeout: float | None = Field(default=None, description="seconds, the queue included")
    rid: str | None = Field(default=None, description="an id by which the request can be aborted")
    request_id: str | None = Field(default=None, description="the same")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request understood: the call, the conversation without its instructions, and what all states of the response
    have in common."""

    call: Call
    said: tuple[Message, ...]
    item: str
    base: dict[str, Any]
    tokenizer: Tokenizer
    logprobs: bool

    def state(self, status: str, **more: Any) -> dict[str, Any]:
        """The response in a state."""
        return {**self.base, "status": status, **more}

    def part(self, text: str, logs: list[dict[str, Any]]) -> dict[str, Any]:
        """The one part of the one output message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logs}

    def message(self, status: str, *content: dict[str, Any]) -> dict[str, Any]:
        """The one output message."""
        return {"id": self.item, "type": "message", "role": "assistant", "status": status, "content": list(content)}

    def logs(self, logs: tuple[ir.Logprob, ...]) -> list[dict[str, Any]]:
        """Logprobs of tokens, where they were asked for."""
        return forms.token_logprobs(self.tokenizer, logs) if self.logprobs else []

    def finished(self, text: str, meta: ir.Meta, usage: dict[str, Any]) -> dict[str, Any]:
        """The response, complete or cut by a limit."""
        cut = meta.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        return self.state(
            status,
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=[self.message(status, self.part(text, self.logs(meta.logprobs)))],
            usage=usage,
        )

    def kept(self, response: dict[str, Any], text: str) -> Kept:
        """What a later request goes on from."""
        chat = self.call.prompts[0]
        assert isinstance(chat, Chat), "a response has one prompt, a chat"
        said = self.said
        if chat.continue_final:
            said, text = said[:-1], said[-1].content + text
        return Kept(msgspec.json.encode(response), (*said, Message("assistant", text)))


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["openai"])
    recall = Recall(time.monotonic)

    @routes.post("/v1/responses")
    async def responses(body: ResponseRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer an input, or a conversation that goes on."""
        notes = noted(body, settings, ignored=forms.silent(body) | _HINTS | frozenset(_REFUSED))
        caller = forms.labelled(caller, given(body), service)
        asked, more = asked_of(body, service, settings, recall, caller)
        store = body.store is not False
        if body.stream:
            made = events(service, asked, caller, recall if store else None)
            return await sse(made, request, caller, done=None, notes=(*notes, *more))
        answer = await attended(request, service.complete(asked.call, caller))
        (completion,) = answer.prompts[0].completions
        usage = forms.response_usage(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens)
        response = asked.finished(completion.text, completion.meta, usage)
        if store:
            recall.keep(caller.namespace, response["id"], asked.kept(response, completion.text))
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
    body: ResponseRequest, service: Service, settings: Settings, recall: Recall, caller: Caller
) -> tuple[Asked, tuple[str, ...]]:
    """What a body asks for, and sentences about what was left out of it. Raises `Failure` 400, 404."""
    check_model(service, service.names[0] if body.model is None else body.model)
    fields = given(body)
    _refuse(body, fields)
    chat, notes = _input(body, service, settings)
    said = (*_previous(body, recall, caller), *chat.messages)
    leading = (Message("system", body.instructions),) if body.instructions else ()
    logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    sampling = sampling_of(
        {**fields, "max_tokens": body.max_output_tokens, "max_completion_tokens": None, "logprobs": logprobs},
        protocol="openai",
        default_max_tokens=None,
    )
    call = Call(
        prompts=(replace(chat, messages=(*leading, *said)),),
        sampling=sampling,
        salt=forms.salt_of(body.cache_salt),
        priority=body.priority or 0,
        timeout=forms.seconds_of(body.timeout),
    )
    base = _base(body, sampling, fields, body.model or service.names[0])
    return Asked(call, said, f"msg_{secrets.token_hex(16)}", base, service.tokenizer, logprobs), notes


def _refuse(body: ResponseRequest, fields: Mapping[str, Any]) -> None:
    forms.refuse_others(fields)
    for name, why in _REFUSED.items():
        value = fields.get(name)
        if value is not None and value is not False and not (name == "n" and value == 1):
            raise unsupported(name, f"`{name}` is not supported: {why}")
    if body.truncation not in (None, "disabled"):
        raise unsupported(
            "truncation", "`truncation` is not supported: a conversation is never cut; shorten it yourself"
        )
    kind = (body.text or {}).get("format")
    if kind is not None and kind != {"type": "text"}:
        text = '`text.format` is not supported: this server does not constrain output yet; {"type": "text"} is'
        raise unsupported("text.format", text)
    for name in body.include or ():
        if name not in _INCLUDES:
            raise bad(f"`include`: {name[:60]!r} is not known", "include")
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise bad(f"max_output_tokens={body.max_output_tokens}: must be at least 1", "max_output_tokens")
    pairs = (body.metadata or {}).items()
    if len(pairs) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in pairs):
        raise bad("`metadata` has at most 16 pairs, of 64 and 512 characters", "metadata")


def _input(body: ResponseRequest, service: Service, settings: Settings) -> tuple[Chat, tuple[str, ...]]:
    if isinstance(body.input, str):
        return Chat((Message("user", body.input),)), ()
    messages = []
    for n, item in enumerate(body.input):
        if item.type == "reasoning":
            continue  # of another model: no template shows it
        if item.type != "message":
            name = f"input[{n}]"
            raise unsupported(name, f"`{name}`: items of type {item.type[:40]!r} are not supported; send messages")
        if item.role is None:
            raise bad(f"`input[{n}].role` is required", f"input[{n}].role")
        messages.append(ChatMessage(role=item.role, content=item.content, **(item.model_extra or {})))
    return chat_of(messages, context=service.context, strict=settings.strict_requests, at="input")


def _previous(body: ResponseRequest, recall: Recall, caller: Caller) -> tuple[Message, ...]:
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
        "text": {"format": {"type": "text"}},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": [],
        "top_logprobs": max(0, sampling.logprobs),
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }


# -- a stream


async def events(service: Service, asked: Asked, caller: Caller, recall: Recall | None) -> AsyncGenerator[Event, None]:
    """The events of a response, in OpenAI's order. What fails before the first is raised; later failures are told by
    `error` and `response.failed`. `recall` keeps the response when it is whole."""
    number = iter(range(1 << 62))
    place = {"item_id": asked.item, "output_index": 0, "content_index": 0}

    def event(name: str, **fields: Any) -> Event:
        return Event(name, {"type": name, "sequence_number": next(number), **fields})

    texts: list[str] = []
    begun: Begun | None = None
    meta = ir.Meta()
    try:
        async with contextlib.aclosing(opened(service, asked.call, caller)) as outs:
            async for out in outs:
                if isinstance(out, Begun):
                    begun = out
                    yield event("response.created", response=asked.state("in_progress"))
                    yield event("response.in_progress", response=asked.state("in_progress"))
                    yield event("response.output_item.added", output_index=0, item=asked.message("in_progress"))
                    yield event("response.content_part.added", **place, part=asked.part("", []))
                    continue
                logs = asked.logs(out.logprobs)
                texts.append(out.text)
                if out.text or logs:
                    yield event("response.output_text.delta", **place, delta=out.text, logprobs=logs)
                meta = out.meta or meta
    except Failure as failure:
        if begun is None:
            raise
        error = {"code": "server_error", "message": failure.message}
        yield event("error", code=failure.code, message=failure.message, param=failure.param)
        yield event("response.failed", response=asked.state("failed", error=error))
        return
    assert begun is not None, "a call that ends well has begun"
    text = "".join(texts)
    usage = forms.response_usage(begun.prompt_tokens, meta.completion_tokens, meta.cached_tokens)
    response = asked.finished(text, meta, usage)
    (item,) = response["output"]
    (part,) = item["content"]
    if recall is not None:
        recall.keep(caller.namespace, response["id"], asked.kept(response, text))
    yield event("response.output_text.done", **place, text=text, logprobs=part["logprobs"])
    yield event("response.content_part.done", **place, part=part)
    yield event("response.output_item.done", output_index=0, item=item)
    yield event(f"response.{response['status']}", response=response)
