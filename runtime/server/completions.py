"""OpenAI's completions: `POST /v1/completions`, with vLLM's additions.

In: text or token ids, one or many, and how to go on. Out: OpenAI's `text_completion` objects, choices in order of
prompts, streams of them. With `echo` and `logprobs` the prompt's own tokens are scored: that is how lm-eval measures.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.frontend import ir
from ramet.runtime.server import forms, raw
from ramet.runtime.server.call import Answer, Answered, Begun, Call, Caller, Completion, Scoring
from ramet.runtime.server.constraints import FIELDS, constraint_of, jump_of
from ramet.runtime.server.failures import bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.sampling import (
    UNOFFERED,
    count_of,
    given,
    length_of,
    limit_of,
    refuse_tools,
    refuse_unoffered,
    sampling_of,
)
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.shapes import Choice, Look, prompt_table, usage
from ramet.runtime.server.status import check_model
from ramet.runtime.server.wire import SSE, Batches, Body, StrictRoute, attended, caller_of, extended, noted, reply, sse

Who = Depends(caller_of)
DEFAULT_LENGTH = 16
Known = tuple[tuple[int, ...], str]  # of a prompt: its ids, where they are shown; its text, where it is echoed
_NO_EFFECT = frozenset(("user", "metadata", "store", "service_tier", "spaces_between_special_tokens"))


class StreamOptions(Body):
    """What a stream tells besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Completions(Body):
    """A completion, as OpenAI's clients ask for it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}]},
    )
    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    best_of: int | None = None
    echo: bool | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool = True
    parse_special: bool = Field(default=False, description="names of control tokens in `prompt` are these tokens")
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    cache_salt: str | None = None
    extra_key: str | None = Field(default=None, description="SGLang's name of cache_salt")
    rid: str | None = Field(default=None, description="an id by which the request can be aborted")
    request_id: str | None = Field(default=None, description="the same")
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31)
    timeout: float | None = Field(default=None, gt=0, description="seconds, the time in the queue included")


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["OpenAI"])

    @routes.post("/v1/completions", responses=SSE)
    async def completions(body: Completions, request: Request, caller: Caller = Who) -> Response:
        """Go on from a prompt, or from many."""
        notes = noted(body, settings, ignored=FIELDS | UNOFFERED | _NO_EFFECT)
        if body.stream_options is not None:
            notes += noted(body.stream_options, settings)
        caller = forms.labelled(caller, given(body), service)
        if body.model is not None:
            check_model(service, body.model)
        look = look_of(body)
        call = await call_of(body, service, look)
        notes += await service.compiled(call)
        known = await _known(body, call, service, look)
        head = {
            "id": f"cmpl-{caller.label}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model or service.names[0],
            "system_fingerprint": None,
        }
        if body.stream:
            return await sse(streamed(service, call, caller, look, known, head), request, caller, notes=notes)
        answer = await attended(request, service.complete(call, caller))
        told = await raw.written(_rows(answer, look), lambda: whole(service, answer, look, known))
        return reply({**head, **told}, caller, notes)

    return routes


# -- in


def look_of(body: Completions) -> Look:
    """What the answer shows. Raises `Failure` 400 for what cannot be shown."""
    refuse_unoffered(given(body))
    refuse_tools(given(body))
    if body.suffix:
        raise unsupported("suffix", "`suffix` is not supported: the model only continues text; leave it out")
    stream = bool(body.stream)
    n = count_of(body.n, "n")
    best = count_of(body.best_of, "best_of", default=n)
    if best < n:
        raise bad(f"best_of={best}: must be at least n={n}", "best_of")
    if stream and best > n:
        raise bad("best_of: a stream cannot be ranked; leave best_of out, or stream", "best_of")
    if stream and body.prompt_logprobs is not None:
        raise bad("`prompt_logprobs` is not given in a stream; leave one of them out", "prompt_logprobs")
    if body.prompt_logprobs is not None and not 0 <= body.prompt_logprobs <= ir.MAX_LOGPROBS:
        what = f"prompt_logprobs={body.prompt_logprobs}: must be between 0 and {ir.MAX_LOGPROBS}"
        raise bad(what, "prompt_logprobs")
    special = body.skip_special_tokens is False
    if special and stream:
        why = "`skip_special_tokens`: false is not supported in a stream; use return_token_ids"
        raise unsupported("skip_special_tokens", why)
    options = body.stream_options or StreamOptions()
    if body.stream_options is not None and not stream:
        raise bad("`stream_options` needs `stream`: true", "stream_options")
    return Look(
        n=n,
        best=best,
        echo=bool(body.echo),
        logprobs=body.logprobs,
        prompt_logprobs=body.prompt_logprobs,
        ids=bool(body.return_token_ids),
        names=bool(body.return_tokens_as_token_ids),
        special=special,
        untrimmed=bool(body.include_stop_str_in_output),
        usage=bool(options.include_usage),
        counting=bool(options.continuous_usage_stats),
        stream=stream,
    )


async def call_of(body: Completions, service: Service, look: Look) -> Call:
    """The call that a body asks for."""
    fields = given(body)
    prompts = await _prompts(body, service)
    default = await raw.room(service, prompts, DEFAULT_LENGTH)
    length = length_of(fields, protocol="openai", default=default)
    sampling = sampling_of(fields, protocol="openai", default_max_tokens=default, allow_zero=True)
    told = look.best > look.n or (look.stream and (look.ids or look.counting))
    if told:  # of every token the engine has to tell: the logprobs rank, or the ids are counted
        sampling = msgspec.structs.replace(sampling, logprobs=max(0, sampling.logprobs))
    look.ends = () if sampling.ignore_eos else service.tokenizer.eos
    if look.echo and look.logprobs is not None and sampling.max_tokens == 1 and length != 0:
        # A first token that ends the text has a place in `logprobs` too (lm-eval drops the last place, whatever it
        # is), so it is sampled as a token like others; `Choice` says "stop" for it.
        sampling = msgspec.structs.replace(sampling, ignore_eos=True)
    wanted = constraint_of(fields)
    scored = [top for top in (look.logprobs if look.echo else None, look.prompt_logprobs) if top is not None]
    return Call(
        prompts,
        sampling,
        n=look.best,
        generate=length != 0,
        scoring=Scoring(0, max(scored)) if scored else None,
        salt=forms.salt_of(body.cache_salt, body.extra_key),
        priority=body.priority or 0,
        timeout=body.timeout,
        constraint=None if wanted is None else wanted.constraint,
        jump=jump_of(fields),
        field="" if wanted is None else wanted.field,
        limit=limit_of(fields, "openai"),
    )


async def _prompts(body: Completions, service: Service) -> tuple[Any, ...]:
    if body.prompt is None:  # "as if from the beginning of a new document"
        tokenizer = service.tokenizer
        first = tokenizer.eos[:1] if tokenizer.bos is None else (tokenizer.bos,)
        if not first:
            raise bad("`prompt` is required", "prompt")
        return (first,)
    texts, _ = raw.split(body.prompt, "prompt")
    prompts = await raw.encoded(service, texts, "prompt", special=body.parse_special, bos=body.add_special_tokens)
    for prompt in prompts:
        raw.refuse_empty(service, prompt, "prompt")
    return prompts


async def _known(body: Completions, call: Call, service: Service, look: Look) -> list[Known]:
    """What is shown of each prompt."""
    texts = [] if body.prompt is None else raw.split(body.prompt, "prompt")[0]
    found: list[Known] = []
    for n, prompt in enumerate(call.prompts):
        ids = prompt if isinstance(prompt, tuple) else ()
        if isinstance(prompt, str) and look.ids:
            ids = await raw.ids_of(service, prompt, special=False, bos=True)
        text = texts[n] if texts else ids
        found.append((ids, text if isinstance(text, str) else await service.decode(ids) if look.echo else ""))
    return found


# -- out


def whole(service: Service, answer: Answer, look: Look, known: list[Known]) -> dict[str, Any]:
    """Choices and usage of a whole answer."""
    choices: list[dict[str, Any]] = []
    for prompt, answered in enumerate(answer.prompts):
        for rank, done in enumerate(_best(answered, look)):
            choice = Choice(service, look, prompt * look.n + rank, answered.begun, *known[prompt])
            written = choice.whole(done)
            if look.prompt_logprobs is not None:
                written["prompt_logprobs"] = prompt_table(service, answered.begun, look.prompt_logprobs)
            choices.append(written)
    return {
        "choices": choices,
        "usage": usage(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens, answer.forced_tokens),
    }


def _rows(answer: Answer, look: Look) -> int:
    """Tokens that `whole` tells of one by one, the prompt's as text at least."""
    told = answer.prompt_tokens if look.echo or look.prompt_logprobs is not None else 0
    return told + sum(len(done.meta.logprobs) for answered in answer.prompts for done in answered.completions)


