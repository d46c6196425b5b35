"""Keeps an engine behind the service: notices that it is gone or stands still, ends it, starts another.

In: the signs of life that the client hears. Out: `alive` and `gone` callbacks on the event loop, and a state. The
engine is asked for its gauges every few seconds: it answers between two steps, idle or not, so that silence means
that a step does not end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from ramet.frontend.errors import TransportError
from ramet.runtime import messages as m
from ramet.runtime.client import EngineClient
from ramet.runtime.server.gate import GateLimits

State = Literal["starting", "ready", "stalled", "restarting", "draining"]
Note = Callable[[str, float], None]
BEATS = 3  # questions per stall time
RECENT = 64  # answers whose delay counts as a recent step time


class Watch:
    """One engine's guardian, and the client's `Observer`. `alive` and `gone` are called on the loop."""

    def __init__(
        self,
        client: EngineClient,
        limits: GateLimits,
        *,
        flush: Callable[[], None],
        alive: Callable[[], None],
        gone: Callable[[], None],
        note: Note,
    ) -> None:
        self.stalled = False
        self.restarts = 0
        self._client = client
        self._limits = limits
        self._flush = flush
        self._alive = alive
        self._gone = gone
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._heard = time.monotonic()  # of the last Step; written by the reading thread
        self._delays: deque[float] = deque(maxlen=RECENT)
        self._change = asyncio.Event()  # the engine came or went
        self._starter = ThreadPoolExecutor(1, "ramet-restart")
        self._task: asyncio.Task[None] | None = None

    # -- the reading thread

    def heard(self, steps: int) -> None:
        """A batch was read."""
        if steps:
            self._heard = time.monotonic()
        self._flush()

    def ready(self, ready: m.Ready) -> None:
        """An engine is up."""
        self._heard = time.monotonic()
        self._call(self._came, ready.load_seconds)

    def lost(self, reason: str) -> None:
        """The engine is gone; what its programs are told of it comes after this."""
        self._call(self._went)

    def _call(self, what: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(what, *arguments)

    # -- the loop

    def start(self) -> None:
        """Begin to watch."""
        self._client.observer = self
        self._task = self._loop.create_task(self._run(), name="ramet-watch")

    async def stop(self) -> None:
        """Watch no more; the engine stays as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._starter.shutdown(wait=False, cancel_futures=True)

    def _came(self, load_seconds: float) -> None:
        self.stalled = False
        self.restarts += 1
        self._delays.clear()
        self._change.set()
        self._note("engine_ready", load_seconds)
        self._alive()

    def _went(self) -> None:
        self.stalled = False
        self._change.set()
        self._note("engine_lost", 1.0)
        self._gone()

    async def _run(self) -> None:
        while True:
            self._change.clear()
            if self._client.alive:
                with contextlib.suppress(TransportError):  # lost under the question: begin anew
                    await self._beat()
            else:
                await self._revive()

    async def _beat(self) -> None:
        """Ask once, wait for the answer as long as it may take, and then for the next time to ask."""
        pause = self._limits.stall_seconds / BEATS
        asked = time.monotonic()
        answer = asyncio.wrap_future(self._client.ask())
        process, busy = self._client.process_id, False
        while not answer.done():
            silent = time.monotonic() - max(self._heard, asked - pause)
            allowed = self.allowed() * (self._limits.busy_factor if busy else 1.0)
            if silent >= allowed:
                await self._end_it(answer)
                continue
            began, used = time.monotonic(), processor_seconds(process)
            await asyncio.wait({answer}, timeout=max(min(allowed - silent, pause), pause / 5))
            busy = processor_seconds(process) - used > 0.1 * (time.monotonic() - began)
        answer.result()
        self.stalled = False
        self._delays.append(time.monotonic() - asked)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), pause)

    def allowed(self) -> float:
        """Seconds without a sign of life after which the engine counts as stalled."""
        largest = max(self._delays, default=0.0)
        return max(self._limits.stall_seconds, self._limits.stall_factor * largest)

    async def _end_it(self, answer: asyncio.Future[m.Stats]) -> None:
        """Kill the engine's process: its end is noticed like any other. A thread cannot be killed: wait for it."""
        if not self.stalled:
            self.stalled = True
            self._note("engine_stalled", 1.0)
            self._client.kill()
        await asyncio.wait({answer}, timeout=self._limits.stall_seconds)

    async def _revive(self) -> None:
        """Start an engine; after a start that failed wait, twice as long each time."""
        delay = self._limits.restart_delay
        while not self._client.alive:
            try:
                await self._loop.run_in_executor(self._starter, self._client.start)
            except Exception:  # noqa: BLE001 (whatever kept it from starting may pass; its log is on standard error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, self._limits.restart_delay_most)


def processor_seconds(process: int | None) -> float:
    """Processor time that a process has used, user and system (proc(5), fields utime and stime); 0.0 where the system
    does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
