"""A traced program's own objects: its execution, its states, and the backend that it never reaches.

In: what a body records. Out: operations of a `Trace`, symbols in place of values. What is the language's alone runs
unwatched.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self

from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.constraints import Wanted
from ramet.frontend.core import Core
from ramet.frontend.entries import Entry, Kind, Seq
from ramet.frontend.execution import Execution
from ramet.frontend.expressions import Concat, Piece
from ramet.frontend.ir import AnyOp, Close, Header, SelectMethod
from ramet.frontend.lazy import Lazy
from ramet.frontend.outbox import Outbox
from ramet.frontend.record import Record
from ramet.frontend.sampling import Sampling
from ramet.frontend.state import State
from ramet.frontend.tracing import Trace
from ramet.frontend.values import Value
from ramet.frontend.waiting import Bell
from ramet.frontend.where import user_line

_PLAIN = (str, int, float, bool, type(None))  # equal ones of one type are the same option


class TraceExecution(Execution):
    """A program that is traced: operations go to the trace, values are symbols."""

    def __init__(self, name: str, trace: Trace) -> None:
        super().__init__(name, Header(name=name), Nowhere(trace))
        self.trace = trace
        self.outbox = _Log(self._lock, self.record, trace)
        self.bell = _Dumb()
        self._never: Future[str] = Future()  # of what has no value
        self._alone = _Alone(self.record)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return self._alone

    def forget(self) -> None:
        """Nothing reads the record any more: undo its cycles, so that all of it goes at once, without a collection."""
        for entry in self.record.entries.values():
            entry.future = self._never
            entry.seq.entries.clear()
        self.record.entries.clear()

    def add(
        self, seq: Seq, kind: Kind, where: str, make: Callable[[str], AnyOp], var: str = "", refs: Sequence[Entry] = ()
    ) -> Entry:
        """See `Execution.add`."""
        with self.trace.unwatched:
            return super().add(seq, kind, where, make, var, refs)

    def close(self, seq: Seq, reason: str) -> None:
        """See `Execution.close`."""
        with self.trace.unwatched:
            super().close(seq, reason)

    def _entry(self, seq: Seq, kind: Kind, where: str, var: str = "", refs: Sequence[Entry] = ()) -> Entry:
        if kind == "put":
            return super()._entry(seq, kind, where, var, refs)
        entry = Entry(seq.next_id(), seq, kind, where, var, tuple(refs), future=self._never)
        if kind in ("gen", "select"):
            entry.future = Lazy(lambda: self.trace.text_of(entry))
        self.record.add(entry)
        return entry

    def add_text(self, seq: Seq, piece: str | Entry, where: str) -> None:
        """See `Execution.add_text`."""
        with self.trace.unwatched:
            self.trace.appended()
            super().add_text(seq, piece, where)

    def typed(self, entry: Entry, want: Wanted) -> Future[Any]:
        """See `Execution.typed`."""
        return Lazy(lambda: self.trace.typed(entry, want))

    def listing(self, futures: Sequence[Future[Any]]) -> Future[Any] | None:
        """See `Execution.listing`."""
        return Lazy(lambda: [future.result() for future in futures])


class _Alone:
    """In place of an execution's lock: a trace has one thread."""

    def __init__(self, record: Record) -> None:
        self._todo = record.todo

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        while self._todo:
            self._todo.popleft()()


