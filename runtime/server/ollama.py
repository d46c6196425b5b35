"""Ollama's protocol: `/api/chat` and `/api/generate`, and what its clients ask before them.

In: messages or a prompt, with `options`. Out: one JSON answer, or lines of JSON (the default); errors as
`{"error": "..."}`; times in nanoseconds. The same call as every other protocol's, with Ollama's defaults of sampling. A
prompt is never truncated, and the model is always loaded: `keep_alive` and options of loading change nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from ramet.frontend import ir
from ramet.runtime.server.call import Begun, Call, Caller, Chat, Message, Prompt
from ramet.runtime.server.compose import check_size
from ramet.runtime.server.dialect import DialectRoute, chat_of, opened, tool_call, tool_result
from ramet.runtime.server.failures import bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.ollama_bodies import (
    LOADING,
    Asked,
    ChatRequest,
    ChatTurn,
    GenerateRequest,
    Options,
    ShowRequest,
)
from ramet.runtime.server.sampling import given, refuse_constraints, sampling_of, whole
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.status import check_model
from ramet.runtime.server.vendor_errors import OLLAMA_FAILURES, ollama_error
from ramet.runtime.server.wire import attended, caller_of, headers_of, logprob, ndjson, noted, reply

Who = Depends(caller_of)
API = "0.12.11"  # Ollama's release whose protocol this is: clients compare it with what they need
LATEST = ":latest"  # a tag that clients add to names without one
FOREVER = "9999-12-31T23:59:59Z"
_NEUTRAL = {"mirostat": (0,), "tfs_z": (1,), "typical_p": (1,), "penalize_newline": (True,)}  # options that are off
_PENALTIES = ("repeat_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class _Job:
    """One request, understood. `shown` are the prompt's ids where the answer says them (`context`)."""

    call: Call
    caller: Caller
    model: str
    chat: bool
    shown: tuple[int, ...] | None = None

    def line(self, text: str, logs: Sequence[ir.Logprob] = ()) -> dict[str, Any]:
        """A line of the answer."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}
        line: dict[str, Any] = {"model": self.model, "created_at": _now(), **said, "done": False}
        return {**line, "logprobs": [_logprob(each) for each in logs]} if logs else line

    def last(self, meta: ir.Meta, seconds: float, text: str = "", logs: Sequence[ir.Logprob] = ()) -> dict[str, Any]:
        """The line that ends it (or, with `text`, is all of it)."""
        end = {**self.line(text, logs), "done": True, "done_reason": _REASONS[meta.finish_reason]}
        if self.shown is not None:
            end["context"] = [*self.shown, *meta.tokens]
        return {**end, **_counts(meta, seconds)}


_REASONS = {"stop": "stop", "length": "length", "abort": "stop"}


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=DialectRoute, prefix="/api", tags=["ollama"], responses=OLLAMA_FAILURES)
    _generation(routes, service, settings)
    _models(routes, service, settings)
    return routes


def _generation(routes: APIRouter, service: Service, settings: Settings) -> None:
    @routes.post("/chat")
    async def chat(body: ChatRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer a conversation."""
        notes = _checked(body, service, settings)
        refuse_constraints({"tools": body.tools})
        if not body.messages:
            return reply(_loaded(body, chat=True), caller, notes)
        said = [_message(turn, f"messages[{n}]") for n, turn in enumerate(body.messages)]
        call = Call((await chat_of(service, said),), _sampling(body))
        return await _answered(service, _Job(call, caller, body.model, chat=True), body, request, notes)

    @routes.post("/generate")
    async def generate(body: GenerateRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer a prompt."""
        notes = _checked(body, service, settings)
        _check_prompt(body)
        if not body.prompt:
            return reply(_loaded(body, chat=False), caller, notes)
        sampling = _sampling(body)
        shown = None if body.raw else await _templated(body, service)
        prompt: Prompt = body.prompt if shown is None else shown
        job = _Job(Call((prompt,), sampling), caller, body.model, chat=False, shown=shown)
        return await _answered(service, job, body, request, notes)


# -- in


def _checked(body: Asked, service: Service, settings: Settings) -> tuple[str, ...]:
    """Refuse what is not offered; sentences about what has no effect."""
    _known(service, body.model)
    refuse_constraints({**(body.model_extra or {}), "format": body.format})
    if body.think:
        raise unsupported("think", f"{body.model[:128]!r} does not support thinking; leave `think` out")
    notes = noted(body, settings)
    options = body.options or Options()
    extra = options.model_extra or {}
    refuse_constraints(extra)
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


def _known(service: Service, name: str) -> str:
    """The served name that `name` means. `Failure` 404."""
    plain = name.removesuffix(LATEST)
    chosen = plain if plain in service.names else name
    check_model(service, chosen)
    return chosen


def _sampling(body: Asked) -> ir.Sampling:
    fields = {} if body.options is None else given(body.options)
    if fields.get("repeat_last_n") == 0:
        fields |= dict.fromkeys(_PENALTIES)
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= ir.MAX_LOGPROBS:
        raise bad(f"top_logprobs={body.top_logprobs}: must be between 0 and {ir.MAX_LOGPROBS}", "top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else -1
    return sampling_of(fields, protocol="ollama", default_max_tokens=None, logprobs=logprobs)


def _message(turn: ChatTurn, place: str) -> Message:
    if turn.images:
        raise unsupported(f"{place}.images", f"`{place}.images`: the model reads text alone")
    if turn.role == "tool":
        return Message("user", tool_result(turn.content or ""))
    texts = [turn.content] if turn.content else []
    for call in turn.tool_calls or ():
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad(f"`{place}.tool_calls` have a `function` with a `name`", f"{place}.tool_calls")
        texts.append(tool_call(function["name"], function.get("arguments") or {}))
    return Message(turn.role, "\n".join(texts))


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


async def _templated(body: GenerateRequest, service: Service) -> tuple[int, ...]:
    """The prompt in the model's template, as ids. After a `context` come the end of the answer that it ends with and
    the new message: what a conversation has behind a user's and an assistant's message."""
    new = [Message("system", body.system)] if body.system else []
    new.append(Message("user", body.prompt or ""))
    before = [Message("user", ""), Message("assistant", "")] if body.context else []
    chat = await chat_of(service, [*before, *new])
    check_size(chat, service.context)
    ids = await service.encode(chat)
    if not body.context:
        return ids
    head = await service.encode(Chat((Message("user", ""),)))
    if ids[: len(head)] != head:
        raise unsupported("context", "`context` is not supported: this model's template changes what stands before it")
    return (*body.context, *ids[len(head) :])


# -- out


async def _answered(service: Service, job: _Job, body: Asked, request: Request, notes: Sequence[str]) -> Response:
    if body.stream is not False:
        response = await ndjson(_lines(service, job), request, job.caller, failed=lambda f: ollama_error(f, ""))
        response.headers.update(headers_of(job.caller, notes))
        return response
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await attended(request, service.complete(job.call, job.caller))
    done = answer.prompts[0].completions[0]
    last = job.last(done.meta, loop.time() - began, done.text, done.meta.logprobs)
    return reply(last, job.caller, notes)


async def _lines(service: Service, job: _Job) -> AsyncGenerator[dict[str, Any], None]:
    """The text as it comes, then a line of figures."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with aclosing(opened(service, job.call, job.caller)) as outs:
        async for out in outs:
            if isinstance(out, Begun):
                continue
            if out.text or out.logprobs:
                yield job.line(out.text, out.logprobs)
            if out.meta is not None:
                yield job.last(out.meta, loop.time() - began)


def _loaded(body: Asked, *, chat: bool) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return {"model": body.model, "created_at": _now(), **said, "done_reason": "load", "done": True}


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


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


# -- models


def _models(routes: APIRouter, service: Service, settings: Settings) -> None:
    since = _now()
    details = {
        "parent_model": "",
        "format": "",
        "family": "ramet",
        "families": ["ramet"],
        "parameter_size": "",
        "quantization_level": service.dtype,
    }

    def card(name: str) -> dict[str, Any]:
        """A model. Its digest is of its name, its size is not known here: 0."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        return {"name": name, "model": name, "size": 0, "digest": digest, "details": details}

    @routes.get("/version")
    async def version(caller: Caller = Who) -> Response:
        """The version of Ollama's protocol; beside it our own."""
        return reply({"version": API, "ramet": metadata.version("ramet")}, caller)

    @routes.get("/tags")
    async def tags(caller: Caller = Who) -> Response:
        """The names under which the model is served."""
        return reply({"models": [{**card(name), "modified_at": since} for name in service.names]}, caller)

    @routes.get("/ps")
    async def running(caller: Caller = Who) -> Response:
        """What is loaded: the same."""
        state = {"expires_at": FOREVER, "size_vram": 0, "context_length": service.context}
        return reply({"models": [{**card(name), **state} for name in service.names]}, caller)

    @routes.post("/show")
    async def show(body: ShowRequest, caller: Caller = Who) -> Response:
        """What is known of a model."""
        notes = noted(body, settings, ignored=("system", "template", "options"))
        name = _known(service, body.model or body.name or "")
        known = {
            "general.architecture": "ramet",
            "general.basename": name,
            "ramet.context_length": service.context,
            "ramet.vocab_size": service.vocab,
        }
        shown = {
            "modelfile": f"FROM {name}\n",
            "parameters": f"num_ctx {service.context}",
            "template": service.template.source,
            "details": details,
            "model_info": known,
            "capabilities": ["completion"],
            "modified_at": since,
        }
        return reply(shown, caller, notes)
