"""OpenAI's chat completions.

In: `POST /v1/chat/completions`. Out: one JSON answer, or a stream of chunks: the role of each choice, its text, its
finish reason, the usage. The same call as every other protocol's; messages go through the model's own chat template.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.frontend import ir
from ramet.runtime.server import forms
from ramet.runtime.server.call import Answer, Begun, Call, Caller, Chat, Completion, Piece
from ramet.runtime.server.conversation import ChatMessage, chat_of
from ramet.runtime.server.failures import bad
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.raw import ending, opened
from ramet.runtime.server.sampling import count_of, given, sampling_of
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.shapes import usage
from ramet.runtime.server.status import check_model
from ramet.runtime.server.wire import Body, StrictRoute, attended, caller_of, noted, reply, sse
from ramet.runtime.text import Tokenizer

Who = Depends(caller_of)


class StreamOptions(Body):
    """What a stream says besides its text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = Field(default=None, description="a last chunk with the usage of the whole request")
    continuous_usage_stats: bool | None = Field(default=None, description="the usage so far in every chunk")
    include_obfuscation: bool | None = Field(default=None, description="accepted; chunks are never padded")


class ChatCompletionRequest(Body):
    """A chat completion."""

    model_config = ConfigDict(
        strict=True,
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
    response_format: dict[str, Any] | None = Field(default=None, description='{"type": "text"} or nothing')
    tools: list[dict[str, Any]] | None = Field(default=None, description="not offered: an empty list or nothing")
    cache_salt: str | None = Field(default=None, description="a prefix cache of its own")
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31, description="higher goes first")
    timeout: float | None = Field(default=None, description="seconds, the queue included")
    rid: str | None = Field(default=None, description="an id by which the request can be aborted")
    request_id: str | None = Field(default=None, description="the same")


@dataclass(frozen=True, slots=True)
class Shown:
    """What an answer shows besides text, and what all its chunks have in common."""

    id: str
    model: str
    created: int
    n: int
    fingerprint: str
    tokenizer: Tokenizer
    logprobs: bool = False
    as_ids: bool = False
    untrimmed: bool = False
    prompt_ids: tuple[int, ...] | None = None
    usage: bool = False
    continuous: bool = False

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that every answer and chunk begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def logs(self, logs: tuple[ir.Logprob, ...]) -> dict[str, Any] | None:
        """A choice's `logprobs`."""
        if not self.logprobs:
            return None
        content = forms.token_logprobs(self.tokenizer, logs, as_ids=self.as_ids)
        return {"content": content, "refusal": None}

    def end(self, meta: ir.Meta) -> dict[str, Any]:
        """How a choice ended. `stop_reason` (vLLM's) is null for an end token, `matched_stop` (SGLang's) is its id."""
        is_eos = isinstance(meta.matched, int) and meta.matched in self.tokenizer.eos
        ended: dict[str, Any] = {
            "finish_reason": "length" if meta.finish_reason == "length" else "stop",
            "stop_reason": None if is_eos else meta.matched,
            "matched_stop": meta.matched,
        }
        return ended if self.prompt_ids is None else {**ended, "token_ids": list(meta.tokens)}

    def tail(self, meta: ir.Meta) -> str:
        """The stop itself, for those who want it in the text."""
        return ending(self.tokenizer, meta, special=False) if self.untrimmed else ""


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["openai"])
    fingerprint = f"ramet-{metadata.version('ramet')}"

    @routes.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request, caller: Caller = Who) -> Response:
        """Complete a conversation."""
        notes = noted(body, settings, ignored=forms.silent(body))
        if body.stream_options is not None:
            notes += noted(body.stream_options, settings)
        caller = forms.labelled(caller, given(body), service)
        call, more = call_of(body, service, settings)
        shown = await shown_of(body, call, service, caller, fingerprint)
        if body.stream:
            return await sse(chunks(service, call, caller, shown), request, caller, notes=(*notes, *more))
        answer = await attended(request, service.complete(call, caller))
        return reply(whole(answer, shown), caller, (*notes, *more))

    return routes


