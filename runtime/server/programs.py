"""Programs over HTTP: `POST /v1/programs` for whole ones, a WebSocket at the same path for those that grow.

In: operations of `frontend.ir` as JSON. Out: its events, as server-sent events (`event: token`, `data: {...}`), as one
list, or as messages of the socket (see `live`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Request, Response, WebSocket
from pydantic import ConfigDict, Field, JsonValue

from ramet.frontend import errors, ir
from ramet.runtime.boundary import contained
from ramet.runtime.server import plans
from ramet.runtime.server import program_body as body
from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure, bad
from ramet.runtime.server.live import converse
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.wire import (
    SSE,
    Batches,
    Body,
    Event,
    StrictRoute,
    attended,
    caller_of,
    noted,
    reply,
    sse,
    unfinished,
)

Told = TypeVar("Told")
Who = Depends(caller_of)
EXAMPLE: dict[str, JsonValue] = {
    "version": 1,
    "header": {"name": "two endings", "seed": 7},
    "ops": [
        {"type": "text", "id": "0.0", "seq": "0", "parts": ["Once upon a time there was a river"]},
        {"type": "fork", "id": "0.1", "seq": "0", "into": ["0.1.b0", "0.1.b1"]},
        {"type": "gen", "id": "0.1.b0.0", "seq": "0.1.b0", "var": "ending", "sampling": {"max_tokens": 16}},
        {"type": "gen", "id": "0.1.b1.0", "seq": "0.1.b1", "var": "ending", "sampling": {"max_tokens": 16}},
    ],
}


class ProgramBody(Body):
    """A whole program."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    version: int = Field(1, description="version of this protocol: 1")
    header: dict[str, Any] = Field(
        default_factory=dict,
        description="`name`, `seed` (of all sampling noise), `priority`, `namespace` (a salt of the prefix cache)",
    )
    ops: list[Any] | None = Field(
        None,
        description="operations: objects with `type` (text, tokens, role, gen, select, score, fork, join, put, close), "
        '`id` (unique), `seq` (the sequence that it acts on; the first one is "0") and the fields of their type',
    )
    plan: dict[str, Any] | None = Field(
        None, description="in place of `ops`: a compiled program, as `Plan.save` writes it, without graph breaks"
    )
    args: dict[str, Any] | None = Field(None, description="arguments of the plan's open parameters, by name")
    limits: dict[str, Any] | None = Field(
        None, description="narrower limits than the server's: ops, sequences, depth, choices, tokens, seconds"
    )
    timeout: float | None = Field(None, description="seconds that the program may take, in the queue included")
    stream: bool = Field(True, description="server-sent events; else one JSON object with all `events`")


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["programs"])
    most = body.limits_of(settings)

    @routes.post("/v1/programs", responses=SSE)
    async def run_program(program: ProgramBody, request: Request, caller: Caller = Who) -> Response:
        """Run a whole program. Events come as `event: <kind>` with the event as `data`; the last one is `ended`. An
        `error` event in its place says that the program was cut short. A plan's result comes as an event
        `result` before the last one: `{"value": ...}`, or `{"error": ...}` when a text is not what its type asks for.
        """
        notes = noted(program, settings)
        opening = body.opening_of(program.version, program.header, program.limits, program.timeout, most)
        if program.plan is not None or program.ops is None:
            return await _planned(program, opening, request, caller, notes)
        if program.args is not None:
            raise bad("`args` are those of a `plan`: leave them out", "args")
        ops = body.operations(program.ops)
        body.Meter(opening.limits, service.context).take(ops)
        events = _marked(_events(service, opening, ops, caller), request)
        if program.stream:
            framed = _framed(events)
            return await sse(framed, request, caller, done=None, failed=_failed, notes=notes)
        async with contextlib.aclosing(events):
            found = await attended(request, _all(events))
        return reply({"version": body.VERSION, "events": [body.plain(event) for event in found]}, caller, notes)

    async def _planned(
        program: ProgramBody, opening: body.Opening, request: Request, caller: Caller, notes: tuple[str, ...]
    ) -> Response:
        if program.plan is None or program.ops is not None:
            raise bad("give `ops`, or a `plan` with its `args`: one of the two", "ops")
        run = await asyncio.to_thread(plans.prepared, program.plan, program.args or {}, opening, service, settings)
        events = _marked(run.events(service, opening, caller), request)
        if program.stream:
            return await sse(_framed(events), request, caller, done=None, failed=_failed, notes=notes)
        async with contextlib.aclosing(events):
            found = await attended(request, _all(events))
        told = [body.plain(event) for event in found if not isinstance(event, plans.Result)]
        result = next((event.told() for event in found if isinstance(event, plans.Result)), None)
        return reply({"version": body.VERSION, "events": told, "result": result}, caller, notes)

    @routes.websocket("/v1/programs")
    async def live_program(socket: WebSocket) -> None:
        """A program that grows while it runs: see `live`."""
        await converse(socket, service, settings)

    return routes


async def _events(
    service: Service, opening: body.Opening, ops: Sequence[ir.AnyOp], caller: Caller
) -> AsyncGenerator[ir.Event, None]:
    """The program's events; a refusal names the operation that it is about."""
    begun = False
    events = service.events(opening.header, ops, caller, timeout=opening.limits.seconds)
    try:
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            async for event in events:
                begun = True
                yield event
    except Failure as failure:
        if failure.status == 400 and not begun:
            located = partial(_located, service, opening.header, ops, failure)
            raise await asyncio.to_thread(contained, located) from None
        raise


def _located(service: Service, header: ir.Header, ops: Sequence[ir.AnyOp], failure: Failure) -> Failure:
    """The same failure with the index of the first operation that cannot be carried out."""
    lowering = service.client.lowering(header.seed)
    for index, op in enumerate(ops):
        try:
            lowering.lower([op])
        except errors.ProgramError as error:
            where = f"ops[{index}]"
            return Failure(400, f"`{where}` ({op.id}): {error.message}", code=failure.code, param=where)
    return failure


async def _marked(events: AsyncGenerator[Told, None], request: Request) -> AsyncGenerator[Told, None]:
    """The same events; what was stopped, or lost its engine, is not given again under its Idempotency-Key."""
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, ir.Ended) and event.kind:
                unfinished(request.scope)
            yield event


async def _all(events: AsyncGenerator[Told, None]) -> list[Told]:
    return [event async for event in events]


async def _framed(events: AsyncGenerator[ir.Event | plans.Result, None]) -> Batches:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, plans.Result):
                yield (Event("result", msgspec.json.encode(event.told())),)
            else:
                yield (Event(str(type(event).__struct_config__.tag), body.json_of(event)),)


def _failed(failure: Failure) -> Event:
    return Event("error", failure.body())
