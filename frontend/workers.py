"""Threads that run host functions.

In: functions. Out: futures of what they return. Calls begin in the order in which they were submitted, at most `limit`
at a time. The threads are daemons, unlike those of `ThreadPoolExecutor`, for which the interpreter waits at its exit: a
host function that sleeps for an hour must not keep a process alive that was told to end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Future[Any], Callable[[], Any]]


class Workers:
    """Up to `limit` threads called `name`-0, `name`-1, ..., each started when a call finds no idle one."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._started = 0
        self._idle = threading.Semaphore(0)  # threads that wait for a call which nobody has counted on yet
        self._jobs: SimpleQueue[_Job] = SimpleQueue()

    def submit(self, fn: Callable[[], T]) -> Future[T]:
        """Run `fn` on a thread. Raises `RuntimeError` when the interpreter starts no threads any more."""
        future: Future[T] = Future()
        with self._lock:
            if not self._idle.acquire(blocking=False) and self._started < self._limit:
                threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
                self._started += 1
            self._jobs.put((future, fn))
        return future

    def _work(self) -> None:
        while True:
            _carry_out(*self._jobs.get())
            self._idle.release()


def _carry_out(future: Future[Any], fn: Callable[[], Any]) -> None:
    """A function of its own, so that a thread without work holds nothing of its last call."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever reads the future
        future.set_exception(error)
    else:
        future.set_result(result)
