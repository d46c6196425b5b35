"""Ollama's protocol: `/api/chat` and `/api/generate`; what its clients ask before them is in `ollama_models`.

In: messages or a prompt, with `options`. Out: one JSON answer, or lines of JSON (the default); errors as
`{"error": "..."}`; times in nanoseconds. The same call as every other protocol's, with Ollama's defaults of sampling. A
prompt is never truncated, and the model is always loaded: `keep_alive` and options of loading change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from ramet.frontend import ir
from ramet.runtime.server.call import Call, Caller, Chat, Message, Piece, Prompt
from ramet.runtime.server.compose import check_size
from ramet.runtime.server.constraints import FIELDS, constraint_of, jump_of
from ramet.runtime.server.dialect import DialectRoute, chat_of
from ramet.runtime.server.failures import bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.nested import OLLAMA
from ramet.runtime.server.ollama_bodies import (
    LOADING,
    Asked,
    ChatRequest,
    ChatTurn,
    GenerateRequest,
    Options,
    leaves,
)
from ramet.runtime.server.ollama_models import models, now, served_name
from ramet.runtime.server.sampling import given, refuse_constraints, refuse_unoffered, sampling_of, whole
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.speech import Hearing, Manner, Said, Speech
from ramet.runtime.server.toolcalls import NOTHING, Offer, ollama_offer
from ramet.runtime.server.toolhistory import Told, ollama_calls
from ramet.runtime.server.vendor_errors import OLLAMA_FAILURES, ollama_error
from ramet.runtime.server.wire import NDJSON, Batches, attended, caller_of, headers_of, logprob, ndjson, noted, reply

Who = Depends(caller_of)
_NEUTRAL = {"mirostat": (0,), "tfs_z": (1,), "typical_p": (1,), "penalize_newline": (True,)}  # options that are off
_PENALTIES = ("repeat_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class _Job:
    """One request, understood. `shown` are the prompt's ids where the answer says them (`context`)."""

    call: Call
    hearing: Hearing
    caller: Caller
    model: str
    chat: bool
    shown: tuple[int, ...] | None = None

    def line(self, said: dict[str, Any], logs: Sequence[ir.Logprob] = ()) -> dict[str, Any]:
        """A line of the answer. `said` has a `content`, and what else there is: `thinking`, `tool_calls`."""
        shown = {"role": "assistant", **said}
        if not self.chat:
            shown = {"response": said["content"], **{name: each for name, each in said.items() if name != "content"}}
        told = {"message": shown} if self.chat else shown
        line: dict[str, Any] = {"model": self.model, "created_at": now(), **told, "done": False}
        return {**line, "logprobs": [_logprob(each) for each in logs]} if logs else line

    def last(
        self, meta: ir.Meta, seconds: float, said: dict[str, Any] | None = None, logs: Sequence[ir.Logprob] = ()
    ) -> dict[str, Any]:
        """The line that ends it (or, with `said`, is all of it)."""
        line = self.line(said or {"content": ""}, logs)
        end = {**line, "done": True, "done_reason": _REASONS[meta.finish_reason]}
        if self.shown is not None:
            end["context"] = [*self.shown, *meta.tokens]
        return {**end, **_counts(meta, seconds)}


_REASONS = {"stop": "stop", "length": "length", "abort": "stop"}


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=DialectRoute, prefix="/api", tags=["ollama"], responses=OLLAMA_FAILURES)
    _generation(routes, service, settings)
    models(routes, service, settings)
    return routes


