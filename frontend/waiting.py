"""How readers wait: for one future, or for the next change of a run. From threads and from event loops, never polling.

In: futures that backend threads complete, changes that ring a `Bell`. Out: readers go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from ramet.frontend.errors import ConstraintError, ProgramTimeout, StateError
from ramet.frontend.host import inside_async_body
from ramet.frontend.where import user_line

T = TypeVar("T")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def refuse_blocking(body_loop: asyncio.AbstractEventLoop | None, what: str) -> None:
    """Raise `StateError` where waiting would block the event loop that has to make the value."""
    loop = running_loop()
    if loop is not None and (inside_async_body.get() or loop is body_loop):
        raise StateError(
            f"{what} is read in the event loop's thread, which would block it: use `await`", where=user_line()
        )


def _check(timeout: float | None) -> None:
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 <= timeout <= threading.TIMEOUT_MAX):
        raise ConstraintError(f"timeout={timeout!r}: must be a number of seconds, 0 or more", where=user_line())


def wait(future: Future[T], timeout: float | None, what: str) -> None:
    """Wait in this thread until `future` is done. Raises `ProgramTimeout` after `timeout` seconds."""
    _check(timeout)
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    if not done.wait(timeout):
        raise ProgramTimeout(f"{what} did not come within {timeout} s", where=user_line())


async def wait_async(future: Future[T], timeout: float | None, what: str) -> None:
    """Wait in this event loop until `future` is done; a cancelled waiter leaves the future alone."""
    _check(timeout)
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    future.add_done_callback(lambda _: _wake(loop, waiter))
    try:
        await asyncio.wait_for(waiter, timeout)
    except TimeoutError:
        raise ProgramTimeout(f"{what} did not come within {timeout} s", where=user_line()) from None


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    def set_result() -> None:
        if not waiter.done():
            waiter.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
        loop.call_soon_threadsafe(set_result)


def chain(source: Future[Any], target: Future[T], convert: Callable[[Any], T]) -> None:
    """Complete `target` with `convert` of `source`'s result, or with its error."""

    def move(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            try:
                target.set_result(convert(done.result()))
            except Exception as raised:  # noqa: BLE001 - whatever the conversion raises belongs to the reader
                target.set_exception(raised)
        else:
            target.set_exception(error)

    source.add_done_callback(move)


def all_done(sources: list[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` once every source is done (at once when all are, in the thread that completes the last otherwise)."""
    left = [len(sources)]
    lock = threading.Lock()

    def count(_: Future[Any]) -> None:
        with lock:
            left[0] -= 1
            last = left[0] == 0
        if last:
            then()

    if not sources:
        then()
    for source in list(sources):
        source.add_done_callback(count)


def first_failure(sources: Sequence[Future[Any]]) -> Future[None]:
    """What is done as soon as one of the sources has failed (never, if none does)."""
    failed: Future[None] = Future()
    for source in sources:
        source.add_done_callback(lambda done: _once(failed) if done.exception() is not None else None)
    return failed


def either(one: Future[Any], other: Future[Any]) -> Future[None]:
    """What is done as soon as one of the two is, however it went."""
    return any_done((one, other))


def any_done(sources: Sequence[Future[Any]]) -> Future[None]:
    """What is done as soon as one of the sources is, however it went."""
    done: Future[None] = Future()
    for source in sources:
        source.add_done_callback(lambda _: _once(done))
    return done


def _once(future: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):  # another thread was first
        future.set_result(None)


class Bell:
    """A count of changes that any number of readers wait on. Ringing without readers costs an addition."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        self.count = 0

    def ring(self) -> None:
        """Something changed."""
        with self._condition:
            self.count += 1
            wakers, self._wakers = self._wakers, []
            self._condition.notify_all()
        for wake in wakers:
            wake()

    def wait(self, seen: int) -> None:
        """Wait in this thread until `count` differs from `seen`."""
        with self._condition:
            self._condition.wait_for(lambda: self.count != seen)

    async def wait_async(self, seen: int) -> None:
        """Wait in this event loop until `count` differs from `seen`."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        with self._condition:
            if self.count != seen:
                return
            self._wakers.append(lambda: _wake(loop, waiter))
        await waiter