def _best(answered: Answered, look: Look) -> list[Completion]:
    """The completions that are shown: of `best_of` those of the highest mean logprob, best first."""
    if not answered.completions:  # nothing was generated
        return [Completion("", ir.Meta(finish_reason="length"))] * look.n
    if look.best == look.n:
        return list(answered.completions)

    def mean(done: Completion) -> float:
        known = [each.logprob for each in done.meta.logprobs if not math.isnan(each.logprob)]
        return sum(known) / len(known) if known else 0.0  # all of it was forced: there was no choice

    return sorted(answered.completions, key=mean, reverse=True)[: look.n]


def _opened(choices: Sequence[Choice], closed: bool) -> list[dict[str, Any]]:
    return [choice.opened(closed=closed) for choice in choices]


async def streamed(
    service: Service,
    call: Call,
    caller: Caller,
    look: Look,
    known: list[Known],
    head: dict[str, Any],
) -> Batches:
    """Chunks of all choices as they come; the last one, when it is asked for, has no choices and the usage."""
    choices: dict[tuple[int, int], Choice] = {}
    totals = [0, 0, 0, 0]  # prompt, completion, cached, forced tokens
    begin = msgspec.json.encode(head)

    def chunk(written: list[dict[str, Any]], told: bool) -> bytes:
        event: dict[str, Any] = {"choices": written}
        if look.usage or look.counting:
            event["usage"] = usage(*totals) if told else None
        return extended(begin, event)

    async with contextlib.aclosing(service.stream(call, caller)) as stream:
        async for outs in stream:
            made: list[bytes] = []
            for out in outs:
                if isinstance(out, Begun):
                    totals[0] += out.prompt_tokens
                    totals[2] += out.cached_tokens
                    mine = [
                        Choice(service, look, out.prompt * look.n + k, out, *known[out.prompt]) for k in range(look.n)
                    ]
                    choices |= {(out.prompt, k): choice for k, choice in enumerate(mine)}
                    if look.echo or not call.generate:
                        first = await raw.written(out.prompt_tokens, partial(_opened, mine, not call.generate))
                        made.append(chunk(first, look.counting))
                    continue
                choice = choices[out.prompt, out.choice]
                before = choice.made
                written = choice.grown(out)
                totals[1] += choice.made - before
                totals[3] += 0 if out.meta is None else out.meta.forced_tokens
                made.append(chunk([written], look.counting))
            if made:
                yield made
    if look.usage:
        yield [chunk([], True)]
