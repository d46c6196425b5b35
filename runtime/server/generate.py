"""SGLang's native protocol: `POST /generate`.

In: text or token ids, one or many, with `sampling_params`. Out: SGLang's answers: text, `meta_info`, logprobs of the
prompt and of the completion; streams of cumulative text. What follows is of SGLang's published clients: a batch is
answered by a list, `n` choices of a prompt stand side by side in it, `max_new_tokens` 0 caches (and scores) a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.frontend import ir
from ramet.runtime.server import forms, raw
from ramet.runtime.server.call import Call, Caller, Scoring
from ramet.runtime.server.constraints import FIELDS, Wanted, constraint_of, jump_of
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.generated import Job, One, Shown, answered, streamed
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.sampling import (
    count_of,
    given,
    length_of,
    refuse_tools,
    refuse_unoffered,
    sampling_of,
    whole,
)
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.wire import SSE, Body, StrictRoute, attended, caller_of, noted, reply, sse

Who = Depends(caller_of)
Value = TypeVar("Value")
DEFAULT_LENGTH = 128
MAX_LABEL = 256  # characters of a rid
FARTHEST = 1 << 30  # a position behind every prompt
# Fields of SGLang's that change nothing here, whatever they are.
_NO_EFFECT = ("log_metrics", "model", "background", "stream_interval", "modalities", "data_parallel_rank")


class SamplingParams(Body):
    """How to sample, in SGLang's names. `max_new_tokens` null: until a stop or the end of the context. At most one of
    `json_schema`, `regex`, `ebnf` and `structural_tag`; OpenAI's and vLLM's names for them are known too."""

    max_new_tokens: int | None = Field(default=DEFAULT_LENGTH, examples=[32])
    min_new_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    temperature: float | None = Field(default=None, examples=[0])
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    json_schema: Any = Field(default=None, description="a schema, or its JSON text; $$ANY$$: any object")
    regex: Any = Field(default=None, description="the whole text matches it, as Python's re.fullmatch reads it")
    ebnf: Any = Field(default=None, description="a grammar: `root ::= ...`")
    structural_tag: Any = None
    jump: Any = Field(default=None, description="of text that is known: canonical, exact or off")
    stop_regex: Any = None
    custom_params: Any = None


class Generate(Body):
    """One prompt or many, and how to go on from each. Fields that are lists have one item for each prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": "The capital of France is", "sampling_params": {"max_new_tokens": 8}}]
        },
    )
    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: SamplingParams | list[SamplingParams] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool | None] | None = None
    logprob_start_len: int | list[int | None] | None = None
    top_logprobs_num: int | list[int | None] | None = None
    token_ids_logprob: Any = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    incremental_streaming_output: bool | None = None
    priority: int | None = None
    extra_key: str | list[str | None] | None = None
    cache_salt: str | None = None
    timeout: float | None = Field(default=None, gt=0, description="seconds, the time in the queue included")
    parse_special: bool = Field(default=False, description="names of control tokens in `text` are these tokens")
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    input_embeds: Any = None
    lora_path: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None
    return_hidden_states: Any = None


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["SGLang"])

    @routes.post("/generate", responses=SSE)
    async def generate(body: Generate, request: Request, caller: Caller = Who) -> Response:
        """Go on from a prompt, or from many."""
        notes = list(noted(body, settings, ignored=_NO_EFFECT))
        for params in _listed(body.sampling_params):
            notes += noted(params, settings, ignored=FIELDS.union(_NO_EFFECT))
        ones, n, many = await asked(body, service, caller)
        jobs = list(jobs_of(ones, n, body, caller))
        for job in jobs:
            notes += await service.compiled(job.call)
        if body.stream:
            events = streamed(service, ones, jobs, n=n, deltas=bool(body.incremental_streaming_output))
            return await sse(events, request, caller, notes=notes)
        answers = await attended(request, answered(service, ones, jobs, n))
        return reply(answers if many else answers[0], caller, notes)

    return routes


async def asked(body: Generate, service: Service, caller: Caller) -> tuple[list[One], int, bool]:
    """The prompts of a request with all that is asked of each; choices per prompt; whether the answer is a list."""
    _refuse(given(body))
    if body.token_ids_logprob:
        raise unsupported("token_ids_logprob", "`token_ids_logprob` is not supported; use top_logprobs_num")
    texts, many = _prompts(body)
    count = len(texts)
    name = "text" if body.text is not None else "input_ids"
    prompts = await raw.encoded(service, texts, name, special=body.parse_special)
    params = spread(body.sampling_params, count, "sampling_params", SamplingParams())
    counts = {count_of(each.n, "n") for each in params}
    if len(counts) > 1:
        raise bad("`sampling_params`: n must be the same for all prompts of a request", "n")
    (n,) = counts
    shown = [_shown(body, each, many or n > 1) for each in params]
    wanted = {id(each): _held(each) for each in params}  # one object may be that of all prompts
    logs = spread(body.return_logprob, count, "return_logprob", False)
    tops = spread(body.top_logprobs_num, count, "top_logprobs_num", 0)
    starts = spread(body.logprob_start_len, count, "logprob_start_len", None)
    keys: list[str | None] = spread(body.extra_key, count, "extra_key", None)
    salts = [forms.salt_of(body.cache_salt or None, key) for key in keys]
    ids, labels = _labels(body, caller, count, service)
    ones = []
    for i, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
        default = await raw.room(service, [prompt], DEFAULT_LENGTH)
        sampling, length = _sampling(each, tops[i] if logs[i] else -1, default)
        zero = length == 0
        if not zero:
            raw.refuse_empty(service, prompt, name)
        start = _start(starts[i], is_ids=body.text is None, zero=zero) if logs[i] else None
        scoring = None if start is None else Scoring(start, max(0, tops[i]))
        look = replace(shown[i], rid=ids[i], logprobs=logs[i], tops=logs[i] and tops[i] > 0)
        held = wanted[id(each)]
        ones.append(One(prompt, look, sampling, not zero, scoring, salts[i], labels[i], *held))
    return ones, n, many or n > 1


