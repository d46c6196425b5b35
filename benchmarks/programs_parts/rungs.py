"""One workload on one rung. In: rows, a server's URL or a backend. Out: an `Outcome`: seconds and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import httpx

from programs_parts.catalog import Workload
from programs_parts.client import Client, Tally
from programs_parts.counts import Listener
from programs_parts.scenes import Row
from ramet.frontend.backends.base import Backend
from ramet.frontend.plan import Plan
from ramet.frontend.plan_run import PlanRun
from ramet.frontend.run import Run

SECONDS = 900.0  # after which a program is given up
COUNTED = ("computed_tokens", "steps", "retractions")


@dataclass(slots=True)
class Outcome:
    """`seconds` of the whole workload; `completions`, those of each program, and `firsts`, until its first text, in
    seconds from the workload's begin. `submissions`: over all programs; of a client its calls. None: nobody counted."""

    seconds: float
    completions: list[float]
    values: list[Any]
    calls: int
    submissions: int
    submitted: int
    cached: int
    decoded: int
    forced: int = 0
    computed: int | None = None
    steps: int | None = None
    retractions: int | None = None
    distinct: int | None = None
    firsts: list[float] = field(default_factory=list)


def over_http(workload: Workload, rows: Sequence[Row], url: str, *, ours: bool) -> Outcome:
    """The expert client. Raises `NotExpressible`."""
    return asyncio.run(_over_http(workload, rows, url, ours))


async def _over_http(workload: Workload, rows: Sequence[Row], url: str, ours: bool) -> Outcome:
    async with Client(url, scores=ours) as client, httpx.AsyncClient(base_url=url, trust_env=False) as control:
        await client.gen("warm", 1)  # the connection
        client.tally = Tally()
        before: Mapping[str, Any] = {}
        if ours:
            await control.post("/flush_cache")
            before = (await control.get("/server_info")).json()
        start = time.perf_counter()
        done = await asyncio.gather(*(_timed(workload.expert(client, row), start) for row in rows))
        seconds = time.perf_counter() - start
        tally = client.tally
        outcome = Outcome(
            seconds,
            [ended for _, ended in done],
            [value for value, _ in done],
            tally.calls,
            tally.calls,
            tally.prompt,
            tally.cached,
            tally.decoded,
            tally.forced,
            tally.computed,
        )
        if ours:
            _count(outcome, before, (await control.get("/server_info")).json())
        return outcome


async def _timed(work: Awaitable[Any], start: float) -> tuple[Any, float]:
    value = await work
    return value, time.perf_counter() - start


def _count(outcome: Outcome, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    outcome.computed, outcome.steps, outcome.retractions = (int(after[name]) - int(before[name]) for name in COUNTED)


def in_language(
    workload: Workload,
    rows: Sequence[Row],
    backend: Backend,
    arguments: Mapping[str, Any],
    *,
    plans: Sequence[Plan] = (),
) -> tuple[Outcome, Listener]:
    """Programs on a backend, all begun at once; as compiled `plans`, one a row, where they are given."""
    listener = Listener(backend)
    backend.flush_cache()
    before = backend.info()
    ends: list[float] = [0.0] * len(rows)
    start = time.perf_counter()

    def note(place: int) -> Callable[[Future[Any]], None]:
        def ended(_: Future[Any]) -> None:
            ends[place] = time.perf_counter() - start

        return ended

    runs: list[Run[Any] | PlanRun[Any]] = []
    for place, row in enumerate(rows):
        given = {**workload.arguments(row), **arguments}
        begin = workload.program.run
        if plans:
            given = {name: given[name] for name in given if name not in workload.static(row)}
            begin = plans[place].run
        run: Run[Any] | PlanRun[Any] = begin(**given, backend=listener, seed=place)
        run.future.add_done_callback(note(place))
        runs.append(run)
    values = [run.result(SECONDS) for run in runs]
    seconds = time.perf_counter() - start
    usages = [told.usage for told in listener.programs]
    outcome = Outcome(
        seconds,
        ends,
        values,
        sum(usage.calls for usage in usages),
        sum(told.submissions for told in listener.programs),
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.generated_tokens for usage in usages),
        sum(usage.forced_tokens for usage in usages),
        firsts=[told.first - start for told in listener.programs if told.first is not None],
    )
    _count(outcome, before, backend.info())
    return outcome, listener
