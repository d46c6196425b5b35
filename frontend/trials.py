"""Trials: attempts on branches of one state, and how a combinator waits for them.

In: functions that record an attempt on a branch. Out: what each found, whichever finishes first; the winner adopted,
all others cancelled. A combinator is written once, as a generator of what it waits for (`Steps`); `blocking` and
`awaiting` make of it the form for sync bodies and the form for async ones.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from ramet.frontend.core import Core
from ramet.frontend.entries import Seq
from ramet.frontend.errors import Aborted, ConstraintError, ParseError
from ramet.frontend.execution import Execution
from ramet.frontend.host import HOST, inside_async_body
from ramet.frontend.run import Run
from ramet.frontend.state import State, check_state
from ramet.frontend.values import Value, mark_read
from ramet.frontend.waiting import any_done, refuse_blocking, wait, wait_async
from ramet.frontend.where import user_line

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


@dataclass(frozen=True)
class Wait:
    """What a combinator needs before it goes on: `future`, within `seconds`."""

    execution: Execution
    future: Future[None]
    seconds: float | None


Steps = Generator[Wait, None, R]


def blocking(steps: Callable[Concatenate[State, P], Steps[R]]) -> Callable[Concatenate[State, P], R]:
    """The form of a combinator that waits in the thread of a sync body."""
    name = steps.__name__.lstrip("_")

    @functools.wraps(steps)
    def combinator(s: State, /, *args: P.args, **kwargs: P.kwargs) -> R:
        refuse_blocking(_execution(s).loop, f"the result of {name}() (in an async body: a{name}())")
        walk = steps(s, *args, **kwargs)
        try:
            while True:
                step = next(walk)
                step.execution.outbox.flush()
                with step.execution.record.waiting(f"an attempt of {name}()"):
                    wait(step.future, step.seconds, f"an attempt of {name}()")
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            walk.close()  # whoever stops waiting leaves nothing running

    combinator.__name__ = combinator.__qualname__ = name
    return combinator


def awaiting(
    steps: Callable[Concatenate[State, P], Steps[R]],
) -> Callable[Concatenate[State, P], Coroutine[Any, Any, R]]:
    """The form of a combinator for async bodies, to be awaited."""
    name = "a" + steps.__name__.lstrip("_")

    @functools.wraps(steps)
    async def combinator(s: State, /, *args: P.args, **kwargs: P.kwargs) -> R:
        _execution(s)
        walk = steps(s, *args, **kwargs)
        try:
            while True:
                step = next(walk)
                step.execution.outbox.flush()
                with step.execution.record.waiting(f"an attempt of {name}()"):
                    await wait_async(step.future, step.seconds, f"an attempt of {name}()")
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            walk.close()

    combinator.__name__ = combinator.__qualname__ = name
    return combinator


def _execution(s: State) -> Execution:
    return check_state(s, user_line())._core.execution


class Trial(Generic[T]):
    """One attempt: the branch that it has, and the future of what it finds. `recorded`: everything that it says on the
    branch stands there already, so that more may be recorded behind it before it is read."""

    def __init__(self, branch: State, made: Awaitable[T], label: str, where: str) -> None:
        self.branch = branch
        self.made = made
        self.recorded = True
        self.future: Future[T]
        self._deadline: float | None = None
        if isinstance(made, Value):
            self.future = made.future
            seconds = made._timeout
            self._deadline = None if seconds is None else time.monotonic() + seconds
        elif isinstance(made, Run):
            self.future = made.future
        elif inspect.isawaitable(made):
            self.future = _scheduled(branch._core.execution, made)
            self.recorded = False
        else:
            raise ConstraintError(
                f"{label} returned {made!r:.60}: it must return the value that it records, unread "
                "(`lambda b: b.reply(...)`, without .get()), or be an async function",
                where=where,
                branch=branch._core.seq.path,
            )

    @property
    def done(self) -> bool:
        """It has found something, or failed."""
        return self.future.done()

    @property
    def left(self) -> float | None:
        """The seconds within which it must be done."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def read(self) -> T:
        """What it found, once it is done; raises what it failed with."""
        if isinstance(self.made, Value):
            return self.made._read()  # type: ignore[no-any-return]
        if isinstance(self.made, Run):
            return self.made._outcome()  # type: ignore[no-any-return]
        if self.future.cancelled():
            raise Aborted("the attempt was cancelled", branch=self.branch._core.seq.path)
        return self.future.result()

    def spoilt(self) -> ParseError | None:
        """Why what it wrote is no answer, if it wrote something that cannot be read as its type. Raises any other
        failure."""
        try:
            self.read()
        except ParseError as error:
            return error
        return None

    def stop(self) -> None:
        """Give up what runs outside the branch's own operations."""
        if isinstance(self.made, Run):
            self.made.cancel()
        elif not self.recorded:
            self.future.cancel()


