"""Values: handles on what a program will have generated, chosen or computed.

In: the future of an operation. Out: its value when it is read (`get`, `await`, an f-string), a reference to its
tokens when it is appended to a state. Nothing else waits, and nothing waits by accident.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from ramet.frontend.entries import Entry, Seq
from ramet.frontend.errors import Aborted, ConstraintError, StateError, TransportError
from ramet.frontend.execution import Execution
from ramet.frontend.expressions import Expr
from ramet.frontend.hostcalls import HostCall, call_host
from ramet.frontend.ir import Meta
from ramet.frontend.readings import Reading, actor
from ramet.frontend.waiting import all_done, either, first_failure, refuse_blocking, wait, wait_async
from ramet.frontend.where import user_line

T = TypeVar("T")
U = TypeVar("U")


class Value(Expr, Generic[T]):
    """The value of an operation: `get()` or `await` reads it, `s += value` appends its exact tokens.

    Testing, comparing, measuring or iterating an unread value raises TypeError: it would wait unseen, one branch
    after the other.
    """

    __slots__ = ("_entry", "_execution", "_future", "_known", "_name", "_parts", "_seq", "_timeout", "_where", "span")

    def __init__(
        self,
        execution: Execution,
        seq: Seq,
        future: Future[T],
        *,
        entry: Entry | None = None,
        name: str = "",
        where: str = "",
        timeout: float | None = None,
        parts: Sequence[Value[Any]] = (),
    ) -> None:
        self._execution = execution
        self._seq = seq
        self._future = future
        self._entry = entry
        self._name = name
        self._where = where
        self._timeout = timeout
        self._parts = tuple(parts)
        self._known = False  # somebody has read it: reading it again is no wait in disguise
        self.span: object = None  # of a var_scope: what a stream follows

    @property
    def done(self) -> bool:
        """Reading it would not wait."""
        return self._future.done()

    def get(self, timeout: float | None = None) -> T:
        """Wait for the value, at most `timeout` seconds (default: the operation's own timeout, or no limit).

        Raises what the operation failed with, or `ProgramTimeout`. Inside an async body: `StateError`, use `await`.
        """
        self._refuse_blocking()
        began = time.monotonic()
        if not self._future.done():
            self._execution.outbox.flush()
            wait(self._future, self._timeout if timeout is None else timeout, self._what())
        note((self,), began)
        return self._read()

    def __await__(self) -> Generator[Any, None, T]:
        began = time.monotonic()
        if not self._future.done():
            self._execution.outbox.flush()
            yield from wait_async(self._future, self._timeout, self._what()).__await__()
        note((self,), began)
        return self._read()

    @property
    def meta(self) -> Meta:
        """How the operation went (tokens, logprobs, scores, finish reason); waits for it. Values that this process
        computed and lists have none: `StateError`."""
        if self._entry is None or self._entry.kind not in ("gen", "select"):
            raise StateError(
                f"{self._what()} is no single generation or choice: it has no meta; read it of its parts",
                where=user_line(),
            )
        self.get()
        assert self._entry.meta is not None
        return self._entry.meta

    @overload
    def map(self, fn: Callable[[T], Awaitable[U]]) -> Value[U]: ...
    @overload
    def map(self, fn: Callable[[T], U]) -> Value[U]: ...
    def map(self, fn: Callable[[T], Any]) -> Value[Any]:
        """`fn` of the value, computed on a worker thread (awaited when async) as soon as the value is there."""
        return call_value(self._execution, self._seq, fn, (self,), {}, user_line())

    def metas(self) -> list[Meta]:
        """The meta of each part of a list value (n > 1, a variable gathered from branches)."""
        return [part.meta for part in self._parts]

    @property
    def parts(self) -> tuple[Value[Any], ...]:
        """The values that a list value consists of."""
        return self._parts

    def ops(self) -> tuple[str, ...]:
        """The ids of the operations that it is the value of."""
        mine = (self._entry.id,) if self._entry is not None else ()
        return (*mine, *(op for part in self._parts for op in part.ops()))

    @property
    def where(self) -> str:
        """The user's line that asked for it."""
        return self._where

    @property
    def entry(self) -> Entry | None:
        """The recorded operation that it is the value of, if it is of a single one."""
        return self._entry

    @property
    def future(self) -> Future[T]:
        """What completes when the value is known."""
        return self._future

    def as_entry(self, execution: Execution, seq: Seq) -> Entry:
        """The operation that a text on `seq` refers to. A value of the host or of another run becomes a Put."""
        if self._entry is not None and self._execution is execution:
            return self._entry
        entry = execution.put(seq, self._future, self._where, self._name)
        if self._execution is execution:
            self._entry = entry
        return entry

    def _refuse_blocking(self) -> None:
        """In an async body, a first read without `await` is an error, also of a value that happens to be there."""
        if not self._known and not self._execution.outcome.done():
            refuse_blocking(self._execution.loop, self._what())

    def _read(self) -> T:
        self._known = True
        error = self._future.exception()
        if error is not None:
            self._execution.record.saw(error)
            raise error.with_traceback(None)  # it may be raised many times
        return self._future.result()

    def _what(self) -> str:
        return (
            f"the value of {self._name!r}"
            if self._name
            else f"the value recorded at {self._where or 'an unknown line'}"
        )

    def _unread(self, doing: str) -> NoReturn:
        raise TypeError(f"{user_line()}: {doing} {self._what()}: read it first with .get() or await")

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __repr__(self) -> str:
        state = "unread" if not self.done else "failed" if self._future.exception() else repr(self._future.result())
        return f"<Value {self._name or '(unnamed)'}: {state}>"

    def __bool__(self) -> bool:
        self._unread("cannot test")

    def __len__(self) -> int:
        self._unread("cannot measure")

    def __iter__(self) -> Iterator[Any]:
        self._unread("cannot iterate over")

    def __contains__(self, item: object) -> bool:
        self._unread("cannot search")

    def __eq__(self, other: object) -> bool:
        self._unread("cannot compare")

    __hash__ = object.__hash__

    if not TYPE_CHECKING:  # mistakes that a type checker reports by itself

        def __getitem__(self, key):  # noqa: ANN001, ANN204
            self._unread("cannot index")

        def __int__(self):  # noqa: ANN204
            self._unread("cannot make an int of")

        def __float__(self):  # noqa: ANN204
            self._unread("cannot make a float of")

        def __lt__(self, other):  # noqa: ANN001, ANN204
            self._unread("cannot compare")

        __le__ = __gt__ = __ge__ = __lt__

        def __getattr__(self, name):  # noqa: ANN001, ANN204
            if name.startswith("_"):  # protocols that ask whether there is such a method
                raise AttributeError(f"'Value' object has no attribute {name!r}")
            raise AttributeError(f"a Value has no {name!r}: read what it holds first, with .get() or await")


def constant(execution: Execution, seq: Seq, value: T, name: str, where: str) -> Value[T]:
    """A value that is known already."""
    future: Future[T] = Future()
    future.set_result(value)
    known = Value(execution, seq, future, name=name, where=where)
    known._known = True
    return known


def listed(execution: Execution, seq: Seq, parts: Sequence[Value[Any]], name: str, where: str) -> Value[list[Any]]:
    """The list of several values; fails as soon as one of them does, with its error."""
    futures = [part.future for part in parts]
    made = execution.listing(futures)
    if made is not None:
        return _ListValue(execution, seq, made, name=name, where=where, parts=parts)
    future: Future[list[Any]] = Future()

    def collect() -> None:
        if not future.done():
            future.set_result([part.result() for part in futures])

    def fail(_: Future[None]) -> None:
        future.set_exception(next(e for part in futures if part.done() and (e := part.exception()) is not None))

    first_failure(futures).add_done_callback(fail)
    all_done(futures, collect)
    return _ListValue(execution, seq, future, name=name, where=where, parts=parts)


class _ListValue(Value[list[Any]]):
    """A list value: whoever reads it has read all of its parts, also one that fails later."""

    __slots__ = ()

    def _read(self) -> list[Any]:
        mark_read(self._parts)
        return super()._read()


def call_value(
    execution: Execution,
    seq: Seq,
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    where: str,
) -> Value[Any]:
    """A host function as an operation: runs off the body's thread once the values among its arguments are known."""
    name = getattr(fn, "__name__", type(fn).__name__)
    values = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)]

    def bound() -> tuple[list[Any], dict[str, Any]]:
        ready = [arg.future.result() if isinstance(arg, Value) else arg for arg in args]
        return ready, {k: v.future.result() if isinstance(v, Value) else v for k, v in kwargs.items()}

    if not callable(fn):
        raise ConstraintError(f"{fn!r} cannot be called: give a function", where=where)
    future: Future[Any] = Future()
    entry = execution.put(seq, future, where, name)
    entry.needs = tuple(op for value in values if value._execution is execution for op in value.ops())
    call = HostCall(entry.id, name, fn, where, seq.path, future)
    call_host(execution, call, [value.future for value in values], bound, entry.begun)
    return Value(execution, seq, future, entry=entry, name=name, where=where)


