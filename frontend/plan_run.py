"""Running a plan without its Python: operations as early as they can go, in as few batches as there are decisions.

In: a plan's course and a backend. Out: a `PlanRun`: result, events, usage. No thread of its own: the backend's thread
that delivers an event also sends what the event sets free.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ramet.frontend.backends.base import Backend, PlanBackend, Session
from ramet.frontend.course import Course, broken
from ramet.frontend.errors import FAILURES, Aborted, GenerationError, ProgramError, ProgramTimeout
from ramet.frontend.host import HOST
from ramet.frontend.ir import AnyOp, Ended, Event, Failed, Header, Usage
from ramet.frontend.planned import Break
from ramet.frontend.record import complete
from ramet.frontend.waiting import Bell, refuse_blocking, wait, wait_async

if TYPE_CHECKING:
    from ramet.frontend.explained import Explanation

R = TypeVar("R")


class PlanRun(Generic[R]):
    """A plan that runs, and its record afterwards. `batches` counts how often operations were sent; `sent` are they:
    when, which operation's event set them free ("": none), what. To a backend that takes plans as a whole
    (`plan` makes the file) nothing is sent: there it says what could go. `times` says when each event came, `began`
    when the run did (seconds of `time.monotonic`)."""

    def __init__(
        self,
        name: str,
        course: Course,
        make: Callable[[Course], R],
        backend: Backend,
        seed: int | None,
        plan: Callable[[], bytes] | None = None,
    ) -> None:
        self.name = name
        self.seed = secrets.randbits(63) if seed is None else seed
        self.batches = 0
        self.began = time.monotonic()
        self.sent: list[tuple[float, str, Sequence[AnyOp]]] = []
        self.times: list[float] = []
        self.course = course
        self._make = make
        self._bell = Bell()
        self._events: list[Event] = []
        self._failures: list[Failed] = []
        self._outcome: Future[R] = Future()
        self._cause: BaseException | None = None
        self._ending = False
        self._usage = Usage()
        self._order = threading.RLock()  # one event at a time; a backend may deliver while it is being sent to
        self._session = self._opened(backend, plan)

    def _opened(self, backend: Backend, plan: Callable[[], bytes] | None) -> Session:
        header = Header(name=self.name, seed=self.seed)
        if plan is not None and isinstance(backend, PlanBackend):
            session = backend.submit(header, plan(), self.course.texts, self._deliver)
            if session is not None:
                return session
        return backend.open(header, self._deliver)

    def start(self, timeout: float | None = None) -> PlanRun[R]:
        """Send everything that needs no value."""
        if timeout is not None:
            late = ProgramTimeout(f"the plan {self.name!r} took longer than {timeout} s")
            call_off = HOST.later(timeout, lambda: self._stop(late))
            self._outcome.add_done_callback(lambda _: call_off())
        with self._order:
            self._advance(self.course.begin)
        return self

    def _advance(self, step: Callable[[], Sequence[AnyOp]], trigger: str = "") -> None:
        try:
            ops = step()
            if ops:
                self.batches += 1
                self.sent.append((time.monotonic(), trigger, ops))
                self._session.send(ops)
            if self.course.over and not self._ending:
                self._ending = True
                if self.course.failed is not None:
                    self._stop(self._error(self.course.failed))
                elif isinstance(self.course.end, Break):
                    self._stop(broken(self.name, self.course.end))
                else:
                    self._session.end()
        except Exception as error:  # noqa: BLE001 - whatever a plan cannot carry out ends this run alone
            self._stop(error)

    def _deliver(self, event: Event) -> None:
        with self._order:
            self.times.append(time.monotonic())
            self._events.append(event)
            if isinstance(event, Failed):
                self._failures.append(event)
            if isinstance(event, Ended):
                self._usage = event.usage
                self._settle(event)
            elif self._cause is None:
                self._advance(lambda: self.course.take(event), event.op)
        self._bell.ring()

    def _settle(self, ended: Ended) -> None:
        error = self._cause
        if error is None and self._failures:
            error = self._error(self._failures[0])  # those that depend on it come later
        if error is None and ended.kind:
            error = FAILURES.get(ended.kind, GenerationError)(ended.message)
        if error is not None:
            complete(self._outcome, None, error)
            return
        try:
            value = self._make(self.course)
        except Exception as raised:  # noqa: BLE001 - a value that cannot be read is the run's error
            complete(self._outcome, None, raised)
        else:
            complete(self._outcome, value, None)

    def _error(self, failed: Failed) -> ProgramError:
        step = self.course.step_of(failed.op)
        error = FAILURES.get(failed.kind, GenerationError)(
            failed.message, where=step.where if step is not None else "", branch=failed.seq
        )
        error.retryable = failed.retryable or error.retryable
        return error

    def _stop(self, cause: BaseException) -> None:
        if self._cause is None:
            self._cause = cause
            try:
                self._session.cancel()
            except ProgramError:  # the backend is gone: no event will tell
                complete(self._outcome, None, cause)
                self._bell.ring()

    # --- reading ---

    def result(self, timeout: float | None = None) -> R:
        """What the program returns. Raises what an operation failed with, `PlanError`, `Aborted`, `ProgramTimeout`,
        `TransportError`; `timeout` (seconds) limits this wait alone."""
        if not self._outcome.done():
            refuse_blocking(None, f"the result of {self.name!r}")
            wait(self._outcome, timeout, f"the result of {self.name!r}")
        return self._outcome.result()

    def __await__(self) -> Generator[Any, None, R]:
        if not self._outcome.done():
            yield from wait_async(self._outcome, None, "the result").__await__()
        return self._outcome.result()

    def cancel(self) -> None:
        """Stop at once."""
        self._stop(Aborted(f"the plan {self.name!r} was cancelled"))

    @property
    def done(self) -> bool:
        """`result()` would not wait."""
        return self._outcome.done()

    @property
    def future(self) -> Future[R]:
        """What completes when the run has ended."""
        return self._outcome

    @property
    def usage(self) -> Usage:
        """Tokens, calls, steps, seconds: the backend's totals, once the run has ended."""
        return self._usage

    @property
    def told(self) -> list[Event]:
        """The events so far."""
        return list(self._events)

    def explain(self, before: Explanation | None = None) -> Explanation:
        """What it did, what it cost and what it waited for, as far as it has come; `before` is what was expected
        (`Plan.explain`). Print it, or take its `json()` or `html()`."""
        from ramet.frontend.explain import explain_plan_run

        return explain_plan_run(self, before)

    def events(self) -> Iterator[Event]:
        """All events of all branches, as they come, from the first on."""
        index = 0
        while True:
            seen = self._bell.count
            yield from self._events[index : (index := len(self._events))]
            if self._outcome.done() and index == len(self._events):
                return
            self._bell.wait(seen)

    async def aevents(self) -> AsyncIterator[Event]:
        """`events()` for event loops."""
        index = 0
        while True:
            seen = self._bell.count
            for event in self._events[index : (index := len(self._events))]:
                yield event
            if self._outcome.done() and index == len(self._events):
                return
            await self._bell.wait_async(seen)

    def __repr__(self) -> str:
        state = "running" if not self.done else "failed" if self._outcome.exception() else "done"
        return f"<PlanRun of {self.name!r}: {state}>"