class TraceCore(Core):
    """What records generations, choices, roles and forks of a traced state: the language alone, which nobody need
    watch."""

    execution: TraceExecution

    def _wanted(self, type_: Any, arguments: Mapping[str, Any], where: str) -> Wanted:
        with self.execution.trace.unwatched.lifted():  # types of the user's have methods of their own
            return super()._wanted(type_, arguments, where)

    def checked(self, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """See `Core.checked`; plain options that were valid once are."""
        known = self.execution.trace.shared.checked
        key = tuple((name, type(value), value) for name, value in options.items())
        if not all(kind in _PLAIN for _, kind, _ in key):
            with self.execution.trace.unwatched:
                return super().checked(options, where)
        if key not in known:
            with self.execution.trace.unwatched:
                known[key] = super().checked(options, where)
        return known[key].copy()

    def gen(
        self,
        name: str | None,
        options: Mapping[str, Any],
        n: int,
        timeout: float | None,
        where: str,
        want: Wanted,
        method: SelectMethod = "token_length_normalized",
    ) -> Value[Any]:
        """See `Core.gen`."""
        if timeout is not None:
            self.execution.trace.stop("feature", "a generation has a timeout")
        return super().gen(name, options, n, timeout, where, want, method)

    def sampling(self, options: Mapping[str, Any], where: str) -> Sampling:
        """See `Core.sampling`; options that were valid once are."""
        key = tuple(options.items())
        try:
            known = self.execution.trace.shared.samplings.get(key)
        except TypeError:  # a bias of logits
            return super().sampling(options, where)
        if known is None:
            known = self.execution.trace.shared.samplings[key] = super().sampling(options, where)
        return known

    def _sampled(
        self, name: str | None, options: Mapping[str, Any], timeout: float | None, where: str, want: Wanted
    ) -> Value[Any]:
        with self.execution.trace.unwatched:
            return super()._sampled(name, options, timeout, where, want)

    def _choose(self, name: str | None, choices: tuple[str, ...], method: SelectMethod, where: str) -> Entry:
        with self.execution.trace.unwatched:
            return super()._choose(name, choices, method, where)

    def role(self, role: str, begin: bool, where: str) -> None:
        """See `Core.role`."""
        with self.execution.trace.unwatched:
            super().role(role, begin, where)

    def child_cores(self, items: Sequence[object], where: str) -> list[Core]:
        """See `Core.child_cores`."""
        with self.execution.trace.unwatched:
            return super().child_cores(items, where)


class TraceState(State):
    """A traced state. What appends plain text, generates or opens a message of given content is the language alone;
    whoever appends a value may ask an object of the user's for its text."""

    _core: TraceCore

    def _child(self, core: Core) -> State:
        return TraceState(core)

    def __iadd__(self, other: Piece) -> Self:
        if type(other) is not str:
            return super().__iadd__(other)
        with self._core.execution.trace.unwatched:
            return super().__iadd__(other)

    def _append(self, piece: Piece, where: str) -> None:
        if isinstance(piece, Value | Concat):
            super()._append(piece, where)
        else:
            with self._core.execution.trace.unwatched:
                super()._append(piece, where)

    def __getitem__(self, name: str) -> Any:
        return self._core.execution.trace.handed(super().__getitem__(name))

    def gen(self, type: Any = str, *, n: int | None = None, **options: Any) -> Value[Any]:
        """See `State.gen`."""
        with self._core.execution.trace.unwatched:
            return self._gen(type, n, options, user_line())

    def __repr__(self) -> str:
        return f"<State {self._core.seq.path} of {self._core.execution.name!r}>"  # as a run says it


class _Dumb(Bell):
    """Nobody waits for a trace."""

    def ring(self) -> None:
        return


class Nowhere:
    """The backend of a traced body: programs that the body starts would run there."""

    def __init__(self, trace: Trace, opened: bool = False) -> None:
        self._trace = trace
        self._opened = opened

    def open(self, header: Header, deliver: Deliver) -> Session:
        """The traced program's own session, once."""
        if self._opened:
            self._trace.stop("program", f"starts another program, {header.name!r}")
        self._opened = True
        return _Silence()

    def info(self) -> dict[str, object]:
        """Ends the trace: what a backend says is known to a run alone."""
        self._trace.stop("feature", "asks the backend about itself")

    def flush_cache(self) -> bool:
        """Ends the trace."""
        self._trace.stop("feature", "flushes the backend's cache")

    def close(self) -> None:
        """Ends the trace."""
        self._trace.stop("feature", "closes the backend")


class _Silence:
    def send(self, ops: Sequence[Any]) -> None:
        raise AssertionError("a trace sends nothing")

    def end(self) -> None:
        return

    def cancel(self) -> None:
        return


class _Log(Outbox):
    """Takes operations in the order in which an `Outbox` sends them."""

    def __init__(self, lock: threading.Lock, record: Record, trace: Trace) -> None:
        super().__init__(lock, record, lambda error: None, lambda: None)
        self._trace = trace
        self._seen: set[str] = set()

    def queue(self, entry: Entry) -> None:
        """Values of the host that it refers to go before it."""
        for ref in entry.refs:
            if ref.kind == "put" and ref.id not in self._seen:
                self._seen.add(ref.id)
                self._trace.record(ref)
        if isinstance(entry.op, Close) and entry.op.now:
            self._trace.stop("feature", "stops a branch", entry.where)
        self._trace.record(entry)

    def pump(self) -> None:
        """Nothing is held back."""

    def flush(self) -> None:
        """Nothing is sent."""