def one_error(errors: Sequence[BaseException], message: str) -> BaseException:
    """The error itself when there is one (or the same one several times, or one lost backend or cancelled program that
    failed them all), a group when there are several: its message has the first one's."""
    distinct = list({_cause(error): error for error in reversed(errors)}.values())[::-1]
    if len(distinct) == 1:
        return distinct[0]
    return BaseExceptionGroup(f"{message}; the first: {type(distinct[0]).__name__}: {distinct[0]}", distinct)


def _cause(error: BaseException) -> object:
    return (type(error), error.message) if isinstance(error, TransportError | Aborted) else id(error)


def gather(*values: Value[T]) -> list[T]:
    """Wait for all values; their list, in order.

    Raises as soon as one of them has failed: its error, or an ExceptionGroup when several have.
    """
    _flush(values)
    for value in values:
        value._refuse_blocking()
    wait_for_all(values)
    return read_all(values)


async def agather(*values: Value[T]) -> list[T]:
    """`gather` for async bodies."""
    _flush(values)
    await wait_for_all_async(values)
    return read_all(values)


def _flush(values: Sequence[Value[Any]]) -> None:
    for value in values:
        if not isinstance(value, Value):
            raise StateError(f"gather takes values, got {type(value).__name__}", where=user_line())
    for execution in {id(value._execution): value._execution for value in values}.values():
        execution.outbox.flush()


