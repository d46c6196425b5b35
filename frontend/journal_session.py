"""A program's session through its journal: what was finished before goes out as known text, what finishes is recorded.

In: operations of a body, events of a backend. Out: the same operations with every finished call replaced by its value
(the very tokens, where the backend has told them); all events, on the journal's thread, a call's end only once it is
on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ramet.frontend.backends.base import Deliver
from ramet.frontend.errors import JournalError
from ramet.frontend.ir import AnyOp, Ended, Event, Failed, Finished, Gen, Header, Put, Ref, Score, Started, Text, Token
from ramet.frontend.journal_digests import Call, Digests
from ramet.frontend.journal_file import CallRow

if TYPE_CHECKING:
    from ramet.frontend.journal_run import Scope


class JournalSession:
    """See `Session`."""

    def __init__(self, scope: Scope, header: Header, deliver: Deliver) -> None:
        self._scope = scope
        self._deliver = deliver
        self._order = threading.Lock()  # held while operations are handed over: batches keep their order
        self._digests = Digests(scope.budgeted)
        self._live: dict[str, str] = {}  # calls under way: their hashes
        self._inner = scope.backend.open(header, self._take)

    def send(self, ops: Sequence[AnyOp]) -> None:
        """See `Session.send`. A program that does something else than before is cancelled with `JournalMismatch`."""
        with self._order:
            digests = self._digests.copy()
            out: list[AnyOp] = []
            known: list[tuple[Call, Finished]] = []
            live: dict[str, str] = {}
            try:
                for op in ops:
                    digest = digests.after(op)
                    if not isinstance(op, Call):
                        out.append(op)
                    elif (row := self._scope.finished(op.id)) is None:
                        out.append(op)
                        live[op.id] = digest
                    else:
                        finished = _finished(self._scope, row, op, digest)
                        out += _as_known(op, finished)
                        known.append((op, finished))
            except JournalError as error:
                self._scope.give_up(error)
                return
            self._live.update(live)
            try:
                self._inner.send(out)
            except BaseException:
                for each in live:
                    del self._live[each]
                raise
            self._digests = digests
        for op, finished in known:
            for event in _as_events(op, finished):
                self._pass_on(event)

    def end(self) -> None:
        """See `Session.end`."""
        self._inner.end()

    def cancel(self) -> None:
        """See `Session.cancel`."""
        self._inner.cancel()

    def _take(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._scope.ended(event, lambda: self._deliver(event))
            return
        digest = self._live.pop(event.op, None) if isinstance(event, Finished | Failed) else None
        if digest is None or not isinstance(event, Finished):
            self._pass_on(event)
            return
        row = {"digest": digest, "finished": msgspec.to_builtins(event)}
        self._scope.record(event.op, "call", "done", row, lambda: self._deliver(event))

    def _pass_on(self, event: Event) -> None:
        self._scope.then(lambda: self._deliver(event))


def _finished(scope: Scope, row: CallRow, op: Call, digest: str) -> Finished:
    """What the journal says of a call. Raises `JournalMismatch` when it was another one, `JournalError` when it cannot
    be read."""
    if row.record.get("digest") != digest:
        raise scope.mismatch(op.id, "generates something else, or after another text")
    try:
        plain: Any = row.record["finished"]
        return msgspec.convert(plain, Finished)
    except (KeyError, msgspec.ValidationError) as error:
        raise JournalError(f"the journal's row of {op.id} cannot be read: {error}") from None


def _as_known(op: Call, finished: Finished) -> list[AnyOp]:
    """The operations that append a finished call's value, and define it for references."""
    if isinstance(op, Score):  # appends nothing
        return []
    told = finished.meta.tokens if isinstance(op, Gen) and (finished.meta.tokens or not finished.value) else None
    return [
        Put(id=op.id, seq=op.seq, var=op.var, value=finished.value, tokens=told),
        Text(id=f"{op.id}.known", seq=op.seq, parts=(Ref(op.id),)),
    ]


def _as_events(op: Call, finished: Finished) -> list[Event]:
    meta = finished.meta
    events: list[Event] = [Started(op.id, op.seq, op.var, meta.prompt_tokens, meta.cached_tokens)]
    if isinstance(op, Gen) and finished.value:
        events.append(Token(op.id, op.seq, finished.value, op.var, meta.logprobs, meta.tokens))
    return [*events, finished]
