"""A run that is recorded: what it knows from before, what it records, who may go on with it.

In: calls as they begin and end, from any thread. Out: rows of the journal; of calls that are finished already, their
results. Programs that the run's body calls are parts of it: each is a scope, and the paths of its operations begin with
its own.
"""

from __future__ import annotations

import contextvars
import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ramet.frontend.backends.base import Backend, Deliver, Session
from ramet.frontend.errors import (
    Aborted,
    ConstraintError,
    JournalError,
    JournalMismatch,
    ToolError,
    UncertainToolCall,
)
from ramet.frontend.ir import Ended, Header
from ramet.frontend.journal_file import CallRow, Mark, RunRow, Statement, calling, forgetting
from ramet.frontend.journal_session import JournalSession
from ramet.frontend.journal_text import Unwritable, described, digest
from ramet.frontend.journal_writer import Journal

if TYPE_CHECKING:
    from ramet.frontend.execution import Execution
    from ramet.frontend.hostcalls import HostCall

F = TypeVar("F", bound=Callable[..., Any])
MARK = "__ramet_idempotent__"


class Recording:
    """One run in its journal, held by this process until it has ended and its last host call with it."""

    def __init__(self, journal: Journal, row: RunRow, calls: Mapping[str, CallRow]) -> None:
        self.journal = journal
        self.row = row
        self._calls = dict(calls)
        self._lock = threading.Lock()
        self._working = 0  # host calls that were begun here
        self._over = False
        self._released = False
        self.failures: dict[str, BaseException] = {}  # host calls that raised, by their paths

    def known(self, op: str) -> CallRow | None:
        """What is recorded of a call from before."""
        return self._calls.get(op)

    def begin(self) -> bool:
        """A host call is about to begin; False when the run is over."""
        with self._lock:
            self._working += not self._over
            return not self._over

    def finished(self) -> None:
        """A host call that was begun has ended."""
        with self._lock:
            self._working -= 1
        self._release()

    def close(self) -> None:
        """The run has ended; somebody else may take it once its host calls have too."""
        self.journal.locks.ending(self.row.number)
        with self._lock:
            self._over = True
        self._release()

    def _release(self) -> None:
        with self._lock:
            if not self._over or self._working or self._released:
                return
            self._released = True
        self.journal.release(self.row.number)