def call_of(body: ChatCompletionRequest, service: Service, settings: Settings) -> tuple[Call, tuple[str, ...]]:
    """The call that a body asks for, and sentences about what was left out of it. Raises `Failure` 400, 404."""
    check_model(service, service.names[0] if body.model is None else body.model)
    fields = given(body)
    forms.refuse_others(fields)
    if body.stream_options is not None and not body.stream:
        raise bad("`stream_options` needs `stream`: true", "stream_options")
    chat, notes = chat_of(
        body.messages,
        context=service.context,
        continue_final=body.continue_final_message,
        begin_reply=body.add_generation_prompt,
        strict=settings.strict_requests,
    )
    sampling = sampling_of(fields, protocol="openai", default_max_tokens=None)
    if sampling.logprobs < 0 and body.stream_options is not None and body.stream_options.continuous_usage_stats:
        sampling = msgspec.structs.replace(sampling, logprobs=0)  # each piece of text then tells how many tokens it is
    call = Call(
        prompts=(chat,),
        sampling=sampling,
        n=count_of(body.n, "n"),
        salt=forms.salt_of(body.cache_salt),
        priority=body.priority or 0,
        timeout=forms.seconds_of(body.timeout),
    )
    return call, notes


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


# -- one answer


def whole(answer: Answer, shown: Shown) -> dict[str, Any]:
    """A `chat.completion`."""
    (answered,) = answer.prompts
    payload = {
        **shown.head("chat.completion"),
        "choices": [_choice(k, each, shown) for k, each in enumerate(answered.completions)],
        "usage": usage(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens),
    }
    return payload if shown.prompt_ids is None else {**payload, "prompt_token_ids": list(shown.prompt_ids)}


def _choice(index: int, completion: Completion, shown: Shown) -> dict[str, Any]:
    text = completion.text + shown.tail(completion.meta)
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": shown.logs(completion.meta.logprobs),
        **shown.end(completion.meta),
    }


# -- a stream


@dataclass(slots=True)
class _Spent:
    """Usage so far."""

    prompt: int = 0
    cached: int = 0
    hits: list[int] = field(default_factory=list)  # cached tokens of each finished choice
    generated: list[int] = field(default_factory=list)  # tokens of each choice

    def take(self, out: Begun | Piece) -> None:
        """Count an event. Until a choice ends, only tokens that came with logprobs are counted."""
        if isinstance(out, Begun):
            self.prompt, self.cached = out.prompt_tokens, out.cached_tokens
        elif out.meta is None:
            self.generated[out.choice] += len(out.logprobs)
        else:
            self.generated[out.choice] = out.meta.completion_tokens
            self.hits.append(out.meta.cached_tokens)
            if len(self.hits) == len(self.generated):
                self.cached = min(self.hits)  # the choice that computed the prompt says what it found

    def usage(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return usage(self.prompt, sum(self.generated), self.cached)


async def chunks(service: Service, call: Call, caller: Caller, shown: Shown) -> AsyncGenerator[dict[str, Any], None]:
    """`chat.completion.chunk`s: the role of each choice, then text as it comes, the last chunk of a choice with its
    finish reason, and the usage at the very end where it was asked for."""
    head, spent = shown.head("chat.completion.chunk"), _Spent(generated=[0] * call.n)

    def chunk(*choices: dict[str, Any]) -> dict[str, Any]:
        made = {**head, "choices": list(choices)}
        if shown.continuous:
            return {**made, "usage": spent.usage()}
        return {**made, "usage": None} if shown.usage else made

    async with contextlib.aclosing(opened(service, call, caller)) as outs:
        async for out in outs:
            spent.take(out)
            if isinstance(out, Begun):
                for index in range(call.n):
                    first = chunk(_delta(index, {"role": "assistant", "content": ""}))
                    known = index == 0 and shown.prompt_ids is not None
                    yield {**first, "prompt_token_ids": list(shown.prompt_ids or ())} if known else first
                continue
            for delta in _deltas(out, shown):
                yield chunk(delta)
    if shown.usage:
        yield {**head, "choices": [], "usage": spent.usage()}


def _deltas(piece: Piece, shown: Shown) -> list[dict[str, Any]]:
    """The choices that tell of a piece: its text, then its end."""
    found = []
    text = piece.text + (shown.tail(piece.meta) if piece.meta else "")
    logs = shown.logs(piece.logprobs) if piece.logprobs else None
    if text or logs:
        found.append(_delta(piece.choice, {"content": text}, logprobs=logs))
    if piece.meta is not None:
        found.append(_delta(piece.choice, {}, **shown.end(piece.meta)))
    return found


def _delta(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