def _refuse(fields: Mapping[str, object]) -> None:
    """Raise `Failure` 400 for what is not offered, and for a constraint in the wrong place."""
    refuse_unoffered(fields)
    refuse_tools(fields)
    wanted = constraint_of(fields)
    if wanted is not None:
        raise bad(f"`{wanted.field}` belongs into `sampling_params`", wanted.field)


def _held(params: SamplingParams) -> tuple[Wanted | None, ir.Jump]:
    """What the text is held to."""
    fields = given(params)
    refuse_unoffered(fields)
    refuse_tools(fields)
    return constraint_of(fields), jump_of(fields)


def _prompts(body: Generate) -> tuple[list[str] | list[tuple[int, ...]], bool]:
    if (body.text is None) == (body.input_ids is None):
        raise bad("give either `text` or `input_ids`", "text")
    if body.text is not None:
        return raw.split(body.text, "text")
    assert body.input_ids is not None, "one of them is given"
    return raw.split(body.input_ids, "input_ids")


def _shown(body: Generate, params: SamplingParams, many: bool) -> Shown:
    special = params.skip_special_tokens is False
    if special and body.stream:
        why = "`skip_special_tokens`: false is not supported in a stream; read output_ids"
        raise unsupported("skip_special_tokens", why)
    texts, untrimmed = bool(body.return_text_in_logprobs), bool(params.no_stop_trim)
    return Shown("", many, False, False, texts, special, untrimmed)


def _sampling(params: SamplingParams, tops: int, default: int) -> tuple[ir.Sampling, int | None]:
    """The sampling, and the length (0 generates nothing)."""
    fields = given(params)
    length = length_of(fields, protocol="sglang", default=default)
    if tops > ir.MAX_LOGPROBS or tops < -1:
        raise bad(f"top_logprobs_num={tops}: must be between 0 and {ir.MAX_LOGPROBS}", "top_logprobs_num")
    made = sampling_of(fields, protocol="sglang", default_max_tokens=default, logprobs=tops, allow_zero=True)
    return made, length


def _start(start: int | None, *, is_ids: bool, zero: bool) -> int | None:
    """Where the prompt's logprobs begin; None: there are none. A missing one is -1, none, but for token ids that are
    only scored: unconditional `select` asks for all of them so."""
    if start is None:
        return 0 if is_ids and zero else None
    if not -1 <= start <= FARTHEST:
        raise bad(f"logprob_start_len={start}: must be -1 (none) or a position in the prompt", "logprob_start_len")
    return None if start < 0 else start


def _labels(body: Generate, caller: Caller, count: int, service: Service) -> tuple[list[str], list[str]]:
    """For each prompt the id that the answer shows, and the label under which it can be aborted. `Failure` 409 for one
    that is in use."""
    rids = [] if body.rid is None else _listed(body.rid)
    if isinstance(body.rid, list) and len(rids) != count:
        raise bad(f"`rid` has {len(rids)} items for {count} prompts", "rid")
    for rid in rids:
        if not 0 < len(rid) <= MAX_LABEL:
            raise bad(f"`rid`: an id has 1 to {MAX_LABEL} characters", "rid")
        if service.busy(rid, caller) or rids.count(rid) > 1:
            raise Failure(409, f"the id {rid!r} is in use by another request", code="duplicate_id", param="rid")
    if isinstance(body.rid, list):
        return rids, rids
    label = body.rid or caller.label
    return [f"{label}_{i}" for i in range(count)] if count > 1 else [label], [label] * count


def spread(value: object, count: int, name: str, default: Value) -> list[Value]:
    """One value for each prompt: `value` is that of all, or a list of them; null is `default`."""
    values: list[Any] = value if isinstance(value, list) else [value] * count
    if len(values) != count:
        raise bad(f"`{name}` has {len(values)} items for {count} prompts", name)
    return [default if each is None else each for each in values]


def _listed(value: list[Any] | Any | None) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def jobs_of(ones: Sequence[One], n: int, body: Generate, caller: Caller) -> Iterator[Job]:
    """The calls of a request: neighbours that ask for the same go together."""
    priority = whole(body.priority or 0, "priority")
    if not -(1 << 31) <= priority < 1 << 31:
        raise bad(f"priority={priority}: must be between -2^31 and 2^31 - 1", "priority")
    places = [i for i, one in enumerate(ones) if not one.nothing]
    for _, group in groupby(places, key=lambda i: ones[i].kind):
        mine = tuple(group)
        one = ones[mine[0]]
        call = Call(
            tuple(ones[i].prompt for i in mine),
            one.sampling,
            n=n,
            generate=one.generate,
            scoring=one.scoring,
            salt=one.salt,
            priority=priority,
            timeout=body.timeout,
            constraint=None if one.wanted is None else one.wanted.constraint,
            jump=one.jump,
            field="" if one.wanted is None else one.wanted.field,
            limit="sampling_params.max_new_tokens",
        )
        yield Job(call, replace(caller, label=one.label), mine)