def _generation(routes: APIRouter, service: Service, settings: Settings) -> None:
    manner = Manner.of(service.template)

    @routes.post("/chat", responses=NDJSON)
    async def chat(body: ChatRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer a conversation."""
        notes = _checked(body, manner, service, settings)
        if not body.messages:
            return reply(_loaded(body, chat=True), caller, notes)
        said = await chat_of(service, _messages(body.messages, manner.told()))
        said, hearing = _heard(body, said, ollama_offer({"tools": body.tools}), manner)
        job = _Job(_call(body, said, hearing), hearing, caller, body.model, chat=True)
        return await _answered(service, job, body, request, notes)

    @routes.post("/generate", responses=NDJSON)
    async def generate(body: GenerateRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer a prompt."""
        notes = _checked(body, manner, service, settings)
        _check_prompt(body)
        if not body.prompt:
            return reply(_loaded(body, chat=False), caller, notes)
        if body.raw:
            wanted = constraint_of(_fields(body))
            hearing = Hearing() if wanted is None else Hearing(constraint=wanted.constraint, field=wanted.field)
            job = _Job(_call(body, body.prompt, hearing), hearing, caller, body.model, chat=False)
        else:
            shown, hearing = await _templated(body, manner, service)
            job = _Job(_call(body, shown, hearing), hearing, caller, body.model, chat=False, shown=shown)
        return await _answered(service, job, body, request, notes)


# -- in


def _checked(body: Asked, manner: Manner, service: Service, settings: Settings) -> tuple[str, ...]:
    """Refuse what is not offered; sentences about what has no effect."""
    served_name(service, body.model)
    refuse_unoffered(body.model_extra or {})
    if body.think and manner.thinking is None:
        raise unsupported("think", f"{body.model[:128]!r} does not support thinking; leave `think` out")
    notes = noted(body, settings, ignored=FIELDS, inside=OLLAMA)
    options = body.options or Options()
    extra = options.model_extra or {}
    refuse_constraints(extra)  # they stand beside the options
    for name, harmless in _NEUTRAL.items():
        value = getattr(options, name)
        if value is not None and value not in harmless:
            raise unsupported(f"options.{name}", f"`options.{name}` is not supported; leave it out")
    if options.num_ctx is not None and whole(options.num_ctx, "num_ctx") > service.context:
        text = f"num_ctx={options.num_ctx}: the context that is served has {service.context} tokens; ask for less"
        raise bad(text, "options.num_ctx")
    if options.repeat_last_n and options.repeat_last_n > 0 and any(getattr(options, name) for name in _PENALTIES):
        notes += ("`options.repeat_last_n` has no effect: penalties see the whole text",)
    return notes + noted(options, settings, ignored=LOADING)


def _sampling(body: Asked) -> ir.Sampling:
    fields = {} if body.options is None else given(body.options)
    if fields.get("repeat_last_n") == 0:
        fields |= dict.fromkeys(_PENALTIES)
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= ir.MAX_LOGPROBS:
        raise bad(f"top_logprobs={body.top_logprobs}: must be between 0 and {ir.MAX_LOGPROBS}", "top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else -1
    return sampling_of(fields, protocol="ollama", default_max_tokens=None, logprobs=logprobs)


def _fields(body: Asked) -> dict[str, object]:
    """What may constrain the answer."""
    return {**(body.model_extra or {}), "format": body.format}


def _heard(body: Asked, chat: Chat, offer: Offer, manner: Manner) -> tuple[Chat, Hearing]:
    """The chat with its tools, and how its answer is read. A model that thinks does so unless it is told not to."""
    fields: dict[str, object] = {"thinking": {"type": "disabled"}} if body.think is False else {}
    return manner.hearing(chat, offer, constraint_of(_fields(body)), fields)


def _call(body: Asked, prompt: Prompt, hearing: Hearing) -> Call:
    jump = jump_of(body.model_extra or {})
    return Call((prompt,), _sampling(body), jump=jump, limit="options.num_predict", **hearing.held)


def _messages(messages: Sequence[ChatTurn], told: Told) -> tuple[Message, ...]:
    return told.joined([_message(turn, f"messages[{n}]", told) for n, turn in enumerate(messages)])


def _message(turn: ChatTurn, place: str, told: Told) -> Message:
    if turn.images:
        raise unsupported(f"{place}.images", f"`{place}.images`: the model reads text alone")
    if turn.role == "tool":
        return told.result(turn.content or "")
    if not turn.tool_calls:
        return Message(turn.role, turn.content or "")
    if turn.role != "assistant":
        raise bad(f"`{place}.tool_calls`: calls are made by the assistant", f"{place}.tool_calls")
    calls = ollama_calls(turn.tool_calls, f"{place}.tool_calls")
    return Message(turn.role, told.calls(turn.content or "", calls, place))


def _check_prompt(body: GenerateRequest) -> None:
    for name, why in (
        ("template", "the chat template is the model's own"),
        ("suffix", "the model does not insert"),
        ("images", "the model reads text alone"),
    ):
        if getattr(body, name):
            raise unsupported(name, f"`{name}` is not supported: {why}; leave it out")
    if body.raw and (body.system or body.context):
        raise bad("raw mode does not support template, system, or context", "raw")


async def _templated(body: GenerateRequest, manner: Manner, service: Service) -> tuple[tuple[int, ...], Hearing]:
    """The prompt in the model's template, as ids, and how its answer is read. After a `context` come the end of the
    answer that it ends with and the new message: what a conversation has behind a user's and an assistant's message."""
    new = [Message("system", body.system)] if body.system else []
    new.append(Message("user", body.prompt or ""))
    before = [Message("user", ""), Message("assistant", "")] if body.context else []
    chat, hearing = _heard(body, await chat_of(service, [*before, *new]), NOTHING, manner)
    check_size(chat, service.context)
    ids = await service.encode(chat)
    if not body.context:
        return ids, hearing
    head = await service.encode(Chat((Message("user", ""),)))
    if ids[: len(head)] != head:
        raise unsupported("context", "`context` is not supported: this model's template changes what stands before it")
    return (*body.context, *ids[len(head) :]), hearing


# -- out


async def _answered(service: Service, job: _Job, body: Asked, request: Request, notes: Sequence[str]) -> Response:
    notes = (*notes, *await service.compiled(job.call))
    if body.stream is not False:
        response = await ndjson(_lines(service, job), request, job.caller, failed=lambda f: ollama_error(f, ""))
        response.headers.update(headers_of(job.caller, notes))
        return response
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await attended(request, service.complete(job.call, job.caller))
    done = answer.prompts[0].completions[0]
    speech = job.hearing.speech()
    speech.push(done.text, last=True)
    last = job.last(done.meta, loop.time() - began, _said(speech.said), done.meta.logprobs)
    return reply(last, job.caller, notes)


def _said(said: Said) -> dict[str, Any]:
    """All of a message."""
    found: dict[str, Any] = {"content": said.content}
    if said.thoughts:
        found["thinking"] = said.reasoning
    calls = [each for n in range(len(said.calls)) for each in _made(said, n)]
    return {**found, "tool_calls": calls} if calls else found


def _made(said: Said, number: int) -> list[dict[str, Any]]:
    """A call as Ollama shows it, when it is over. One that the length cut has no arguments that are an object: it is
    left out, and the reason of the end tells why."""
    call = said.calls[number]
    try:
        arguments = msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        return []
    return [{"id": call.id, "function": {"index": number, "name": call.name, "arguments": arguments}}]


async def _lines(service: Service, job: _Job) -> Batches:
    """The text as it comes and each call when it is over, then a line of figures."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    speech = job.hearing.speech()
    async with aclosing(service.stream(job.call, job.caller)) as stream:
        async for outs in stream:
            lines = [
                line for out in outs if isinstance(out, Piece) for line in _told(job, speech, out, loop.time() - began)
            ]
            if lines:
                yield lines


def _told(job: _Job, speech: Speech, piece: Piece, seconds: float) -> Iterator[dict[str, Any]]:
    """The lines of a piece."""
    logs: Sequence[ir.Logprob] = piece.logprobs
    before = len(speech.said.calls)
    for part in speech.push(piece.text, last=piece.meta is not None):
        if part.kind in ("content", "reasoning"):
            said = {"content": part.text} if part.kind == "content" else {"content": "", "thinking": part.text}
            yield job.line(said, logs)
            logs = ()
    begun = len(speech.said.calls)  # of these, the last one is over when the text is
    done = range(max(0, before - 1), begun if piece.meta is not None else max(0, begun - 1))
    calls = [each for number in done for each in _made(speech.said, number)]
    if calls or logs:
        yield job.line({"content": "", "tool_calls": calls} if calls else {"content": ""}, logs)
    if piece.meta is not None:
        yield job.last(piece.meta, seconds)


def _loaded(body: Asked, *, chat: bool) -> dict[str, Any]:
    """The answer to a request that asks for no text. The model stays where it is: others use it."""
    said = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    reason = "unload" if leaves(body.keep_alive) else "load"
    return {"model": body.model, "created_at": now(), **said, "done_reason": reason, "done": True}


def _counts(meta: ir.Meta, seconds: float) -> dict[str, int]:
    """Tokens, and nanoseconds. The engine's own seconds are divided between prompt and text by steps, of which each
    token took one; never 0, since clients divide by them."""
    busy = max(0.0, meta.seconds - meta.queued_seconds)
    steps = max(meta.last_step - meta.first_step + 1, meta.completion_tokens) + 1
    text = busy * meta.completion_tokens / steps
    return {
        "total_duration": _nanoseconds(seconds),
        "load_duration": 0,
        "prompt_eval_count": meta.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(busy - text),
        "eval_count": meta.completion_tokens,
        "eval_duration": _nanoseconds(text),
        "cached_tokens": meta.cached_tokens,
    }


def _nanoseconds(seconds: float) -> int:
    return max(1, round(seconds * 1e9))


def _logprob(log: ir.Logprob) -> dict[str, Any]:
    top = [{"token": text, "logprob": logprob(value)} for _, text, value in log.top]
    return {"token": log.text, "logprob": logprob(log.logprob), **({"top_logprobs": top} if top else {})}
