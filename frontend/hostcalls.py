"""Host functions as operations of a program.

In: a function and the futures that it waits for. Out: a future of its result; it runs on a worker thread, or is
awaited in the event loop of the body when it is async, and never on the thread of the body or of the backend.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ramet.frontend.callers import enter_call
from ramet.frontend.errors import Aborted, ToolError
from ramet.frontend.execution import Execution
from ramet.frontend.host import HOST
from ramet.frontend.waiting import all_done

_CUT_SHORT = "the program was cut short before this call"


@dataclass(frozen=True)
class HostCall:
    """A call of a host function: its operation's path, its name, the function, where the user's line and branch are,
    and the future that its value completes."""

    op: str
    name: str
    fn: Callable[..., Any]
    where: str
    branch: str
    future: Future[Any]


def call_host(
    execution: Execution,
    call: HostCall,
    needs: Sequence[Future[Any]],
    bound: Callable[[], tuple[list[Any], dict[str, Any]]],
    begun: list[float],
) -> None:
    """Complete `call.future` with `fn(*args, **kwargs)` of `bound()`, once all of `needs` are done: with what a need
    failed with, with `ToolError` when the function raises (its exception is the cause). `begun` gets the time at which
    `fn` begins. Where the run has a journal, the function is called once that it begins is recorded."""
    running = _Running(execution, call, bound, begun)
    context = contextvars.copy_context()  # what completes a need runs in a context of its own
    all_done(list(needs), lambda: context.copy().run(running.begin, needs))


class _Running:
    """One call, from the moment at which everything that it waits for is there."""

    def __init__(
        self,
        execution: Execution,
        call: HostCall,
        bound: Callable[[], tuple[list[Any], dict[str, Any]]],
        begun: list[float],
    ) -> None:
        self._execution = execution
        self._journal = execution.journal
        self._call = call
        self._bound = bound
        self._begun = begun
        self._key = "" if self._journal is None else self._journal.key(call.op)

    def begin(self, needs: Sequence[Future[Any]]) -> None:
        """Call the function, unless a need failed or the program was cut short."""
        call = self._call
        failed = next((need.exception() for need in needs if need.exception() is not None), None)
        if failed is not None:
            call.future.set_exception(failed)
        elif self._execution.record.cause is not None:
            call.future.set_exception(Aborted(_CUT_SHORT, where=call.where, branch=call.branch))
        elif self._journal is None:
            self._launch()
        else:
            self._journal.call(call, self._bound(), self._launch)

    def _launch(self) -> None:
        loop = self._execution.loop
        try:
            if _is_async(self._call.fn):
                there = loop if loop is not None and not loop.is_closed() else HOST.loop()
                asyncio.run_coroutine_threadsafe(self._run_async(), there)
            else:
                HOST.submit(self._run_sync)
        except RuntimeError as error:  # the loop is closed, or the interpreter is shutting down
            self._fail(error)

    def _run_sync(self) -> None:
        self._enter()
        try:
            args, kwargs = self._bound()
            result = self._call.fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it belongs to the reader of the value, not to the worker thread
            self._fail(error)
        else:
            self._answer(result)

    async def _run_async(self) -> None:
        self._enter()
        try:
            args, kwargs = self._bound()
            result = await self._call.fn(*args, **kwargs)
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise  # cancellation goes on to the task
        else:
            self._answer(result)

    def _enter(self) -> None:
        self._begun.append(time.monotonic())
        enter_call(self._execution, self._call.op, self._key)

    def _answer(self, value: Any) -> None:
        if self._journal is None:
            self._call.future.set_result(value)
        else:
            self._journal.returned(self._call, value)

    def _fail(self, error: BaseException) -> None:
        wrapped = _tool_error(self._call, error)
        if self._journal is None:
            self._call.future.set_exception(wrapped)
        else:
            self._journal.raised(self._call, wrapped)


def _tool_error(call: HostCall, error: BaseException) -> ToolError:
    message = f"{call.name} raised {type(error).__name__}: {error}"
    wrapped = ToolError(message, where=call.where, branch=call.branch)
    wrapped.__cause__ = error
    return wrapped


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
