"""Operations on their way to the backend.

In: recorded operations. Out: batches of them, in the order in which they were recorded. They go at the next read, at
the end, or when nothing was recorded for 2 ms (50 ms after the first at the latest), so that what is recorded together
(the branches of a fork) arrives together. A value that this process still computes is announced before what refers to
it, and sent when it is there: the backend has all text around it, and knows what will follow, while it is computed.
When it fails, what refers to it fails here at once, and at the backend.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from ramet.frontend.backends.base import Session
from ramet.frontend.entries import Entry, Seq, merged
from ramet.frontend.errors import ProgramError, TransportError
from ramet.frontend.host import HOST
from ramet.frontend.ir import ROOT, AnyOp, Close, Fork, Join, Put, Ref, Text
from ramet.frontend.record import Record

QUIET = 0.002  # seconds without a new operation after which those that are ready leave
PATIENCE = 0.05  # seconds that an operation waits for others to travel with it, at most


class Outbox:
    """`queue` and `pump` run under the owner's lock; `flush` takes it itself.

    `lost(error)` says that the backend is gone; `complete()` completes the futures of operations that were refused.
    """

    def __init__(
        self,
        lock: threading.Lock,
        record: Record,
        lost: Callable[[ProgramError], None],
        complete: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._record = record
        self._lost = lost
        self._complete = complete
        self._order = threading.Lock()  # held while a batch is handed over: batches keep their order
        self._ready: list[AnyOp] = []
        self._held: list[Entry] = []
        self._created = {ROOT}
        self._due: set[str] = set()  # values that were announced
        self._armed = False  # a timer is on its way
        self._first = self._latest = 0.0  # when the ready operations were recorded
        self.session: Session | None = None
        self.abandoned: deque[Seq] = deque()  # sequences whose State was collected; filled by __del__, without a lock

    @property
    def holding(self) -> bool:
        """Some operation waits for a value of the host."""
        return bool(self._held)

    def queue(self, entry: Entry) -> None:
        """Take a recorded operation; values of the host that it refers to travel, or are announced, before it."""
        for ref in entry.refs:
            if ref.kind == "put" and not ref.sent and ref not in self._held:
                self._held.append(ref)
        self._held.append(entry)
        self.pump()

    def pump(self) -> None:
        """Move everything that can go now from the held to the ready operations, in the order of recording: all but
        values that are still being computed. Whatever refers to one of those goes behind its announcement."""
        held: list[Entry] = []
        for entry in self._held:
            root = self._dead_cause(entry)
            if root is not None:
                self._bury(entry, root)
            elif entry.kind == "put" and entry.status != "done":
                held.append(entry)
            else:
                for ref in entry.refs:
                    self._announce(ref)
                self._go(entry)
        self._held = held

    def _announce(self, ref: Entry) -> None:
        """Say that the value of `ref` will come, unless it has come, or was announced."""
        if ref.kind == "put" and not ref.sent and ref.id not in self._due:
            self._due.add(ref.id)
            self._leave(self._put(ref, due=True))

    def _put(self, entry: Entry, value: str = "", *, due: bool = False, failed: str = "") -> Put:
        seq = entry.seq.path if entry.seq.path in self._created else ROOT  # a branch that failed before it began
        return Put(id=entry.id, seq=seq, var=entry.var, value=value, due=due, failed=failed)

    def _dead_cause(self, entry: Entry) -> Entry | None:
        if entry.kind == "put":
            return entry.root if entry.status == "failed" else None
        if entry.seq.dead is not None:
            return entry.seq.dead
        for ref in entry.refs:
            if ref.status == "failed" and not ref.sent:
                return ref.root
        if isinstance(entry.op, Join):
            for path in entry.op.branches:
                if self._record.seqs[path].dead is not None:
                    return self._record.seqs[path].dead
        return None

    def _bury(self, entry: Entry, root: Entry) -> None:
        if entry.kind == "put":
            self._withdraw(entry)
            return
        if isinstance(entry.op, Close):
            if entry.seq.path in self._created:
                self._go(entry)
            return
        self._kill(entry, root)
        self._record.poisoned(entry, root)

    def _withdraw(self, put: Entry) -> None:
        """An announced value will not come: what was sent in the hope of it fails here, and at the backend too."""
        if put.id not in self._due:
            return
        self._due.discard(put.id)
        self._leave(self._put(put, failed=str(put.error) or type(put.error).__name__))
        for entry in self._record.entries.values():
            open_or_text = entry.kind == "text" or entry.status in ("recorded", "running")
            if entry.sent and open_or_text and entry.error is None and not isinstance(entry.op, Close):
                root = self._dead_cause(entry)
                if root is not None:
                    entry.sent = False
                    self._bury(entry, root)

    def _kill(self, entry: Entry, root: Entry) -> None:
        """Nothing later on its sequence can be carried out."""
        if isinstance(entry.op, Fork):
            self._created.difference_update(entry.op.into)
            for path in entry.op.into:
                self._record.seqs[path].dead = root
        if entry.kind != "put":
            entry.seq.dead = root

    def _go(self, entry: Entry) -> None:
        entry.sent = True
        if entry.kind == "put":
            op: AnyOp = self._put(entry, entry.value_text())
        elif entry.kind == "text":
            parts = tuple(p if isinstance(p, str) else Ref(op=p.id) for p in merged(entry.pieces))
            if not parts:
                return
            op = Text(id=entry.id, seq=entry.seq.path, parts=parts)
        else:
            assert entry.op is not None, entry.kind
            op = entry.op
        if isinstance(op, Fork):
            self._created.update(op.into)
        self._leave(op)

    def _leave(self, op: AnyOp) -> None:
        self._latest = time.monotonic()
        if not self._ready:
            self._first = self._latest
        self._ready.append(op)
        if not self._armed:
            self._arm(QUIET)

    def _arm(self, seconds: float) -> None:
        self._armed = True
        look = weakref.WeakMethod(self._look)  # a timer keeps no run alive
        HOST.later(seconds, lambda: method() if (method := look()) is not None else None)

    def _look(self) -> None:
        """The timer: send, or look again when the newest operation will have waited long enough."""
        with self._lock:
            self._armed = False
            leave = min(self._latest + QUIET, self._first + PATIENCE) if self._ready else 0.0
            left = leave - time.monotonic()
            if left > 0:
                self._arm(left)
                return
        self.flush()

    def flush(self) -> None:
        """Hand over everything that is ready. Never waits."""
        with self._order:
            with self._lock:
                self._close_abandoned()
                ops, self._ready = self._ready, []
            if not ops or self.session is None:
                return
            self._stamp(ops)
            gone: TransportError | None = None
            try:
                self._send(ops)
            except TransportError as error:
                gone = error
        if gone is not None:
            self._lost(gone)
        self._complete()

    def _stamp(self, ops: list[AnyOp]) -> None:
        now, entries = time.monotonic(), self._record.entries
        for op in ops:
            if (entry := entries.get(op.id)) is not None:  # not the Close of a branch that was collected
                entry.sent_at = now

    def _send(self, ops: list[AnyOp]) -> None:
        assert self.session is not None, "the owner opens a session before anything is recorded"
        refusal: ProgramError | None = None
        try:
            self.session.send(ops)
        except TransportError:
            raise
        except ProgramError as error:
            refusal = error
        if refusal is None:
            return
        if len(ops) == 1:
            self._refuse(ops[0], refusal)
            return
        for op in ops:  # nothing of the batch has happened: all but what is wrong can still be carried out
            if not self._follows_refused(op):
                self._send([op])

    def _refuse(self, op: AnyOp, error: ProgramError) -> None:
        entry = self._record.entries.get(op.id)
        if entry is None:  # the Close of a branch that was collected
            return
        with self._lock:
            entry.sent = False
            self._record.refused(entry, error.with_traceback(None))  # where the backend found it says nothing
            self._kill(entry, entry.root or entry)
            if entry.kind == "put":
                self._withdraw(entry)

    def _follows_refused(self, op: AnyOp) -> bool:
        """It depends on an operation that was refused: it fails too, and is not sent."""
        entry = self._record.entries.get(op.id)
        if entry is None or isinstance(op, Close) or (isinstance(op, Put) and op.failed):
            return False
        with self._lock:
            root = self._dead_cause(entry)
            if root is not None:
                entry.sent = False
                self._bury(entry, root)
        return root is not None

    def _close_abandoned(self) -> None:
        while self.abandoned:
            seq = self.abandoned.popleft()
            if not seq.closed and seq.path in self._created:
                seq.closed = "is closed"
                self._ready.append(Close(id=seq.next_id(), seq=seq.path))
