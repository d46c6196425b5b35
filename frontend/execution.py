"""One live program: operations out, events in.

In: operations that a body records (from its thread or task), events from the backend's thread. Out: completed futures
for readers, the list of events for streams, and one outcome. Everything that changes is guarded by one lock; futures
are completed after it is released, so that no reader's callback ever runs under it.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ramet.frontend.backends.base import Backend
from ramet.frontend.constraints import Wanted, read_text
from ramet.frontend.entries import Entry, Kind, Seq
from ramet.frontend.errors import (
    Aborted,
    ProgramError,
    StateError,
    TransportError,
)
from ramet.frontend.ir import (
    AnyOp,
    Close,
    Constraint,
    Ended,
    Event,
    Fork,
    Gen,
    Header,
    Jump,
    Sampling,
    Usage,
)
from ramet.frontend.outbox import Outbox
from ramet.frontend.record import Record, complete
from ramet.frontend.waiting import Bell, chain
from ramet.frontend.where import users_frames

if TYPE_CHECKING:
    from ramet.frontend.journal_run import Scope


class Execution:
    """A program while it runs, and its record afterwards. `outcome` is done with the body's return value or error,
    once the body has ended and the backend has answered everything."""

    def __init__(
        self, name: str, header: Header, backend: Backend, budget: int | None = None, journal: Scope | None = None
    ) -> None:
        self.name = name
        self.header = header
        self.record = Record(name, budget)
        self.bell = Bell()
        self.outcome: Future[Any] = Future()
        self.loop: asyncio.AbstractEventLoop | None = None  # where an async body runs
        self.children: weakref.WeakSet[Execution] = weakref.WeakSet()
        self.on_cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._body: tuple[bool, Any] | None = None
        self._trace: TracebackType | None = None  # of the error that left the body
        self._ending = False
        self.outbox = Outbox(self._lock, self.record, self._lost, self._drain)
        self.journal = journal  # where the run is recorded, if it is
        if journal is not None:
            journal.attach(self)
        self.outbox.session = (journal or backend).open(header, self.deliver)

    def _locked(self) -> AbstractContextManager[None]:
        return self._guarded()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._drain()

    def _drain(self) -> None:
        """Complete futures, outside the lock."""
        while self.record.todo:
            try:
                act = self.record.todo.popleft()
            except IndexError:  # another thread took the last one
                break
            act()

    # --- recording ---

    def check(self, seq: Seq, where: str) -> None:
        """Raise unless an operation may be recorded on `seq` now."""
        if self.record.cause is not None:
            raise self.record.stopped(where, seq)
        if self.record.ended is not None and self.record.ended.kind:
            raise self.record.error(self.record.ended.kind, self.record.ended.message, where=where, branch=seq.path)
        if self._body is not None:
            raise StateError("the program has ended; record operations inside its body", where=where, branch=seq.path)
        if seq.closed:
            raise StateError(f"this branch {seq.closed}", where=where, branch=seq.path)

    def add_text(self, seq: Seq, piece: str | Entry, where: str) -> None:
        """Append constant text or the value of an entry of this program."""
        with self._locked():
            self.check(seq, where)
            entry = seq.open_text
            if entry is None:
                entry = seq.open_text = self._entry(seq, "text", where)
            entry.pieces.append(piece)
            if isinstance(piece, Entry):
                entry.refs.append(piece)
        self.bell.ring()

    def add(
        self, seq: Seq, kind: Kind, where: str, make: Callable[[str], AnyOp], var: str = "", refs: Sequence[Entry] = ()
    ) -> Entry:
        """Record the operation that `make` builds from its id."""
        with self._locked():
            self.check(seq, where)
            entry = self._add(seq, kind, where, make, var, refs)
        self.bell.ring()
        return entry

    def add_gen(
        self,
        seq: Seq,
        var: str,
        sampling: Sampling,
        where: str,
        constraint: Constraint | None = None,
        jump: Jump = "canonical",
    ) -> Entry:
        """Record a Gen, within the budget: `max_tokens` of every Gen under way count against it until it has
        finished."""
        with self._locked():
            self.check(seq, where)
            sampling = self.record.within_budget(sampling, where, seq)
            entry = self._add(
                seq,
                "gen",
                where,
                lambda op: Gen(
                    id=op, seq=seq.path, var=var or f"_{op}", sampling=sampling, constraint=constraint, jump=jump
                ),
                var,
            )
            self.record.reserve(entry, sampling)
        self.bell.ring()
        return entry

    def fork(self, seq: Seq, items: Sequence[object], where: str) -> list[Seq]:
        """Record a Fork into one new sequence per item."""
        if not items:
            return []
        with self._locked():
            self.check(seq, where)
            self._seal(seq)
            entry = self._entry(seq, "fork", where)
            children = [Seq(f"{entry.id}.b{index}", seq, item) for index, item in enumerate(items)]
            self.record.seqs.update((child.path, child) for child in children)
            entry.op = Fork(id=entry.id, seq=seq.path, into=tuple(child.path for child in children))
            self.outbox.queue(entry)
        return children

    def seal(self, seq: Seq) -> None:
        """Send the text that is still open on `seq`."""
        with self._locked():
            self._seal(seq)

    def typed(self, entry: Entry, want: Wanted) -> Future[Any]:
        """What a generation's text is read as."""
        future: Future[Any] = Future()
        chain(entry.future, future, lambda text: read_text(entry, want, text))
        return future

    def listing(self, futures: Sequence[Future[Any]]) -> Future[Any] | None:
        """What a list of values is done with, where that is not when all of them are (in a trace, see `tracing`)."""
        return None

    def close(self, seq: Seq, reason: str) -> None:
        """Say that nothing more comes for `seq`. Does nothing when it is closed or the program is over."""
        with self._locked():
            if seq.closed or self.record.cause is not None or self.record.ended is not None or self._body is not None:
                seq.closed = seq.closed or reason
                return
            self._add(seq, "close", "", lambda op: Close(id=op, seq=seq.path))
            seq.closed = reason

    def cut(self, seq: Seq, reason: str) -> None:
        """Stop whatever runs on `seq` and on what was forked from it, and take nothing more for it. The failures that
        this causes are nobody's to report."""
        with self._locked():
            stopped = seq.closed
            seq.closed = stopped or reason
            if self.record.cause is not None or self.record.ended is not None or self._body is not None:
                return
            below = [s for path, s in self.record.seqs.items() if path == seq.path or path.startswith(seq.path + ".")]
            for each in below:
                each.closed = each.closed or reason
            running = [e for s in below for e in s.entries if e.status in ("recorded", "running")]
            for entry in running:
                entry.read = True
            if running or not stopped:
                self._add(seq, "close", "", lambda op: Close(id=op, seq=seq.path, now=True))

    def put(self, seq: Seq, source: Future[Any], where: str, var: str = "") -> Entry:
        """A value that this process computes, as an operation: it is sent when some text refers to it."""
        with self._locked():
            entry = self._entry(seq, "put", where, var)
        source.add_done_callback(lambda done: self._computed(entry, done))
        return entry

    def _entry(self, seq: Seq, kind: Kind, where: str, var: str = "", refs: Sequence[Entry] = ()) -> Entry:
        entry = Entry(seq.next_id(), seq, kind, where, var, tuple(refs))
        self.record.add(entry)
        return entry

    def _add(
        self, seq: Seq, kind: Kind, where: str, make: Callable[[str], AnyOp], var: str = "", refs: Sequence[Entry] = ()
    ) -> Entry:
        self._seal(seq)
        entry = self._entry(seq, kind, where, var, refs)
        entry.op = make(entry.id)
        self.outbox.queue(entry)
        return entry

    def _seal(self, seq: Seq) -> None:
        entry, seq.open_text = seq.open_text, None
        if entry is not None:
            entry.complete = True
            entry.status = "done"
            self.outbox.queue(entry)

    # --- the body ---

    def body_returned(self, value: Any) -> None:
        """The body is done; the program ends when the backend and the host have finished what was recorded."""
        with self._locked():
            self._body = (True, value)
            self.record.body_ended = time.monotonic()
            for seq in self.record.seqs.values():
                if seq.open_text is not None:  # nothing follows it: known here, of no use to the backend
                    seq.open_text.complete, seq.open_text.status = True, "done"
                    seq.open_text = None
        self.bell.ring()
        self._end_when_done()
        self._settle()

    def body_raised(self, error: BaseException) -> None:
        """The body raised: everything under way is given up, and readers get this error."""
        if isinstance(error, asyncio.CancelledError):
            error = self.record.cause or Aborted(f"the task of program {self.name!r} was cancelled")
        error.add_note(f"in the ramet program {self.name!r}")
        error.__traceback__ = self._trace = users_frames(error)
        with self._locked():
            self._body = (False, error)
            self.record.body_ended = time.monotonic()
        self.cancel(error)
        self._settle()

    def cancel(self, cause: BaseException) -> None:
        """Cut the program short. The first cause counts; later ones do nothing."""
        with self._locked():
            if self.record.cause is not None or self.record.ended is not None:
                return
            self.record.cause = cause
            children = list(self.children)
        for child in children:
            child.cancel(Aborted(f"the program {self.name!r} that called this one was cut short"))
        try:
            if self.outbox.session is not None:
                self.outbox.session.cancel()
        except ProgramError as error:
            self._lost(error)
        if self.on_cancel is not None:
            self.on_cancel()

    def _end_when_done(self) -> None:
        with self._locked():
            working = self.record.computing() or self.outbox.holding
            waits = self._body is None or working or self.record.cause is not None or self._ending
            if waits or self.record.ended is not None:
                return
            self._ending = True
        self.outbox.flush()
        try:
            if self.outbox.session is not None:
                self.outbox.session.end()
        except ProgramError as error:
            self._lost(error)

    def _settle(self) -> None:
        with self._locked():
            if self.record.ended is None or self.outcome.done() or (self._body is None and self.record.cause is None):
                return
            error = self._final_error()
            value = self._body[1] if self._body is not None else None
            self.record.todo.append(lambda: complete(self.outcome, value, error))
        self.bell.ring()

    def _final_error(self) -> BaseException | None:
        cause = self.record.cause
        if self._body is not None and not self._body[0] and (cause is None or cause is self._body[1]):
            return cast(BaseException, self._body[1])
        return cause if cause is not None else self.record.unread_failure()

    def verdict(self) -> tuple[Any, BaseException | None, bool]:
        """How the program ends, once the backend has nothing more to say: the body's value, the error, and whether the
        body has ended."""
        with self._locked():
            value = self._body[1] if self._body is not None and self._body[0] else None
            return value, self._final_error(), self._body is not None

    def raise_error(self, error: BaseException) -> NoReturn:
        """Raise the outcome's error. It may be raised many times: each begins with the traceback of the body alone."""
        raise error.with_traceback(self._trace if self._body == (False, error) else None)

    # --- events ---

    def deliver(self, event: Event) -> None:
        """Take an event; called from the backend's thread."""
        with self._locked():
            if self.record.ended is not None:
                return
            self.record.take(event)
        self.bell.ring()
        if isinstance(event, Ended):
            self._settle()

    def _computed(self, entry: Entry, source: Future[Any]) -> None:
        error = source.exception()
        with self._locked():
            entry.done_at = time.monotonic()
            if error is None:
                entry.pieces = [value if isinstance(value := source.result(), str) else str(value)]
                entry.status = "done"
                self.record.todo.append(lambda: complete(entry.future, entry.value_text(), None))
            else:
                roots = [e.root for e in self.record.entries.values() if e.error is error and e is not entry]
                self.record.failed(entry, error, roots[0] if roots and roots[0] is not None else entry)
            self.outbox.pump()
        self.bell.ring()
        self._end_when_done()

    def _lost(self, error: ProgramError) -> None:
        """The backend does not take operations any more: nothing of this program will be answered."""
        kind = "transport" if isinstance(error, TransportError) else "generation"
        self.deliver(Ended(usage=Usage(), kind=kind, message=error.message))
        if kind != "transport" and self.outbox.session is not None:  # it is there, and must not keep what it has
            self.outbox.session.cancel()
