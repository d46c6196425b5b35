"""Running programs: a body on a thread of its own, or as a task, against a backend.

In: a function of a state, and where it runs. Out: a `Run`, the handle on its result, its text as it comes, its record.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ramet.frontend.backends.base import Backend
from ramet.frontend.callers import caller, enter_body
from ramet.frontend.core import Core, Watched
from ramet.frontend.errors import Aborted, ConstraintError, ProgramTimeout
from ramet.frontend.execution import Execution
from ramet.frontend.host import HOST, enter_backend, inside_async_body
from ramet.frontend.ir import Event, Header, Usage
from ramet.frontend.readings import Reading, actor
from ramet.frontend.state import State
from ramet.frontend.streams import EntryReader, OnceReader, Position, Reader, Span, SpanReader, follow, follow_async
from ramet.frontend.trace import Trace, usage_so_far
from ramet.frontend.transcript import entry_info
from ramet.frontend.values import Value
from ramet.frontend.waiting import refuse_blocking, running_loop, wait, wait_async
from ramet.frontend.where import user_line

if TYPE_CHECKING:
    from ramet.frontend.explained import Explanation
    from ramet.frontend.journal_run import Scope

R = TypeVar("R")


class Run(State, Generic[R]):
    """A program that runs, and its record afterwards. A handle for reading: operations are recorded by the body's own
    state.

    Reads of a Run wait for what the body has not recorded yet. Dropping the handle leaves the body running to its end.
    """

    def __init__(self, core: Core) -> None:
        super().__init__(Watched(core))
        self._run = core.execution

    # --- the result ---

    def result(self, timeout: float | None = None) -> R:
        """What the body returned, once it and everything that it recorded is done.

        Raises the body's own exception; failures of operations that nobody read (an ExceptionGroup when there are
        several), but not that a text is no value of its type, which only a reader is told; `Aborted`, `ProgramTimeout`,
        `TransportError`. `timeout` (seconds) limits this wait alone, and raises `ProgramTimeout` without ending the
        program. Ctrl-C cancels the program.
        """
        self._wait(timeout)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, R]:
        if not self._run.outcome.done():
            began = time.monotonic()
            yield from wait_async(self._run.outcome, None, "the result").__await__()
            self._note(began)
        return self._outcome()

    def cancel(self) -> None:
        """Stop at once: its branches are freed in the engine, waiting reads raise `Aborted`, programs that it called
        end too."""
        self._run.cancel(Aborted(f"the program {self._run.name!r} was cancelled"))

    @property
    def done(self) -> bool:
        """`result()` would not wait."""
        return self._run.outcome.done()

    @property
    def ret_value(self) -> R:
        """`result()` (SGLang's name)."""
        return self.result()

    @property
    def future(self) -> Future[R]:
        """What completes when the program has ended."""
        return self._run.outcome

    @property
    def seed(self) -> int:
        """The seed of all its sampling noise: give it to `using(seed=...)` to repeat the run."""
        return self._run.header.seed

    @property
    def id(self) -> str:
        """The run's id in its journal: give it to `using(resume=...)`. Empty without a journal."""
        return self._run.journal.id if self._run.journal is not None else ""

    @property
    def usage(self) -> Usage:
        """Tokens, calls, steps, seconds; the backend's totals once the program has ended, sums over its finished
        calls before."""
        if self._run.record.ended is not None and self._run.record.ended.usage.calls:
            return self._run.record.ended.usage
        return usage_so_far(self._run)

    def _outcome(self) -> R:
        error = self._run.outcome.exception()
        if error is not None:
            self._run.raise_error(error)
        return self._run.outcome.result()  # type: ignore[no-any-return]

    def _wait(self, timeout: float | None = None) -> None:
        if self._run.outcome.done():
            return
        refuse_blocking(self._run.loop, f"the result of {self._run.name!r}")
        began = time.monotonic()
        with self._until_interrupted():
            wait(self._run.outcome, timeout, f"the result of {self._run.name!r}")
        self._note(began)

    def _note(self, began: float) -> None:
        """The program that waited for this one remembers it, for EXPLAIN."""
        waiting = caller()
        if waiting is not None and waiting is not self._run:
            read = Reading(actor(), (), began, time.monotonic(), f"the program {self._run.name}")
            waiting.record.reads.append(read)

    @contextlib.contextmanager
    def _until_interrupted(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.cancel()
            raise

    # --- reading ---

    def value(self, name: str) -> Value[Any]:
        """The handle of a variable; waits until the body has recorded it. Raises `UnknownVariable` if it never does."""
        while True:
            seen = self._run.bell.count
            found = self._core.variables.get(name)
            if found is not None:
                return found
            if self._run.outcome.done():
                self._outcome()
                raise self._core.unknown(name, user_line())
            refuse_blocking(self._run.loop, f"the variable {name!r}")
            with self._until_interrupted():
                self._run.bell.wait(seen)

    def __getitem__(self, name: str) -> Any:
        value = self.value(name)
        with self._until_interrupted():
            return value.get()

    def text(self) -> str:
        """The whole text, once the program has ended; raises if an operation on it failed."""
        self._wait()
        return super().text()

    async def atext(self) -> str:
        """`text()` for event loops."""
        await self._ended()
        return await super().atext()

    def messages(self) -> list[dict[str, str]]:
        """The messages, once the program has ended."""
        self._wait()
        return super().messages()

    async def amessages(self) -> list[dict[str, str]]:
        """`messages()` for event loops."""
        await self._ended()
        return await super().amessages()

    def sync(self) -> None:
        """Wait until the program has ended. Raises nothing: `result()` does."""
        self._wait()

    def error(self) -> BaseException | None:
        """Wait until the program has ended; what `result()` would raise, if anything."""
        self._wait()
        return self._run.outcome.exception()

    async def _ended(self) -> None:
        if not self._run.outcome.done():
            await wait_async(self._run.outcome, None, "the result")

    # --- streams ---

    def events(self) -> Iterator[Event]:
        """All events of all branches, as they come, from the first on; every reader gets all of them. After the last
        one the program's error is raised, if it has one that is not `cancel()`."""
        index = 0
        while True:
            seen = self._run.bell.count
            yield from self._run.record.events[index : (index := len(self._run.record.events))]
            if self._run.outcome.done() and index == len(self._run.record.events):
                self._raise_at_end()
                return
            refuse_blocking(self._run.loop, "the next event")
            with self._until_interrupted():
                self._run.bell.wait(seen)

    async def aevents(self) -> AsyncIterator[Event]:
        """`events()` for event loops."""
        index = 0
        while True:
            seen = self._run.bell.count
            for event in self._run.record.events[index : (index := len(self._run.record.events))]:
                yield event
            if self._run.outcome.done() and index == len(self._run.record.events):
                self._raise_at_end()
                return
            await self._run.bell.wait_async(seen)

    def _raise_at_end(self) -> None:
        error = self._run.outcome.exception()
        if error is not None and not isinstance(error, Aborted):
            self._run.raise_error(error)

    def text_iter(self, name: str | None = None, *, var_name: str | None = None) -> Iterator[str]:
        """The text of variable `name`, or of the whole program, in pieces as it is generated: each character once.
        Several readers each get everything. Raises what the operation, or the program, failed with. (`var_name`:
        SGLang's spelling of `name`.)"""
        name = name if name is not None else var_name
        with self._until_interrupted():
            yield from follow(self._run, lambda: self._reader(name))

    async def text_async_iter(
        self, name: str | None = None, return_meta_data: bool = False, *, var_name: str | None = None
    ) -> AsyncIterator[Any]:
        """`text_iter` for event loops. With `return_meta_data`: pairs of text and meta info (SGLang's; without a
        finish reason until the generation has finished)."""
        name = name if name is not None else var_name
        async for text in follow_async(self._run, lambda: self._reader(name)):
            yield (text, self._meta_so_far(name)) if return_meta_data else text

    def _meta_so_far(self, name: str | None) -> dict[str, Any]:
        value = self._core.variables.get(name) if name is not None else None
        entry = value.entry if value is not None else None
        if entry is not None and entry.meta is not None:
            return entry_info(entry, entry.meta)
        return {"id": entry.id if entry is not None else "", "finish_reason": None}

    def _reader(self, name: str | None) -> Reader | None:
        if name is None:
            return _WholeReader(self)
        value = self._core.variables.get(name)
        if value is None:
            if self._run.outcome.done():
                self._outcome()
                raise self._core.unknown(name, user_line())
            return None
        if isinstance(value.span, Span):
            return SpanReader(lambda: self._core.seq, value.span, self._run.outcome.done)
        if value.parts:
            raise ConstraintError(f"{name!r} is a list of {len(value.parts)} values: follow events() instead")
        return EntryReader(value.entry) if value.entry is not None and value.entry.kind != "put" else OnceReader(value)

    # --- the record ---

    def trace(self) -> Trace:
        """The run as rows and as a tree, as far as it has come."""
        return Trace(self._run)

    def tree(self) -> str:
        """The run as a plain text tree of branches and operations."""
        return self.trace().tree()

    def to_html(self) -> str:
        """The run as a self-contained HTML page."""
        return self.trace().html()

    def explain(self, before: Explanation | None = None) -> Explanation:
        """What the run did, what it cost and what it waited for, as far as it has come; `before` is what was expected
        of it (`Plan.explain`). Print it, or take its `json()` or `html()`."""
        from ramet.frontend.explain import explain_run

        return explain_run(self._run, before)

    def __repr__(self) -> str:
        state = "running" if not self.done else "failed" if self._run.outcome.exception() else "done"
        return f"<Run of {self._run.name!r}: {state}>"


class _WholeReader:
    """The whole text of a run; at its end, the run's error."""

    def __init__(self, run: Run[Any]) -> None:
        self._run = run
        self._done = run._run.outcome.done
        self._reader = SpanReader(lambda: run._core.seq, Span("", Position(0)), self._done)

    def take(self) -> tuple[str, bool]:
        """See `Reader`."""
        try:
            text, finished = self._reader.take()
        except Exception:
            if not self._done():  # the body may know better what went wrong: its error is the run's
                return "", False
            self._run._outcome()
            raise
        if finished and not text:
            self._run._outcome()
        return text, finished and not text


@dataclass(frozen=True)
class Setting:
    """Where and how a program runs; `sampling` are the defaults of its generations (under the names of `Sampling`)."""

    backend: Backend
    sampling: Mapping[str, Any]
    seed: int | None = None
    timeout: float | None = None
    budget: int | None = None
    journal: Scope | None = None


def start(name: str, fn: Callable[[State], Any], is_async: bool, setting: Setting) -> Run[Any]:
    """Begin to run `fn` on a new state and return its handle at once. Raises `TransportError` when the backend is
    gone."""
    seed = secrets.randbits(63) if setting.seed is None else setting.seed
    execution = Execution(name, Header(name=name, seed=seed), setting.backend, setting.budget, setting.journal)
    if (above := caller()) is not None:
        above.children.add(execution)
    if setting.timeout is not None:
        late = ProgramTimeout(f"the program {name!r} took longer than {setting.timeout} s")
        call_off = HOST.later(setting.timeout, lambda: execution.cancel(late))
        execution.outcome.add_done_callback(lambda _: call_off())
    core = Core(execution, execution.record.root, setting.sampling)
    context = contextvars.copy_context()
    context.run(enter_backend, setting.backend)
    context.run(enter_body, execution)
    state = State(core)
    if is_async:
        _start_task(execution, state, fn, context)
    else:
        body = threading.Thread(
            target=context.run, args=(_drive, execution, state, fn), name=f"ramet-{name}", daemon=True
        )
        try:
            body.start()
        except RuntimeError as error:  # the process is out of threads
            execution.body_raised(error)
    return Run(core)


def _drive(execution: Execution, state: State, fn: Callable[[State], Any]) -> None:
    execution.record.actor = actor()
    try:
        value = fn(state)
    except BaseException as error:  # noqa: BLE001 - the body's exception is the run's result
        execution.body_raised(error)
    else:
        execution.body_returned(value)


def _start_task(execution: Execution, state: State, fn: Callable[[State], Any], context: contextvars.Context) -> None:
    here = running_loop()
    loop = execution.loop = here if here is not None else HOST.loop()

    def begin() -> None:
        task = loop.create_task(_drive_async(execution, state, fn), name=f"ramet-{execution.name}", context=context)
        execution.on_cancel = lambda: _cancel_task(task)
        if execution.record.cause is not None:  # cancelled before it began
            task.cancel()

    def _cancel_task(task: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(task.cancel)

    if here is loop:
        begin()
    else:
        loop.call_soon_threadsafe(begin)


async def _drive_async(execution: Execution, state: State, fn: Callable[[State], Any]) -> None:
    execution.record.actor = actor()
    inside_async_body.set(True)
    try:
        value = fn(state)
        if inspect.isawaitable(value):  # what wraps a body may have run it
            value = await value
    except BaseException as error:
        execution.body_raised(error)
        if isinstance(error, GeneratorExit | KeyboardInterrupt | SystemExit):
            raise
    else:
        execution.body_returned(value)
