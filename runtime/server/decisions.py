"""Many typed questions over one shared input, answered as probabilities: SGLang's decisions.

In: `POST /v1/decisions`. Out: for each question the probability of each of its answers. The whole request is one
program: the input is computed once, a fork branches off for each question, and a Select scores its labels there.
"""

from __future__ import annotations

import asyncio
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.frontend import ir
from ramet.runtime.server import failures, forms
from ramet.runtime.server.bridge import EngineLost
from ramet.runtime.server.call import Caller, Chat, Message
from ramet.runtime.server.compose import check_size, failure_of
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.nested import DECISIONS
from ramet.runtime.server.sampling import given, refuse_constraints
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.shapes import usage
from ramet.runtime.server.status import check_model
from ramet.runtime.server.wire import Body, StrictRoute, attended, caller_of, noted, reply

Who = Depends(caller_of)
FORMAT = 1  # of the wording below: a change of it is a new version
MAX_QUESTIONS = 128
Wording = str | dict[str, Any] | list[Any]  # JSON that is not a string is shown to the model as JSON


class Option(Body):
    """An answer to choose."""

    name: str = Field(min_length=1)
    description: Wording | None = None


class Choice(Body):
    """Which of the options."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["choice"]
    question: Wording
    options: list[Option] = Field(min_length=2, max_length=26)


class Score(Body):
    """How much, in levels from 0 on, each described."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["score"]
    question: Wording
    levels: list[Wording] = Field(min_length=2, max_length=10)


class YesNo(Body):
    """Whether it is so; `yes` and `no` say what they would mean."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["yes_no"]
    question: Wording
    yes: Wording | None = None
    no: Wording | None = None


Question = Annotated[Choice | Score | YesNo, Field(discriminator="type")]
_EXAMPLE: dict[str, Any] = {
    "input": "The parcel arrived two weeks late and the box was torn.",
    "questions": [
        {"id": "angry", "type": "yes_no", "question": "The customer has a reason to complain."},
        {
            "id": "team",
            "type": "choice",
            "question": "Who should answer?",
            "options": [{"name": "billing"}, {"name": "shipping", "description": "delivery and damage"}],
        },
    ],
}


class DecisionRequest(Body):
    """Questions over one input."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    input: Wording
    questions: list[Question] = Field(min_length=1, max_length=MAX_QUESTIONS)
    model: str | None = None
    temperature: float | None = Field(
        default=None, gt=0, le=100, allow_inf_nan=False, description="flattens the probabilities; 1 leaves them"
    )
    prompt_format_version: int | None = Field(default=None, description=f"of the wording; {FORMAT} is served")
    return_prompt_token_ids: bool | None = None
    images: list[Any] | None = Field(default=None, description="not offered: an empty list or nothing")
    cache_salt: str | None = Field(default=None, description="a prefix cache of its own")
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31, description="higher goes first")
    timeout: float | None = Field(default=None, description="seconds, the queue included")
    rid: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is put to the model: its text behind the input, the answers' names, and the label of each."""

    id: str
    type: str
    text: str
    names: tuple[str, ...]
    labels: tuple[str, ...]


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["decisions"])

    @routes.post("/v1/decisions")
    async def decisions(body: DecisionRequest, request: Request, caller: Caller = Who) -> Response:
        """Answer many questions over one input."""
        notes = noted(body, settings, ignored=forms.silent(body), inside=DECISIONS)
        caller = forms.labelled(caller, given(body), service)
        check_model(service, service.names[0] if body.model is None else body.model)
        _refuse(body)
        asked = [put(question) for question in body.questions]
        answer = await attended(request, answered(body, asked, service, caller))
        return reply(answer, caller, notes)

    return routes


def _refuse(body: DecisionRequest) -> None:
    refuse_constraints(given(body))
    forms.refuse_others(given(body))
    if body.images:
        raise unsupported("images", "`images` is not supported: the model reads text alone")
    if body.prompt_format_version not in (None, FORMAT):
        raise bad(f"prompt_format_version={body.prompt_format_version}: {FORMAT} is served", "prompt_format_version")
    if len({question.id for question in body.questions}) < len(body.questions):
        raise bad("`questions`: each needs an id of its own", "questions")


# -- wording


def shown(wording: Wording | None) -> str:
    """A text as it is, anything else as JSON."""
    if wording is None or isinstance(wording, str):
        return wording or ""
    return msgspec.json.encode(wording).decode()


def put(question: Choice | Score | YesNo) -> Asked:
    """A question in words, under labels that are short: letters, digits, yes and no. Raises `Failure` 400."""
    if isinstance(question, Choice):
        names = tuple(option.name for option in question.options)
        if len(set(names)) < len(names):
            raise bad(f"question {question.id!r}: names of options must be distinct", "questions")
        labels = tuple(string.ascii_uppercase[: len(names)])
        lines = [
            f"{label}) {option.name}" + (f": {shown(option.description)}" if option.description else "")
            for label, option in zip(labels, question.options, strict=True)
        ]
        last = "Reply with one letter."
    elif isinstance(question, Score):
        names = labels = tuple(string.digits[: len(question.levels)])
        lines = [f"{label}) {shown(level)}" for label, level in zip(labels, question.levels, strict=True)]
        last = "Reply with one number."
    else:
        names = labels = ("yes", "no")
        meanings = zip(labels, (question.yes, question.no), strict=True)
        lines = [f"{label}: {shown(meaning)}" for label, meaning in meanings if meaning]
        last = "Is that so? Reply with yes or no."
    text = "\n".join(["\n", f"Question: {shown(question.question)}", *lines, last])
    return Asked(question.id, question.type, text, names, labels)


