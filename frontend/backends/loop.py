"""The background event loop of a backend that speaks over a network.

In: callbacks and coroutines from any thread. Out: they run on one daemon thread of the backend's own, which also
delivers the events of its programs. Closing it ends every program that still lives there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from ramet.frontend.errors import TransportError

T = TypeVar("T")
GRACE = 5.0  # seconds that closing waits for connections to close


class Live(Protocol):
    """A program that lives on the loop."""

    def lose(self, message: str) -> None:
        """End it with kind "transport"; on the loop."""


class Loop:
    """`live` are the programs (changed on the loop alone), `closers` what to await before the loop stops."""

    def __init__(self, name: str) -> None:
        self.live: set[Live] = set()
        self.closers: list[Callable[[], Awaitable[object]]] = []
        self._name = name
        self._pid = os.getpid()
        self._lock = threading.RLock()  # reentrant: the collector of garbage may call `close` inside `post`
        self._closed = False
        # In an empty context: the loop's own handles would keep the first caller's context variables for ever.
        self._loop = contextvars.Context().run(asyncio.new_event_loop)
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def post(self, call: Callable[[], object]) -> None:
        """Run `call` on the loop, in the order of posting. Raises `TransportError` when it is closed."""
        with self._lock:
            self._refuse_if_over()
            try:
                self._loop.call_soon_threadsafe(call, context=contextvars.Context())
            except RuntimeError:  # closed meanwhile
                raise TransportError(f"{self._name} is closed; make another one") from None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it in this thread; it bounds its own time. Raises what it raises."""
        try:
            if threading.current_thread() is self._thread:
                raise TransportError(f"{self._name}: asked for in its own thread, which would wait for itself")
            with self._lock:
                self._refuse_if_over()
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except TransportError:
            work.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task; on the loop."""
        return self._loop.create_task(work)

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise TransportError(f"{self._name} is closed; make another one")
        if os.getpid() != self._pid:
            raise TransportError(
                f"{self._name} belongs to the process that this one was forked from; make another one here"
            )

    def close(self) -> None:
        """End every program with kind "transport", close connections, end the thread. Idempotent; in a forked child it
        does nothing."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        if threading.current_thread() is not self._thread:  # where the collector of garbage may call this
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        for program in list(self.live):
            program.lose(f"{self._name} was closed")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await asyncio.gather(*(close() for close in self.closers), return_exceptions=True)
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        self._loop.stop()