class Scope:
    """The part of a recording that is one program's: the run's own (its `prefix` is empty), or that of a program that
    it calls. It is where the program's sessions are opened."""

    def __init__(
        self,
        recording: Recording,
        backend: Backend,
        seed: int,
        budgeted: bool,
        caller: Scope | None = None,
        at: str = "",
    ) -> None:
        self.backend = backend
        self.budgeted = budgeted
        self.seed = seed
        self._recording = recording
        self._caller = caller
        self._prefix = at
        self._execution: Execution | None = None
        self._lock = threading.Lock()
        self._children: dict[str, int] = {}
        self._marks: dict[str, str] = {}  # of host calls under way: hashes of what they were given

    @property
    def id(self) -> str:
        """The run's id."""
        return self._recording.row.run

    def open(self, header: Header, deliver: Deliver) -> Session:
        """See `Opener.open`."""
        try:
            return JournalSession(self, header, deliver)
        except BaseException:
            if not self._prefix:
                self._recording.close()
            raise

    def attach(self, execution: Execution) -> None:
        """The program that this is of; before its session is opened."""
        self._execution = execution

    def child(self, name: str, inside: str, backend: Backend, seed: int | None, budgeted: bool) -> Scope:
        """The scope of a program that this one's body (or its host call `inside`) calls. Calls of one name (which has a
        hash of the arguments) are counted; without a seed of its own, it gets one that follows from its path."""
        path = f"{self._prefix}{inside}>{name}"
        with self._lock:
            count = self._children.get(path, 0)
            self._children[path] = count + 1
        prefix = f"{path}.{count}:"
        seed = derived_seed(self.seed, prefix) if seed is None else seed
        return Scope(self._recording, backend, seed, budgeted, self, prefix)

    # --- generations and choices ---

    def finished(self, op: str) -> CallRow | None:
        """What the journal has of a call that had finished."""
        return self._recording.known(self._prefix + op)

    def mismatch(self, op: str, how: str) -> JournalMismatch:
        """The error of an operation that is not the one that was recorded."""
        execution = self._execution
        entry = execution.record.entries.get(op) if execution is not None else None
        at = f" (at {entry.where})" if entry is not None and entry.where else ""
        return JournalMismatch(
            f"run {self.id} cannot go on: operation {self._prefix}{op}{at} {how}: what the program does has changed "
            "since it was recorded, or depends on time, chance or the world outside; do such things in host functions "
            "(s.call), whose results are recorded"
        )

    def then(self, act: Callable[[], object]) -> None:
        """Do something on the journal's thread, after all that was put before."""
        self._recording.journal.put((), lambda _: act())

    def record(self, op: str, kind: str, state: str, row: dict[str, Any], then: Callable[[], object]) -> None:
        """Record a call, then act; when it cannot be recorded, end the program with the `JournalError`."""

        def written_or_not(error: JournalError | None) -> None:
            if error is None:
                then()
            else:
                self._lost(error)

        self._put([calling(self.id, self._prefix + op, kind, state, row)], written_or_not)

    def _put(self, statements: list[Statement], then: Callable[[JournalError | None], None]) -> None:
        self._recording.journal.put(statements, then)

    def give_up(self, error: JournalError) -> None:
        """End the program with `error`, soon: whoever asks may hold its locks."""
        self.then(lambda: self._lost(error))

    def _lost(self, error: JournalError) -> None:
        """End the run: whoever called this program first, so that it does not take the error for an answer."""
        if self._caller is not None:
            self._caller._lost(error)
        assert self._execution is not None, "a session is opened for a program"
        self._execution.cancel(error)

    def ended(self, event: Ended, tell: Callable[[], None]) -> None:
        """The backend has nothing more to say. `tell` says so to the program, once all before has been told, and its
        end is recorded."""
        self.then(tell if self._prefix else lambda: self._conclude(event, tell))

    def _conclude(self, event: Ended, tell: Callable[[], None]) -> None:
        recording, execution = self._recording, self._execution
        assert execution is not None, "a session is opened for a program"
        value, error, over = execution.verdict()
        finished = over and error is None and not event.kind
        outcome = described(value if finished else f"{type(error).__name__}: {error}" if error else event.message)
        statements: list[Statement] = [Mark(self.id, "finished" if finished else "failed", outcome)]
        ended_by = list(_tree(error)) if error is not None else []
        for op, failure in recording.failures.items():
            if any(each is failure for each in ended_by):  # it is tried again when the run is resumed
                statements.append(forgetting(self.id, op))

        def then(trouble: JournalError | None) -> None:
            if trouble is not None:
                self._lost(trouble)
            recording.close()
            tell()

        self._put(statements, then)

    # --- host calls ---

    def key(self, op: str) -> str:
        """The idempotency key of a host call."""
        return idempotency_key_of(self.id, self._prefix + op)

    def call(self, call: HostCall, arguments: object, launch: Callable[[], None]) -> None:
        """A host call's arguments are known: `launch` it once its beginning is recorded, or complete its future with
        what was recorded. One that had begun, and whose result nobody knows, fails with `UncertainToolCall`, unless the
        function is idempotent."""
        mark = digest(call.name, described(arguments))
        row = self.finished(call.op)
        if row is not None and row.record.get("digest") != mark:
            error = self.mismatch(call.op, f"calls {call.name} with other arguments, or another function")
            self._lost(error)  # before the body can raise what follows from it
            call.future.set_exception(error)
        elif row is not None and row.state == "done":
            call.future.set_result(row.record.get("value"))
        elif row is not None and row.state == "failed":
            self._failed_again(call, str(row.record.get("error")))
        elif row is not None and not is_idempotent(call.fn):
            call.future.set_exception(self._uncertain(call))
        else:
            self._marks[call.op] = mark
            self._begin(call, launch)

    def _begin(self, call: HostCall, launch: Callable[[], None]) -> None:
        if not self._recording.begin():
            message = "the program was cut short before this call"
            call.future.set_exception(Aborted(message, where=call.where, branch=call.branch))
            return
        context = contextvars.copy_context()

        def then(error: JournalError | None) -> None:
            if error is None:
                context.run(launch)
            else:
                self._lost(error)
                self._recording.finished()
                call.future.set_exception(error)

        self._put([self._row(call, "begun")], then)

    def _row(self, call: HostCall, state: str, **more: Any) -> Statement:
        record = {"digest": self._marks[call.op], "name": call.name, **more}
        return calling(self.id, self._prefix + call.op, "host", state, record)

    def returned(self, call: HostCall, value: Any) -> None:
        """The function has returned. Its value is there once it is recorded."""
        try:
            statements = [self._row(call, "done", value=value)]
        except Unwritable as error:
            if is_idempotent(call.fn):  # a resumed run calls it again
                self._settle(call, [], value, None)
            else:
                self._settle(call, [], None, _unwritable(call, error))
        else:
            self._settle(call, statements, value, None)

    def raised(self, call: HostCall, error: BaseException) -> None:
        """The function has raised; `error` says so to readers. An interruption is no answer of the function's: what
        became of it stays unknown. So is what a program that it calls says when the journal fails, or the run ends."""
        statements = []
        if isinstance(error.__cause__, Exception) and not self._interrupted(error):
            statements = [self._row(call, "failed", error=f"{type(error.__cause__).__name__}: {error.__cause__}")]
            self._recording.failures[self._prefix + call.op] = error
        self._settle(call, statements, None, error)

    def _interrupted(self, error: BaseException) -> bool:
        ending = self._execution is not None and self._execution.record.cause is not None
        ends = (JournalError, Aborted) if ending else JournalError
        return any(isinstance(each, ends) for each in _tree(error))

    def _failed_again(self, call: HostCall, message: str) -> None:
        """A call that had failed before fails again, without being made."""
        error = ToolError(f"{call.name} raised {message}", where=call.where, branch=call.branch)
        self._recording.failures[self._prefix + call.op] = error
        call.future.set_exception(error)

    def _settle(self, call: HostCall, statements: list[Statement], value: Any, error: BaseException | None) -> None:
        def then(trouble: JournalError | None) -> None:
            failure = trouble or error
            if trouble is not None:
                self._lost(trouble)
            self._recording.finished()
            if failure is None:
                call.future.set_result(value)
            else:
                call.future.set_exception(failure)

        self._put(statements, then)

    def _uncertain(self, call: HostCall) -> UncertainToolCall:
        op, key = self._prefix + call.op, self.key(call.op)
        error = UncertainToolCall(
            f"{call.name} had begun when the run was interrupted, and nobody knows whether it was carried out: look, "
            f"then give its result (`ramet resume ... --result {op}=JSON`) or have it made again (`--again {op}`); "
            "declare it @ramet.idempotent when calling it twice does no harm",
            where=call.where,
            branch=call.branch,
        )
        error.op, error.key = op, key
        return error