def wait_for_all(values: Sequence[Value[Any]]) -> None:
    """Wait in this thread until all values are done or one has failed."""
    began = time.monotonic()
    failed = first_failure([value.future for value in values])
    for value in values:
        if not (value.done or failed.done()):
            wait(either(value.future, failed), value._timeout, value._what())
    note(values, began)


async def wait_for_all_async(values: Sequence[Value[Any]]) -> None:
    """`wait_for_all` in this event loop."""
    began = time.monotonic()
    failed = first_failure([value.future for value in values])
    for value in values:
        if not (value.done or failed.done()):
            await wait_async(either(value.future, failed), value._timeout, value._what())
    note(values, began)


def read_all(values: Sequence[Value[T]]) -> list[T]:
    """The values once `wait_for_all` is over: their list, or the failures that are known now. All count as read."""
    mark_read(values)
    errors = [error for value in values if value.done and (error := value.future.exception()) is not None]
    if errors:
        raise one_error(errors, f"{len(errors)} of {len(values)} values failed")
    return [value.future.result() for value in values]


def note(values: Sequence[Value[Any]], began: float) -> None:
    """Remember, for EXPLAIN, that values were read here for the first time, and how long that took from `began` on."""
    first = [value for value in values if not value._known and value.done]
    for execution in {id(value._execution): value._execution for value in first}.values():
        ops = tuple(op for value in first if value._execution is execution for op in value.ops())
        if ops:
            execution.record.reads.append(Reading(actor(), ops, began, time.monotonic()))


def mark_read(values: Sequence[Value[Any]]) -> None:
    """Somebody has read them, or the failure of one of them: theirs are not reported again at the end."""
    for value in values:
        value._known = value._known or value.done
        saw = value._execution.record.saw
        value.future.add_done_callback(lambda done, saw=saw: saw(done.exception()))  # type: ignore[misc]
