"""A plan that runs ahead of its Python: what comes before a graph break is sent at once, the body goes on from there.

In: a backend, and the course of a plan. Out: a backend for the program's own run. Operations that the plan has sent
are compared with those that the body records, and go no second time; events about them wait until the body has
recorded them. What the body says counts: where it records something else under the same name, the run fails.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from ramet.frontend.backends.base import Backend, Deliver, Session
from ramet.frontend.backends.through import Through
from ramet.frontend.course import Course
from ramet.frontend.errors import RametError
from ramet.frontend.ir import AnyOp, Close, Ended, Event, Header, Put, Usage


class Ahead(Through):
    """The backend of one run of a program whose plan has graph breaks; programs that its body starts pass through."""

    def __init__(self, backend: Backend, course: Course) -> None:
        super().__init__(backend)
        self._course = course
        self._opened = False
        self.events: list[Event] = []

    def open(self, header: Header, deliver: Deliver) -> Session:
        """See `Backend.open`; the first one is the program's own."""
        if self._opened:
            return self.backend.open(header, deliver)
        self._opened = True
        return _Session(self.backend, header, deliver, self._course, self.events)


class _Session:
    """Two sources of operations, one program."""

    def __init__(self, backend: Backend, header: Header, deliver: Deliver, course: Course, events: list[Event]) -> None:
        self._name = header.name
        self._deliver = deliver
        self._course = course
        self._events = events
        self._lock = threading.RLock()
        self._ahead: dict[str, AnyOp] = {}  # sent, and not yet recorded by the body
        self._held: dict[str, list[Event]] = {}
        self._outgoing: deque[Event] = deque()
        self._delivering = self._off = False
        self._session = backend.open(header, self._take)
        with self._lock:
            self._advance(course.begin())

    def _advance(self, ops: Sequence[AnyOp]) -> None:
        if ops:
            self._ahead.update((op.id, op) for op in ops)
            self._session.send(ops)

    def send(self, ops: Sequence[AnyOp]) -> None:
        """What the body has recorded; what went ahead of it is left out."""
        with self._lock:
            rest: list[AnyOp] = []
            for op in ops:
                if isinstance(op, Put) and op.due and op.id in self._ahead:
                    continue  # its value has gone already
                sent = self._ahead.pop(op.id, None)
                if sent is None:
                    self._off = self._off or not isinstance(op, Close)
                    rest.append(op)
                elif sent == op:
                    self._outgoing.extend(self._held.pop(op.id, ()))
                else:
                    self._fail(op)
                    return
            if rest:
                self._session.send(rest)
        self._tell()

    def _fail(self, op: AnyOp) -> None:
        self._off = True
        message = (
            f"the program {self._name!r} records another operation {op.id} than its plan has: what it does has "
            "changed since it was compiled, or depends on chance, time or the world outside; compile it again"
        )
        self._outgoing.append(Ended(usage=Usage(), kind="generation", message=message))
        self._session.cancel()
        threading.Thread(target=self._tell, name="ramet-plan-differs", daemon=True).start()

    def end(self) -> None:
        """The body has ended."""
        with self._lock:
            self._off = True
        self._session.end()

    def cancel(self) -> None:
        """See `Session.cancel`."""
        with self._lock:
            self._off = True
        self._session.cancel()

    def _take(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
            if not self._off:
                try:
                    self._advance(self._course.take(event))
                except (RametError, ValueError):  # the body will come to it, and say it better
                    self._off = True
            if isinstance(event, Ended) or event.op not in self._ahead:
                self._outgoing.append(event)
            else:
                self._held.setdefault(event.op, []).append(event)
        self._tell()

    def _tell(self) -> None:
        """Deliver in order, one thread at a time, outside the lock: whoever is told may record and send."""
        while True:
            with self._lock:
                if self._delivering or not self._outgoing:
                    return
                self._delivering = True
                event = self._outgoing.popleft()
            try:
                self._deliver(event)
            finally:
                with self._lock:
                    self._delivering = False
