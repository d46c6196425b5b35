"""From the engine's reading thread to the event loop: events in, batches of them out.

In: events of programs, as the client's thread delivers them. Out: a `Mailbox` per request that its task reads. A
batch of reports crosses in one call, whatever number of events and requests it concerns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from ramet.frontend import ir
from ramet.runtime.server.failures import Failure

Item = tuple[int, ir.Event]  # which program of the request, and what happened there


class EngineLost(Failure):
    """503: the engine ended under the request. What had sent nothing may be run again."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(503, message, type="overloaded_error", code="unavailable", retry_after=retry_after)


class Mailbox:
    """Events of one request, for one reader on the loop."""

    __slots__ = ("_closed", "_failure", "_items", "_loop", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: list[Item] = []
        self._failure: Failure | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, item: Item) -> None:
        """Add an event; on the loop. Not after `fail`: what tells of the cancellation is not the end."""
        if not self._closed and self._failure is None:
            self._items.append(item)
            self._wake()

    def fail(self, failure: Failure) -> None:
        """Nothing more comes: `take` raises this once what is there was taken."""
        if self._failure is None:
            self._failure = failure
            self._wake()

    def close(self) -> None:
        """The reader is gone: what still comes is dropped."""
        self._closed = True
        self._items.clear()

    async def take(self) -> list[Item]:
        """All events that have arrived; waits for one. Raises the `Failure` of `fail`."""
        while not self._items:
            if self._failure is not None:
                raise self._failure
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Bridge:
    """The way from the reading thread to the loop. `flush` after each batch of deliveries sends them over."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pending: deque[tuple[Mailbox, Item]] = deque()

    def to(self, mailbox: Mailbox, index: int, wanted: frozenset[type]) -> Callable[[ir.Event], None]:
        """What delivers program `index`'s events of the `wanted` types into `mailbox`; called in the reading thread."""
        append = self._pending.append

        def deliver(event: ir.Event) -> None:
            if type(event) in wanted:
                append((mailbox, (index, event)))

        return deliver

    def flush(self) -> None:
        """Send what was delivered over to the loop, in one call. In the reading thread."""
        if self._pending:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        while self._pending:
            mailbox, item = self._pending.popleft()
            mailbox.put(item)