def program(text: str, asked: Sequence[Asked]) -> tuple[ir.AnyOp, ...]:
    """The input in a user's message, and for each question a branch that ends the message and scores the labels at the
    begin of the assistant's answer."""
    branches = tuple(f"0.2.b{n}" for n in range(len(asked)))
    ops: list[ir.AnyOp] = [
        ir.Role(id="0.0", seq=ir.ROOT, role="user", edge="begin"),
        ir.Text(id="0.1", seq=ir.ROOT, parts=(text,)),
        ir.Fork(id="0.2", seq=ir.ROOT, into=branches),
    ]
    for branch, question in zip(branches, asked, strict=True):
        ops += [
            ir.Text(id=f"{branch}.0", seq=branch, parts=(question.text,)),
            ir.Role(id=f"{branch}.1", seq=branch, role="user", edge="end"),
            ir.Role(id=f"{branch}.2", seq=branch, role="assistant", edge="begin"),
            ir.Select(id=f"{branch}.3", seq=branch, var=question.id, choices=question.labels),
        ]
    return tuple(ops)


# -- answers


async def answered(body: DecisionRequest, asked: Sequence[Asked], service: Service, caller: Caller) -> dict[str, Any]:
    """Run the program; the whole answer. Raises `Failure`."""
    text = shown(body.input)
    chats = [Chat((Message("user", text + question.text),)) for question in asked]
    for chat in chats:
        check_size(chat, service.context)
    header = ir.Header(name="decisions", priority=body.priority or 0, namespace=forms.salt_of(body.cache_salt))
    try:
        metas, spent = await _run(header, program(text, asked), service, _timed(caller, body.timeout))
    except Failure as failure:
        if failure.code != "context_length_exceeded":
            raise
        longest = max([await service.count(chat) for chat in chats])
        raise failures.too_long(service.context, longest, 1) from None
    answers = {}
    for n, question in enumerate(asked):
        answer = answer_of(question, metas[f"0.2.b{n}.3"], body.temperature or 1.0)
        if body.return_prompt_token_ids:
            answer["prompt_token_ids"] = list(await service.encode(chats[n]))
            answer["label_token_ids"] = [(await service.encode(label))[0] for label in question.labels]
        answers[question.id] = answer
    return {
        "object": "decisions",
        "model": body.model or service.names[0],
        "prompt_format_version": FORMAT,
        "answers": answers,
        "usage": usage(spent.prompt_tokens, 0, spent.cached_tokens),
    }


def _timed(caller: Caller, timeout: float | None) -> Caller:
    """The caller with a deadline that holds however often the program is run."""
    seconds = forms.seconds_of(timeout)
    if seconds is None:
        return caller
    ends = asyncio.get_running_loop().time() + seconds
    return replace(caller, deadline=ends if caller.deadline is None else min(ends, caller.deadline))


async def _run(
    header: ir.Header, ops: Sequence[ir.AnyOp], service: Service, caller: Caller
) -> tuple[dict[str, ir.Meta], ir.Usage]:
    """Each op's meta, and the program's usage. When the engine is lost under it, it is run once more, as soon as there
    is an engine again: nothing has been sent."""
    with service.accounts.request():
        try:
            return await _once(header, ops, service, caller)
        except EngineLost:
            clock = asyncio.get_running_loop().time
            ends = clock() + service.limits.retry_patience
        while True:
            try:
                return await _once(header, ops, service, caller)
            except EngineLost:
                raise
            except Failure as failure:  # 503: the gate has waited for the engine as long as it does for newcomers
                if failure.status != 503 or service.state() == "draining" or clock() > ends:
                    raise


async def _once(
    header: ir.Header, ops: Sequence[ir.AnyOp], service: Service, caller: Caller
) -> tuple[dict[str, ir.Meta], ir.Usage]:
    metas: dict[str, ir.Meta] = {}
    async with await service.duplex(header, caller) as duplex:
        await duplex.send(ops)
        duplex.end()
        async for event in duplex:
            if isinstance(event, ir.Finished):
                metas[event.op] = event.meta
            elif isinstance(event, ir.Failed) or (isinstance(event, ir.Ended) and event.kind):
                raise failure_of(event.kind, event.message)
            elif isinstance(event, ir.Ended):
                return metas, event.usage
    raise AssertionError("a program ends with Ended")


def answer_of(question: Asked, meta: ir.Meta, temperature: float) -> dict[str, Any]:
    """Probabilities of the answers, from the logprobs of their labels' tokens.

    `label_mass` is what the model gives to all labels together, of everything that it might say. A score is the
    expected level.
    """
    logs = [math.fsum(row) for row in meta.choice_logprobs]
    scaled = [log / temperature for log in logs]
    top = max(scaled)
    weights = [math.exp(each - top) if top > -math.inf else 1.0 for each in scaled]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    answer: dict[str, Any] = {
        "type": question.type,
        "probabilities": dict(zip(question.names, shares, strict=True)),
        "label_mass": math.fsum(math.exp(log) for log in logs),
    }
    if question.type == "choice":
        answer["choice"] = question.names[shares.index(max(shares))]
    elif question.type == "score":
        answer["score"] = math.fsum(level * share for level, share in enumerate(shares))
    return answer