def derived_seed(seed: int, prefix: str) -> int:
    """The seed of a program that a journaled one calls: 63 bits of BLAKE2b of the caller's and its own path."""
    drawn = hashlib.blake2b(f"{seed} {prefix}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") >> 1


def idempotency_key_of(run: str, op: str) -> str:
    """The idempotency key of a host call: BLAKE2b (128 bits) of the run's id and the call's path."""
    return hashlib.blake2b(f"{run} {op}".encode(), digest_size=16).hexdigest()


def _unwritable(call: HostCall, error: Unwritable) -> ConstraintError:
    return ConstraintError(
        f"{call.name} returned what the journal cannot record ({error.what}): return plain data (None, bool, int, "
        "float, str, list, tuple, dict of those), or declare it @ramet.idempotent: then a resumed run calls it again",
        where=call.where,
        branch=call.branch,
    )


def _tree(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it comes from."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
            waiting += [inner for inner in (each.__cause__, each.__context__) if inner is not None]


def is_idempotent(fn: Any) -> bool:
    """The function was declared so (`ramet.idempotent`), also where it is wrapped, bound or has arguments already."""
    while fn is not None:
        if getattr(fn, MARK, False) is True:
            return True
        fn = fn.func if isinstance(fn, functools.partial) else getattr(fn, "__wrapped__", None)
    return False


def idempotent(fn: F) -> F:
    """Declare that calling a function twice with the same arguments does no harm: when a run with a journal is resumed,
    a call of it that was interrupted is made again."""
    if not inspect.isfunction(fn):
        raise ConstraintError(f"idempotent({fn!r}): decorate a function; wrap anything else in one")
    setattr(fn, MARK, True)
    return fn
