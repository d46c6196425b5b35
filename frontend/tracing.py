"""One run of a program's body against symbols.

In: a body, its arguments (some of them symbols), and which outcome each decision takes. Out: the steps that it records,
what it reads, the decisions that it comes to, and how it ends. Nothing is sent anywhere and nothing waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn

import msgspec

from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.constraints import Wanted
from ramet.frontend.entries import Entry, Kind, Seq, merged
from ramet.frontend.execution import Execution
from ramet.frontend.ir import Choices, Close, Gen, Header, Meta, Put, Ref, Select, Text
from ramet.frontend.lazy import Lazy
from ramet.frontend.outbox import Outbox
from ramet.frontend.planned import Break, BreakKind, Param, Part, Read, Return, Step, Use
from ramet.frontend.probes import Altered, Probe, marked
from ramet.frontend.record import Record
from ramet.frontend.symbols import Opaque, Symbol
from ramet.frontend.users import place, places

_META = Meta()
MOST_STEPS = 10_000  # of one path


class Choice(msgspec.Struct, frozen=True):
    """The path takes outcome `taken` of a decision here."""

    on: Use | Param
    outcomes: tuple[str, ...]
    taken: int
    where: str


Found = Step | Read | Choice


class Stop(BaseException):
    """Ends a traced body. Not an Exception: a body's own handlers leave it alone."""


class Trace:
    """What one run of a body does. `script` has the outcome of its first decisions; later ones take the first."""

    def __init__(self, probe: Probe, script: Sequence[int] = (), most_choices: int = 64) -> None:
        self.probe = probe
        self._most_choices = most_choices
        self.found: list[Found] = []
        self.end: Break | Return | None = None
        self.readers: dict[str, Callable[[str], Any]] = {}  # typed values: op → text → value
        self._script = tuple(script)
        self._taken: dict[Use | Param, str] = {}
        self._read: set[str] = set()

    # --- what ends it ---

    def stop(self, kind: BreakKind, reason: str, where: str = "") -> NoReturn:
        """Python must go on from here."""
        if self.end is None:
            lines = [where] if where else places()
            called = f" (called from {lines[-1]})" if len(lines) > 1 else ""
            self.end = Break(kind, reason + called, lines[0] if lines else place())
        raise Stop

    def look(self, what: str) -> NoReturn:
        """See `symbols.Observer`."""
        self.stop("look", f"Python {what}")

    # --- what it reads ---

    def decide(self, on: Param | Use, domain: tuple[str, ...]) -> str:
        """See `symbols.Observer`."""
        known = self._taken.get(on)
        if known is None:
            index = len(self._taken)
            if index >= self._most_choices:
                self.stop("limit", f"a path has more than {index} decisions: does a loop end? (max_paths={index})")
            taken = self._script[index] if index < len(self._script) else 0
            self._add(Choice(on, domain, taken, place()))
            known = self._taken[on] = domain[taken]
        return known

    def text_of(self, entry: Entry) -> Any:
        """What reading a text gives."""
        self._reads(entry)
        use = Use(entry.id)
        return Symbol.of(self.probe.text(use), self, use, _domain(entry))

    def typed(self, entry: Entry, want: Wanted) -> Any:
        """What reading a typed value gives."""
        assert want.read is not None
        self._reads(entry)
        use = Use(entry.id)
        values = [want.read(text, _META) for text in want.choices]
        if want.choices and all(type(v) is str and v == t for v, t in zip(values, want.choices, strict=True)):
            return Symbol.of(self.probe.text(use), self, use, want.choices)
        if want.choices:
            return values[want.choices.index(self.decide(use, want.choices))]
        read = want.read
        self.readers[entry.id] = lambda text: read(text, _META)
        number = {"int": Use(entry.id, "int"), "float": Use(entry.id, "float")}.get(want.name)
        said = self.probe.text(number) if number else None
        return Opaque(self, number or Use(entry.id, "json"), _kind(want.name), said)

    def _reads(self, entry: Entry) -> None:
        if entry.id not in self._read:
            self._read.add(entry.id)
            steps = sum(isinstance(item, Step) for item in self.found)
            self._add(Read(entry.id, steps, place()))

    # --- what it records ---

    def _add(self, item: Found) -> None:
        if self.end is not None:
            raise Stop
        self.found.append(item)

    def record(self, entry: Entry) -> None:
        """An operation leaves."""
        if self.end is not None:
            return  # the body is on its way out
        if len(self.found) >= MOST_STEPS:
            self.stop("limit", f"a path has more than {MOST_STEPS} steps: does a loop end?", entry.where)
        step = self._step(entry)
        if step is not None:
            self._add(step)

    def _step(self, entry: Entry) -> Step | None:
        if entry.kind in ("text", "put"):
            parts = self._parts(entry)
            if entry.kind == "put":
                return Step(Put(id=entry.id, seq=entry.seq.path, var=entry.var, value=""), entry.where, parts)
            return Step(Text(id=entry.id, seq=entry.seq.path, parts=()), entry.where, parts) if parts else None
        op = entry.op
        assert op is not None, entry.kind
        if isinstance(op, Select) and any(marked(choice) for choice in op.choices):
            choices = tuple(self._cut(choice, entry.where) for choice in op.choices)
            return Step(msgspec.structs.replace(op, choices=()), entry.where, choices=choices)
        raw = msgspec.json.encode(op).decode()
        if marked(raw):
            kind = type(op).__name__
            self.stop("look", f"an option of this {kind} is made from {self.probe.names(raw)}", entry.where)
        return Step(op, entry.where)

    def _parts(self, entry: Entry) -> tuple[Part, ...]:
        parts: list[Part] = []
        for piece in merged(entry.pieces):
            parts += self._cut(piece, entry.where) if isinstance(piece, str) else [Ref(op=piece.id)]
        return tuple(parts)

    def _cut(self, text: str, where: str) -> tuple[Part, ...]:
        try:
            return self.probe.cut(str.__str__(text))
        except Altered as error:
            self.stop("differs", f"Python changes the text of {self.probe.names(text)}: {error}", where)


class TraceExecution(Execution):
    """A program that is traced: operations go to the trace, values are symbols."""

    def __init__(self, name: str, trace: Trace) -> None:
        super().__init__(name, Header(name=name), Nowhere(trace))
        self.trace = trace
        self.outbox = _Log(self._lock, self.record, trace)

    def _entry(self, seq: Seq, kind: Kind, where: str, var: str = "", refs: Sequence[Entry] = ()) -> Entry:
        entry = super()._entry(seq, kind, where, var, refs)
        if kind in ("gen", "select"):
            entry.future = Lazy(lambda: self.trace.text_of(entry))
        return entry

    def typed(self, entry: Entry, want: Wanted) -> Future[Any]:
        """See `Execution.typed`."""
        return Lazy(lambda: self.trace.typed(entry, want))

    def listing(self, futures: Sequence[Future[Any]]) -> Future[Any] | None:
        """See `Execution.listing`."""
        return Lazy(lambda: [future.result() for future in futures])


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


def _domain(entry: Entry) -> tuple[str, ...]:
    op = entry.op
    if isinstance(op, Select):
        return () if any(marked(choice) for choice in op.choices) else op.choices
    if isinstance(op, Gen) and isinstance(op.constraint, Choices):
        return op.constraint.choices
    return ()


def _kind(name: str) -> type:
    return {"int": int, "float": float}.get(name, object)
