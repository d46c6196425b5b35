"""The record of one run: its sequences, its operations, its events, what failed and why.

In: entries as they are recorded, events as they come. Out: futures to complete (in `todo`: the owner does it once its
lock is released), and the error that a run ends with. It has no lock: every method runs under its owner's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import msgspec

from ramet.frontend.entries import Entry, Seq
from ramet.frontend.errors import (
    FAILURES,
    Aborted,
    BudgetExceeded,
    ConstraintError,
    ContextOverflow,
    GenerationError,
    ProgramError,
    ProgramTimeout,
)
from ramet.frontend.ir import ROOT, Ended, Event, Failed, Finished, Forked, Joined, Rendered, Sampling, Started, Token
from ramet.frontend.readings import Actor, Reading, actor


class Record:
    """`cause` is why the run was cut short, `ended` the backend's terminal event; both None while it goes on. `times`
    says when each event came; `began` and `body_ended` (0.0: not yet) are the run's own, all in seconds of
    `time.monotonic`; `actor` runs the body."""

    def __init__(self, name: str, budget: int | None) -> None:
        self.name = name
        self.budget = budget
        self.root = Seq(ROOT)
        self.seqs: dict[str, Seq] = {ROOT: self.root}
        self.entries: dict[str, Entry] = {}
        self.events: list[Event] = []
        self.times: list[float] = []
        self.reads: list[Reading] = []
        self.began = time.monotonic()
        self.body_ended = 0.0
        self.actor: Actor | None = None
        self.cause: BaseException | None = None
        self.ended: Ended | None = None
        self.todo: deque[Callable[[], object]] = deque()
        self._spent = 0
        self._reserved: dict[str, int] = {}

    # --- recording ---

    def add(self, entry: Entry) -> None:
        """Remember an operation."""
        self.entries[entry.id] = entry
        entry.seq.entries.append(entry)

    def computing(self) -> bool:
        """The host still works on a value."""
        return any(e.kind == "put" and e.status == "recorded" for e in self.entries.values())

    def within_budget(self, sampling: Sampling, where: str, seq: Seq) -> Sampling:
        """The sampling with the `max_tokens` that the budget has room for; raises `BudgetExceeded` when it has none."""
        if self.budget is None:
            return sampling
        left = self.budget - self._spent - sum(self._reserved.values())
        promised = sum(self._reserved.values())
        need = left if sampling.max_tokens is None else sampling.max_tokens
        if need > left or left <= 0:
            raise BudgetExceeded(
                f"budget={self.budget} tokens: {self._spent} are generated, {promised} promised to generations under "
                f"way, {sampling.max_tokens or 'any number'} more do not fit; raise the budget, lower max_tokens, or "
                "read earlier values first",
                where=where,
                branch=seq.path,
            )
        return msgspec.structs.replace(sampling, max_tokens=need)

    def reserve(self, entry: Entry, sampling: Sampling) -> None:
        """Count a generation's `max_tokens` against the budget until it has finished."""
        if self.budget is not None:
            self._reserved[entry.id] = sampling.max_tokens or 0

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Remember, for EXPLAIN, how long Python waits inside for something that is no one operation's value."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.reads.append(Reading(actor(), (), began, time.monotonic(), what))

    # --- events ---

    def take(self, event: Event) -> None:
        """Apply an event."""
        self.times.append(time.monotonic())
        self.events.append(event)
        if isinstance(event, Ended):
            self.ended = event
            self._finish_all(event)
            return
        entry = self.entries.get(event.op)
        if entry is None or entry.error is not None or (entry.status == "done" and not _failed_text(entry, event)):
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
                self.done(entry, value)
            case Joined(text=text) | Rendered(text=text):
                self.done(entry, text)
            case Forked():
                self.done(entry, "")
            case Failed(kind=kind, message=message, retryable=retryable):
                self._reserved.pop(entry.id, None)
                self.fail(entry, kind, message, retryable, self._root_of(entry))

    def done(self, entry: Entry, text: str) -> None:
        """The operation has its text."""
        streamed = "".join(piece for piece in entry.pieces if isinstance(piece, str))
        if text.startswith(streamed):  # keep the pieces: a stream has shown them, and shows only the rest
            entry.pieces += [text[len(streamed) :]] if len(text) > len(streamed) else []
        else:
            entry.pieces = [text]
        entry.complete = True
        entry.status = "done"
        self.todo.append(lambda: complete(entry.future, text, None))

    def _root_of(self, entry: Entry) -> Entry | None:
        earlier = entry.seq.earlier_failure()
        for ref in entry.refs:
            earlier = earlier or ref.root
        branches = getattr(entry.op, "branches", ())
        for path in branches:
            earlier = earlier or self.seqs[path].earlier_failure()
        return earlier

    def fail(self, entry: Entry, kind: str, message: str, retryable: bool, root: Entry | None) -> None:
        """The operation failed; `root` is the earlier failure that it depends on."""
        seq, tail = entry.seq, entry.seq.tail_before(entry)
        error: ProgramError
        if self.cause is not None:
            error = self.stopped(entry.where, seq, tail)
        else:
            error = self.error(kind, message, where=entry.where, branch=seq.path, prompt_tail=tail)
            error.retryable = retryable or type(error).retryable
        if root is not None:
            error.__cause__ = root.error
        self.failed(entry, error, root or entry)

    def poisoned(self, entry: Entry, root: Entry) -> None:
        """It depends on `root`, which failed in this process: it was never sent."""
        reason = root.error.message if isinstance(root.error, ProgramError) else repr(root.error)
        message = f"depends on {root.id} (at {root.where}), which failed: {reason}"
        if self.cause is not None or not isinstance(root.error, ContextOverflow | ConstraintError):
            self.fail(entry, "generation", message, False, root)
            return
        tail = entry.seq.tail_before(entry)
        error = type(root.error)(message, where=entry.where, branch=entry.seq.path, prompt_tail=tail)
        error.__cause__ = root.error
        self.failed(entry, error, root)

    def refused(self, entry: Entry, error: ProgramError) -> None:
        """The backend does not take it: it fails with the backend's own error, at the user's line."""
        error.where, error.branch = entry.where, entry.seq.path
        error.prompt_tail = entry.seq.tail_before(entry)
        self._reserved.pop(entry.id, None)
        self.failed(entry, error, entry)

    def failed(self, entry: Entry, error: BaseException, root: Entry) -> None:
        """Mark it failed with `error`, of which `root` is the origin."""
        entry.status, entry.error, entry.root = "failed", error, root
        if entry.kind != "put" and entry.seq.failed is None:
            entry.seq.failed, entry.seq.failed_at = root, entry.seq.entries.index(entry)
        self.todo.append(lambda: complete(entry.future, "", error))

    def _finish_all(self, ended: Ended) -> None:
        for entry in self.entries.values():
            if entry.status not in ("recorded", "running") or entry.kind in ("put", "text"):
                continue
            if entry.kind in ("fork", "close"):
                entry.status = "done"
                continue
            kind = ended.kind or "generation"
            message = ended.message or "the backend ended the program without carrying out this operation"
            self.fail(entry, kind, message, False, self._root_of(entry))

    # --- errors ---

    def unread_failure(self) -> BaseException | None:
        """The failure that nobody has read: one error, or a group of those that do not depend on each other."""
        unread = [e for e in self.entries.values() if e.root is e and not e.read]
        errors = [entry.error for entry in unread if isinstance(entry.error, Exception)]
        if len(errors) == 1:
            return errors[0]
        if errors:
            return ExceptionGroup(f"{len(errors)} operations of program {self.name!r} failed", errors)
        if self.ended is not None and self.ended.kind and any(e.status != "done" for e in self.entries.values()):
            return self.error(self.ended.kind, self.ended.message)
        return None

    def saw(self, error: BaseException | None) -> None:
        """A reader was given `error`: it needs no second report at the end."""
        for entry in list(self.entries.values()):  # a reader holds no lock: others may record meanwhile
            if error is not None and entry.error is error and entry.root is not None:
                entry.root.read = True

    def stopped(self, where: str, seq: Seq, tail: str = "") -> ProgramError:
        """What an operation of a run that was cut short raises."""
        kind = ProgramTimeout if isinstance(self.cause, ProgramTimeout) else Aborted
        message = self.cause.message if isinstance(self.cause, ProgramError) else "the program was cut short"
        error = kind(message, where=where, branch=seq.path, prompt_tail=tail)
        error.__cause__ = None if isinstance(self.cause, Aborted | ProgramTimeout) else self.cause
        return error

    def error(self, kind: str, message: str, **at: str) -> GenerationError:
        """The exception of a failure that the backend named by its kind."""
        return FAILURES.get(kind, GenerationError)(message, **at)


def _failed_text(entry: Entry, event: Event) -> bool:
    """A text is known here as soon as it is recorded, and may still be refused by the backend."""
    return entry.kind == "text" and isinstance(event, Failed)


def complete(future: Future[Any], value: Any, error: BaseException | None) -> None:
    """Complete a future once; later calls do nothing."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