def _scheduled(execution: Execution, made: Awaitable[T]) -> Future[T]:
    """The future of a coroutine that runs in the body's event loop, or in the process's for a sync body."""

    async def attempt() -> T:
        inside_async_body.set(True)
        return await made

    loop = execution.loop if execution.loop is not None and not execution.loop.is_closed() else HOST.loop()
    return asyncio.run_coroutine_threadsafe(attempt(), loop)


class Arena:
    """The branches of one call of a combinator, which goes by `name`. What is neither adopted nor an ancestor of what
    was adopted is cancelled when the block ends, however it ends."""

    def __init__(self, state: State, name: str, where: str) -> None:
        self.state = state
        self.where = where
        self._name = name
        self._execution = state._core.execution
        self._forked: list[tuple[State, Seq]] = []  # with the sequence that it began on: a state may adopt a branch
        self._trials: list[Trial[Any]] = []

    def fork(self, state: State, count: int) -> list[State]:
        """Branches that go on from `state`; their items are 0, 1, ..."""
        state._core.check(self.where)
        return self._states(state._core.child_cores(range(count), self.where))

    def aside(self, state: State) -> State:
        """A branch for a question about `state` that leaves no trace in it."""
        return self._states(state._core.child_cores([state.item], self.where))[0]

    def _states(self, cores: Sequence[Core]) -> list[State]:
        states = [State(core) for core in cores]
        self._forked += [(state, state._core.seq) for state in states]
        return states

    def begin(self, branch: State, label: str, attempt: Callable[..., Awaitable[T]], *args: object) -> Trial[T]:
        """Let `attempt(branch, *args)` record on the branch; `label` names it in errors."""
        trial = Trial(branch, attempt(branch, *args), f"{label} of {self._name}()", self.where)
        self._trials.append(trial)
        return trial

    def adopt(self, branch: State) -> None:
        """The state goes on from the end of `branch`."""
        self.state.adopt(branch)

    def drop(self, branches: Sequence[State]) -> None:
        """Cancel branches, and what was forked from them."""
        dropped = {id(branch) for branch in branches}
        self._cut([seq for state, seq in self._forked if id(state) in dropped], "was pruned")

    def first(self, pending: Sequence[Trial[T]]) -> Steps[list[Trial[T]]]:
        """Wait until one of the trials is done; those that are, in their order."""
        while not (done := [trial for trial in pending if trial.done]):
            left = [trial.left for trial in pending if trial.left is not None]
            futures = [trial.future for trial in pending]
            yield Wait(self._execution, any_done(futures), min(left, default=None))
        return done

    def finish(self, trials: Sequence[Trial[Any]]) -> Steps[None]:
        """Wait for all trials; raise as soon as one has failed, unless all that it failed with is a `ParseError`."""
        pending = list(trials)
        while pending:
            for trial in (yield from self.first(pending)):
                trial.spoilt()
            pending = [trial for trial in pending if not trial.done]

    def some(self, trials: Sequence[Trial[Any]]) -> Steps[None]:
        """Wait for all trials; raise the first `ParseError` when all that they wrote cannot be read."""
        yield from self.finish(trials)
        spoilt = [trial.spoilt() for trial in trials]
        if spoilt and spoilt[0] is not None and None not in spoilt:
            raise spoilt[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [trial for trial in self._trials if not trial.done]
        for trial in running:
            trial.stop()
        mark_read([trial.made for trial in self._trials if isinstance(trial.made, Value)])
        reason = f"was cancelled: {self._name}() " + ("failed" if error is not None else "has its result")
        self._cut([seq for _, seq in self._forked], reason)
        if running:
            self._execution.outbox.flush()

    def _cut(self, seqs: Sequence[Seq], reason: str) -> None:
        here = self.state._core.seq.path
        for seq in sorted(seqs, key=lambda seq: len(seq.path)):  # a branch's own branches end with it
            if here == seq.path or here.startswith(seq.path + "."):
                if here != seq.path:
                    self._execution.close(seq, "was left: its state goes on from another branch")
            elif not seq.closed:
                self._execution.cut(seq, reason)
