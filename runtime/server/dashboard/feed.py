"""What the dashboard's page is told: a frame about twice a second, for as long as somebody watches.

In: a `Service`, and who watches. Out: frames of JSON, one for all watchers of a view. The watchers drive: whoever
finds the last frame too old asks the engine for the next, and so nothing at all happens when nobody watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from ramet.frontend import errors
from ramet.runtime.messages import Snapshot, Stats
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.service import Service
from ramet.runtime.server.wire import Batch, Event
from ramet.runtime.views import STATES, BranchView, ProgramView, TreeNode

PERIOD = 0.5  # seconds from one frame to the next
LONGEST = 10.0  # the same when the engine is slow to look
SHARE = 0.02  # of the engine's time that looking at it may take
PATIENCE = 5.0  # seconds that the engine has for an answer
HISTORY = 600  # points that are kept: five minutes
NODES, PROGRAMS, BRANCHES = 320, 32, 240  # of a frame at most
NAME = 96  # characters of a program's name
POINT = (
    "time",
    "steps",
    "step_seconds",
    "computed",
    "generated",
    "prompt",
    "cached",
    "used",
    "kept",
    "queue",
    "running",
)
COLUMNS = {"point": POINT, "node": TreeNode.__struct_fields__, "branch": BranchView.__struct_fields__}  # of the arrays


class Feed:
    """The frames of one view: of all namespaces (None), or of one."""

    def __init__(self, service: Service, metrics: Metrics, namespace: str | None) -> None:
        self._service = service
        self._metrics = metrics
        self._namespace = namespace
        self._turn = asyncio.Lock()
        self._serial = 0
        self._due = 0.0
        self._frame = b"{}"
        self._points: deque[list[float]] = deque(maxlen=HISTORY)

    async def watch(self) -> AsyncGenerator[Batch, None]:
        """The points so far, then frames, until the server has shut down what it was doing."""
        yield (Event("history", {"columns": COLUMNS, "points": list(self._points), "states": STATES}),)
        seen = 0
        while True:
            seen = await self._next(seen)
            yield (Event("frame", self._frame),)
            if self._service.state() == "draining" and not self._service.running + self._service.waiting:
                return

    async def _next(self, seen: int) -> int:
        """Wait for a frame that is not the one `seen`, and make it if nobody else does; its number."""
        clock = asyncio.get_running_loop().time
        async with self._turn:
            fresh = self._serial and clock() < self._due
            if self._serial == seen or not fresh:
                await asyncio.sleep(max(0.0, self._due - clock()))
                seconds = await self._look()
                self._due = clock() + min(LONGEST, max(PERIOD, seconds / SHARE))
                self._serial += 1
            return self._serial

    async def _look(self) -> float:
        """Make the next frame; the seconds that it took the engine."""
        stats: Stats | None = None
        snapshot: Snapshot | None = None
        client = self._service.client
        with contextlib.suppress(errors.TransportError, TimeoutError):  # the frame's state says why there is none
            async with asyncio.timeout(PATIENCE):
                asked = client.ask()
                looked = client.look(nodes=NODES, programs=PROGRAMS, branches=BRANCHES, namespace=self._namespace)
                answers = asyncio.gather(asyncio.wrap_future(asked), asyncio.wrap_future(looked))
                stats, snapshot = await answers
        frame: dict[str, Any] = {"time": time.time(), "state": self._service.state(), "whole": self._namespace is None}
        if stats is not None and snapshot is not None:
            point = self._point(frame["time"], stats)
            self._points.append(point)
            frame |= {"point": point, **self._figures(stats), **self._drawn(snapshot)}
        self._frame = msgspec.json.encode(frame)
        return 0.0 if snapshot is None else snapshot.seconds

    def _point(self, now: float, stats: Stats) -> list[float]:
        """What the page draws over time, in the order of `POINT`; counters grow, gauges do not."""
        prompt, cached = self._metrics.prompts()
        queue = stats.waiting + self._service.waiting
        seconds = round(stats.step_seconds, 6)
        counters = (stats.steps, seconds, stats.computed_tokens, stats.generated_tokens, prompt, cached)
        return [round(now, 3), *counters, stats.kv_used, stats.kv_cached, queue, stats.running]

    def _figures(self, stats: Stats) -> dict[str, Any]:
        return {
            "model": self._service.names[0],
            "context": self._service.context,
            "kv": {"total": stats.kv_total, "free": stats.kv_free, "cached": stats.kv_cached, "used": stats.kv_used},
            "running": stats.running,
            "live": stats.programs,
            "waiting": stats.waiting,
            "queued": self._service.waiting,
            "evicted": stats.evicted_tokens,
            "retractions": stats.retractions,
            "restarts": self._service.restarts,
        }

    def _drawn(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            "tree": {
                "nodes": snapshot.nodes,
                "elsewhere": snapshot.elsewhere,
                "namespaces": snapshot.namespaces,
            },
            "programs": [self._program(program) for program in snapshot.programs],
            "more": snapshot.more,
        }

    def _program(self, program: ProgramView) -> dict[str, Any]:
        """Ids of programs stay here (R10): the page knows them by their age."""
        return {
            "key": program.order,
            "name": self._service.client.name_of(program.id)[:NAME],
            "seconds": round(program.seconds, 1),
            "calls": program.calls,
            "prompt": program.prompt,
            "cached": program.cached,
            "generated": program.generated,
            "forced": program.forced,
            "states": program.states,
            "branches": program.branches,
        }
