"""Futures of a trace: done at once, with a value that is made when it is read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Lazy(Future[Any]):
    """A future whose result is made anew by each read."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make  # nothing of a Future's own: a program has one per generation, and nobody waits for it

    def __getattr__(self, name: str) -> Any:
        if name != "_condition":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._condition = threading.Condition()
        return self._condition

    def __repr__(self) -> str:  # a Future's reads a state that this one lacks
        return object.__repr__(self)

    def cancel(self) -> bool:
        """It is done."""
        return False

    def cancelled(self) -> bool:
        """Never."""
        return False

    def running(self) -> bool:
        """Never."""
        return False

    def done(self) -> bool:
        """Always."""
        return True

    def result(self, timeout: float | None = None) -> Any:
        """What `make` returns now."""
        return self._make()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """None: in a trace nothing fails."""
        return None

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """It is done: `fn` is called now."""
        fn(self)
