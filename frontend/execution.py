"""One live program: operations out, events in.

In: operations that a body records (from its thread or task), events from the backend's thread. Out: completed futures
for readers, the list of events for streams, and one outcome. Everything that changes is guarded by one lock; futures
are completed after it is released, so that no reader's callback ever runs under it.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, cast

import msgspec

from ramet.frontend.backends.base import Backend
from ramet.frontend.entries import Entry, Kind, Seq
from ramet.frontend.errors import (
    FAILURES,
    Aborted,
    BudgetExceeded,
    ConstraintError,
    GenerationError,
    ProgramError,
    ProgramTimeout,
    StateError,
    ToolError,
    TransportError,
)
from ramet.frontend.ir import (
    ROOT,
    AnyOp,
    Close,
    Ended,
    Event,
    Failed,
    Finished,
    Fork,
    Forked,
    Gen,
    Header,
    Joined,
    Rendered,
    Sampling,
    Started,
    Token,
    Usage,
)
from ramet.frontend.outbox import Outbox
from ramet.frontend.waiting import Bell


class Execution:
    """A program while it runs, and its record afterwards. `outcome` is done with the body's return value or error,
    once the body has ended and the backend has answered everything."""

    def __init__(self, name: str, header: Header, backend: Backend, budget: int | None = None) -> None:
        self.name = name
        self.header = header
        self.backend = backend
        self.budget = budget
        self.bell = Bell()
        self.root = Seq(ROOT)
        self.seqs: dict[str, Seq] = {ROOT: self.root}
        self.entries: dict[str, Entry] = {}
        self.events: list[Event] = []
        self.outcome: Future[Any] = Future()
        self.loop: asyncio.AbstractEventLoop | None = None  # where an async body runs
        self.children: weakref.WeakSet[Execution] = weakref.WeakSet()
        self.cause: BaseException | None = None  # why it was cut short
        self.ended: Ended | None = None
        self.on_cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._todo: deque[Callable[[], object]] = deque()
        self._body: tuple[bool, Any] | None = None
        self._ending = False
        self._spent = 0
        self._reserved: dict[str, int] = {}
        self.outbox = Outbox(self._lock, self.seqs, self._poisoned, self._lost)
        self.outbox.session = backend.open(header, self.deliver)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            while self._todo:
                try:
                    act = self._todo.popleft()
                except IndexError:  # another thread took the last one
                    break
                act()

    # --- recording ---------------------------------------------------------------------------------------------------

    def check(self, seq: Seq, where: str) -> None:
        """Raise unless an operation may be recorded on `seq` now."""
        if self.cause is not None:
            raise self._stopped(where, seq)
        if self.ended is not None and self.ended.kind:
            raise self._error(self.ended.kind, self.ended.message, where=where, branch=seq.path)
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

    def add_gen(self, seq: Seq, var: str, sampling: Sampling, where: str) -> Entry:
        """Record a Gen, within the budget: `max_tokens` of every Gen under way count against it until it has
        finished."""
        with self._locked():
            self.check(seq, where)
            sampling = self._within_budget(sampling, where, seq)
            entry = self._add(
                seq,
                "gen",
                where,
                lambda op: Gen(id=op, seq=seq.path, var=var or f"_{op}", sampling=sampling),
                var,
            )
            if self.budget is not None:
                self._reserved[entry.id] = sampling.max_tokens or 0
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
            self.seqs.update((child.path, child) for child in children)
            entry.op = Fork(id=entry.id, seq=seq.path, into=tuple(child.path for child in children))
            self.outbox.queue(entry)
        return children

    def seal(self, seq: Seq) -> None:
        """Send the text that is still open on `seq`."""
        with self._locked():
            self._seal(seq)

    def close(self, seq: Seq, reason: str) -> None:
        """Say that nothing more comes for `seq`. Does nothing when it is closed or the program is over."""
        with self._locked():
            if seq.closed or self.cause is not None or self.ended is not None or self._body is not None:
                seq.closed = seq.closed or reason
                return
            self._add(seq, "close", "", lambda op: Close(id=op, seq=seq.path))
            seq.closed = reason

    def put(self, seq: Seq, source: Future[Any], where: str, var: str = "") -> Entry:
        """A value that this process computes, as an operation: it is sent when some text refers to it."""
        with self._locked():
            entry = self._entry(seq, "put", where, var)
        source.add_done_callback(lambda done: self._computed(entry, done))
        return entry

    def _entry(self, seq: Seq, kind: Kind, where: str, var: str = "", refs: Sequence[Entry] = ()) -> Entry:
        entry = Entry(seq.next_id(), seq, kind, where, var, tuple(refs))
        self.entries[entry.id] = entry
        seq.entries.append(entry)
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

    def _within_budget(self, sampling: Sampling, where: str, seq: Seq) -> Sampling:
        if self.budget is None:
            return sampling
        left = self.budget - self._spent - sum(self._reserved.values())
        need = left if sampling.max_tokens is None else sampling.max_tokens
        if need > left or left <= 0:
            raise BudgetExceeded(
                f"budget={self.budget} tokens: {self._spent} are generated and {sum(self._reserved.values())} promised to "
                f"generations under way, {sampling.max_tokens or 'any number'} more do not fit; raise the budget, lower "
                "max_tokens, or read earlier values first",
                where=where,
                branch=seq.path,
            )
        return msgspec.structs.replace(sampling, max_tokens=need)

    # --- the body
    # ------------------------------------------------------------------------------------------------------

    def body_returned(self, value: Any) -> None:
        """The body is done; the program ends when the backend and the host have finished what was recorded."""
        with self._locked():
            self._body = (True, value)
            for seq in self.seqs.values():
                if seq.open_text is not None:  # nothing follows it: known here, of no use to the backend
                    seq.open_text.complete, seq.open_text.status = True, "done"
                    seq.open_text = None
        self.bell.ring()
        self._end_when_done()
        self._settle()

    def body_raised(self, error: BaseException) -> None:
        """The body raised: everything under way is given up, and readers get this error."""
        if isinstance(error, asyncio.CancelledError):
            error = (
                self.cause if self.cause is not None else Aborted(f"the task of program {self.name!r} was cancelled")
            )
        error.add_note(f"in the ramet program {self.name!r}")
        with self._locked():
            self._body = (False, error)
        self.cancel(error)
        self._settle()

    def cancel(self, cause: BaseException) -> None:
        """Cut the program short. The first cause counts; later ones do nothing."""
        with self._locked():
            if self.cause is not None or self.ended is not None:
                return
            self.cause = cause
            children = list(self.children)
        for child in children:
            child.cancel(Aborted(f"the program {self.name!r} that called this one was cut short"))
        try:
            if self.outbox.session is not None:
                self.outbox.session.cancel()
        except GenerationError as error:
            self._lost(error)
        if self.on_cancel is not None:
            self.on_cancel()

    def _end_when_done(self) -> None:
        with self._locked():
            computing = any(e.kind == "put" and e.status == "recorded" for e in self.entries.values())
            waits = self._body is None or computing or self.outbox.holding or self.cause is not None or self._ending
            if waits or self.ended is not None:
                return
            self._ending = True
        self.outbox.flush()
        try:
            if self.outbox.session is not None:
                self.outbox.session.end()
        except GenerationError as error:
            self._lost(error)

    def _settle(self) -> None:
        with self._locked():
            if self.ended is None or self.outcome.done() or (self._body is None and self.cause is None):
                return
            error = self._final_error()
            value = self._body[1] if self._body is not None else None
            self._todo.append(lambda: _complete(self.outcome, value, error))
        self.bell.ring()

    def _final_error(self) -> BaseException | None:
        assert self.ended is not None
        if self._body is not None and not self._body[0] and (self.cause is None or self.cause is self._body[1]):
            return cast(BaseException, self._body[1])
        if self.cause is not None:
            return self.cause
        unread = [e for e in self.entries.values() if e.root is e and not e.read and e.error is not None]
        errors = [entry.error for entry in unread if isinstance(entry.error, Exception)]
        if len(errors) == 1:
            return errors[0]
        if errors:
            return ExceptionGroup(f"{len(errors)} operations of program {self.name!r} failed", errors)
        if self.ended.kind and any(entry.status != "done" for entry in self.entries.values()):
            return self._error(self.ended.kind, self.ended.message)
        return None

    # --- events
    # --------------------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Take an event; called from the backend's thread."""
        with self._locked():
            if self.ended is not None:
                return
            self.events.append(event)
            self._take(event)
        self.bell.ring()
        if isinstance(event, Ended):
            self._settle()

    def _take(self, event: Event) -> None:
        if isinstance(event, Ended):
            self.ended = event
            self._finish_all(event)
            return
        entry = self.entries.get(event.op)
        if entry is None or entry.status in ("failed", "done"):
            return
        match event:
            case Started():
                entry.status = "running"
            case Token(text=text):
                entry.pieces.append(text)
            case Finished(value=value, meta=meta):
                entry.meta = meta
                self._reserved.pop(entry.id, None)
                self._spent += meta.completion_tokens if entry.kind == "gen" else 0
                self._done(entry, value)
            case Joined(text=text) | Rendered(text=text):
                self._done(entry, text)
            case Forked():
                self._done(entry, "")
            case Failed(kind=kind, message=message, retryable=retryable):
                self._reserved.pop(entry.id, None)
                self._fail(entry, kind, message, retryable, self._root_of(entry))

    def _done(self, entry: Entry, text: str) -> None:
        streamed = "".join(piece for piece in entry.pieces if isinstance(piece, str))
        if text.startswith(streamed):  # keep the pieces: a stream has shown them, and shows only the rest
            entry.pieces += [text[len(streamed) :]] if len(text) > len(streamed) else []
        else:
            entry.pieces = [text]
        entry.complete = True
        entry.status = "done"
        self._todo.append(lambda: _complete(entry.future, text, None))

    def _root_of(self, entry: Entry) -> Entry | None:
        earlier = entry.seq.earlier_failure()
        for ref in entry.refs:
            earlier = earlier or ref.root
        branches = getattr(entry.op, "branches", ())
        for path in branches:
            earlier = earlier or self.seqs[path].earlier_failure()
        return earlier

    def _fail(self, entry: Entry, kind: str, message: str, retryable: bool, root: Entry | None) -> None:
        seq, tail = entry.seq, entry.seq.tail_before(entry)
        error: ProgramError
        if self.cause is not None:
            error = self._stopped(entry.where, seq, tail)
        else:
            error = self._error(kind, message, where=entry.where, branch=seq.path, prompt_tail=tail)
            error.retryable = retryable or type(error).retryable  # type: ignore[attr-defined]
        if root is not None:
            error.__cause__ = root.error
        self._failed(entry, error, root or entry)

    def _failed(self, entry: Entry, error: BaseException, root: Entry) -> None:
        entry.status, entry.error, entry.root = "failed", error, root
        if entry.kind != "put" and entry.seq.failed is None:
            entry.seq.failed, entry.seq.failed_at = root, entry.seq.entries.index(entry)
        self._todo.append(lambda: _complete(entry.future, "", error))

    def _finish_all(self, ended: Ended) -> None:
        for entry in self.entries.values():
            if entry.status not in ("recorded", "running") or entry.kind in ("put", "text"):
                continue
            if entry.kind in ("fork", "close"):
                entry.status = "done"
                continue
            kind = ended.kind or "generation"
            message = ended.message or "the backend ended the program without carrying out this operation"
            self._fail(entry, kind, message, False, self._root_of(entry))

    def _computed(self, entry: Entry, source: Future[Any]) -> None:
        error = source.exception()
        with self._locked():
            if error is None:
                entry.pieces = [value if isinstance(value := source.result(), str) else str(value)]
                entry.status = "done"
                self._todo.append(lambda: _complete(entry.future, entry.value_text(), None))
            else:
                roots = [e.root for e in self.entries.values() if e.error is error and e is not entry]
                self._failed(entry, error, roots[0] if roots and roots[0] is not None else entry)
            self.outbox.pump()
        self.bell.ring()
        self._end_when_done()

    def _poisoned(self, entry: Entry, root: Entry) -> None:
        what = "ToolError" if isinstance(root.error, ToolError) else type(root.error).__name__
        message = f"depends on {root.id} (at {root.where}), which failed with {what}"
        self._fail(entry, "generation", message, False, root)

    def _lost(self, error: GenerationError | ConstraintError) -> None:
        """The backend does not take operations any more: nothing of this program will be answered."""
        kind = "transport" if isinstance(error, TransportError) else "generation"
        self.deliver(Ended(usage=Usage(), kind=kind, message=error.message))

    # --- errors
    # --------------------------------------------------------------------------------------------------------

    def saw(self, error: BaseException | None) -> None:
        """A reader was given `error`: it needs no second report at the end."""
        for entry in self.entries.values():
            if error is not None and entry.error is error and entry.root is not None:
                entry.root.read = True

    def _stopped(self, where: str, seq: Seq, tail: str = "") -> ProgramError:
        kind = ProgramTimeout if isinstance(self.cause, ProgramTimeout) else Aborted
        message = self.cause.message if isinstance(self.cause, ProgramError) else "the program was cut short"
        error = kind(message, where=where, branch=seq.path, prompt_tail=tail)
        error.__cause__ = None if isinstance(self.cause, Aborted | ProgramTimeout) else self.cause
        return error

    def _error(self, kind: str, message: str, **at: str) -> GenerationError:
        return FAILURES.get(kind, GenerationError)(message, **at)


def _complete(future: Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
