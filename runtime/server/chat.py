"""OpenAI's chat completions.

In: `POST /v1/chat/completions`. Out: one JSON answer, or a stream of chunks: the role of each choice, its text, its
finish reason, the usage. The same call as every other protocol's; messages go through the model's own chat template.
"""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import metadata
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.runtime.server import forms
from ramet.runtime.server.call import Call, Caller, Chat
from ramet.runtime.server.chat_answers import Shown, chunks, whole
from ramet.runtime.server.constraints import constraint_of, jump_of
from ramet.runtime.server.conversation import ChatMessage, chat_of
from ramet.runtime.server.failures import bad
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.nested import OPENAI
from ramet.runtime.server.sampling import count_of, given, limit_of, sampling_of
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.speech import Hearing, Manner
from ramet.runtime.server.status import check_model
from ramet.runtime.server.toolcalls import chat_offer
from ramet.runtime.server.wire import SSE, Body, StrictRoute, attended, caller_of, noted, reply, sse

Who = Depends(caller_of)


class StreamOptions(Body):
    """What a stream says besides its text."""

    include_usage: bool | None = Field(default=None, description="a last chunk with the usage of the whole request")
    continuous_usage_stats: bool | None = Field(default=None, description="the usage so far in every chunk")
    include_obfuscation: bool | None = Field(default=None, description="accepted; chunks are never padded")


class ChatCompletionRequest(Body):
    """A chat completion."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64}]
        },
    )

    messages: list[ChatMessage]
    model: str | None = Field(default=None, description="a served name (see /v1/models); left out: the model that is")
    max_completion_tokens: int | None = Field(default=None, description="left out: until a stop or the context's end")
    max_tokens: int | None = Field(default=None, description="older name of max_completion_tokens")
    n: int | None = Field(default=None, description="completions, 1 to 128; they share the prompt")
    temperature: float | None = Field(default=None, description="0 is greedy; left out: 1")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(default=None, description="token id to bias, -100 to 100")
    seed: int | None = Field(default=None, description="the same seed gives the same bits, whatever else runs")
    stop: str | list[str] | None = Field(default=None, description="up to 16 strings")
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = Field(default=None, description="leave the stop string in the text")
    no_stop_trim: bool | None = Field(default=None, description="the same")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, description="0 to 20; needs logprobs")
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    continue_final_message: bool | None = Field(default=None, description="go on with the last message")
    add_generation_prompt: bool | None = Field(default=None, description="false: begin no message of the assistant")
    response_format: dict[str, Any] | None = Field(default=None, description="text, json_object, json_schema, ...")
    tools: list[dict[str, Any]] | None = Field(default=None, description="functions, and custom tools; at most 128")
    tool_choice: Any = Field(default=None, description='"auto", "none", "required", or a tool')
    parallel_tool_calls: Any = Field(default=None, description="false: one call at most")
    functions: list[dict[str, Any]] | None = Field(default=None, description="the older name of tools")
    function_call: Any = Field(default=None, description="the older name of tool_choice")
    cache_salt: str | None = Field(default=None, description="a prefix cache of its own")
    extra_key: str | None = Field(default=None, description="SGLang's name of it")
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31, description="higher goes first")
    timeout: float | None = Field(default=None, description="seconds, the queue included")
    rid: str | None = Field(default=None, description="an id by which the request can be aborted")
    request_id: str | None = Field(default=None, description="the same")


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["openai"])
    fingerprint = f"ramet-{metadata.version('ramet')}"
    manner = Manner.of(service.template)

    @routes.post("/v1/chat/completions", responses=SSE)
    async def chat_completions(body: ChatCompletionRequest, request: Request, caller: Caller = Who) -> Response:
        """Complete a conversation."""
        notes = noted(body, settings, ignored=forms.silent(body), inside=OPENAI)
        if body.stream_options is not None:
            notes += noted(body.stream_options, settings)
        caller = forms.labelled(caller, given(body), service)
        call, hearing, more = call_of(body, manner, service, settings)
        more += await service.compiled(call)
        shown = replace(await shown_of(body, call, service, caller, fingerprint), hearing=hearing)
        if body.stream:
            return await sse(chunks(service, call, caller, shown), request, caller, notes=(*notes, *more))
        answer = await attended(request, service.complete(call, caller))
        return reply(whole(answer, shown), caller, (*notes, *more))

    return routes


def call_of(
    body: ChatCompletionRequest, manner: Manner, service: Service, settings: Settings
) -> tuple[Call, Hearing, tuple[str, ...]]:
    """The call that a body asks for, how what it says is read, and sentences about what was left out of it. Raises
    `Failure` 400, 404."""
    check_model(service, service.names[0] if body.model is None else body.model)
    fields = given(body)
    forms.refuse_others(fields, thinks=manner.thinking is not None)
    if body.stream_options is not None and not body.stream:
        raise bad("`stream_options` needs `stream`: true", "stream_options")
    chat, notes = chat_of(
        body.messages,
        context=service.context,
        continue_final=body.continue_final_message,
        begin_reply=body.add_generation_prompt,
        strict=settings.strict_requests,
        told=manner.told(),
    )
    chat, hearing = manner.hearing(chat, chat_offer(fields), constraint_of(fields), fields)
    sampling = sampling_of(fields, protocol="openai", default_max_tokens=None)
    if sampling.logprobs < 0 and body.stream_options is not None and body.stream_options.continuous_usage_stats:
        sampling = msgspec.structs.replace(sampling, logprobs=0)  # each piece of text then tells how many tokens it is
    call = Call(
        prompts=(chat,),
        sampling=sampling,
        n=count_of(body.n, "n"),
        salt=forms.salt_of(body.cache_salt, body.extra_key),
        priority=body.priority or 0,
        timeout=forms.seconds_of(body.timeout),
        jump=jump_of(fields),
        limit=limit_of(fields, "openai"),
        **hearing.held,
    )
    return call, hearing, notes


async def shown_of(
    body: ChatCompletionRequest, call: Call, service: Service, caller: Caller, fingerprint: str
) -> Shown:
    """What the answer shows."""
    options = body.stream_options or StreamOptions()
    chat = call.prompts[0]
    assert isinstance(chat, Chat), "a chat completion has one prompt, a chat"
    return Shown(
        id=f"chatcmpl-{caller.label}",
        model=body.model or service.names[0],
        created=int(time.time()),
        n=call.n,
        fingerprint=fingerprint,
        tokenizer=service.tokenizer,
        logprobs=bool(body.logprobs),
        as_ids=bool(body.return_tokens_as_token_ids),
        untrimmed=bool(body.include_stop_str_in_output or body.no_stop_trim),
        prompt_ids=await service.encode(chat) if body.return_token_ids else None,
        usage=bool(options.include_usage),
        continuous=bool(options.continuous_usage_stats),
    )
