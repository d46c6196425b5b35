"""An engine on its way: the thread that starts it and listens to it, and what ends it before anybody has it.

In: what that thread does. Out: a future of its readiness, and its `Link` once there is one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from ramet.frontend import errors
from ramet.runtime import messages as m
from ramet.runtime.ports import Link


class Observer(Protocol):
    """Told of the engine's life, in the reading thread: it must return quickly and raise nothing."""

    def heard(self, steps: int) -> None:
        """A batch of reports, `steps` of them Steps, was read and its events delivered."""

    def ready(self, ready: m.Ready) -> None:
        """An engine is up."""

    def lost(self, reason: str) -> None:
        """The engine is gone. Its programs are told after this; then comes `heard(0)`."""


class Birth:
    """An engine that is being started: its thread, and its link once there is one. `drop` may come at any time."""

    def __init__(self, listen: Callable[[Birth], None]) -> None:
        self.hello: Future[None] = Future()
        self.begun = threading.Event()
        self.link: Link | None = None
        self.thread = threading.Thread(target=listen, args=(self,), name="ramet-client", daemon=True)
        self._lock = threading.RLock()
        self._unwanted = False

    def linked(self, link: Link) -> None:
        """Its link is there; closed at once when nobody wants it any more."""
        with self._lock:
            self.link = link
            unwanted = self._unwanted
        if unwanted:
            link.close()

    def drop(self) -> None:
        """End the engine, whether it exists yet or not, and wait for its thread. In the engine's own threads, where the
        collector of garbage may call this, nothing is waited for."""
        with self._lock:
            self._unwanted = True
            link = self.link
        if link is not None:
            link.close()
        inside = threading.current_thread() is self.thread or (link is not None and link.is_current_thread())
        if not inside and self.begun.wait(1.0):  # else the thread could not be started
            self.thread.join()


def rebuilt(broken: m.Broken) -> errors.RametError:
    """The error of an engine that could not start."""
    kind = getattr(errors, broken.error, None)
    if isinstance(kind, type) and issubclass(kind, errors.RametError):
        return kind(broken.message)
    return errors.EngineError(f"the engine could not start: {broken.error}: {broken.message}")
