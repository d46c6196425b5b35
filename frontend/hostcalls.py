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
    journal, future, fn = execution.journal, call.future, call.fn
    key = journal.key(call.op) if journal is not None else ""
    context = contextvars.copy_context()  # what completes a need runs in a context of its own

    def answer(value: Any) -> None:
        future.set_result(value) if journal is None else journal.returned(call, value)

    def fail(error: BaseException) -> None:
        wrapped = _tool_error(call, error)
        future.set_exception(wrapped) if journal is None else journal.raised(call, wrapped)

    def run_sync() -> None:
        begun.append(time.monotonic())
        enter_call(execution, call.op, key)
        try:
            args, kwargs = bound()
            result = fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it belongs to the reader of the value, not to the worker thread
            fail(error)
        else:
            answer(result)

    async def run_async() -> None:
        begun.append(time.monotonic())
        enter_call(execution, call.op, key)
        try:
            args, kwargs = bound()
            result = await fn(*args, **kwargs)
        except BaseException as error:
            fail(error)
            if not isinstance(error, Exception):
                raise  # cancellation goes on to the task
        else:
            answer(result)

    def launch() -> None:
        try:
            if _is_async(fn):
                loop = execution.loop if execution.loop is not None and not execution.loop.is_closed() else HOST.loop()
                asyncio.run_coroutine_threadsafe(run_async(), loop)
            else:
                HOST.submit(run_sync)
        except RuntimeError as error:  # the loop is closed, or the interpreter is shutting down
            fail(error)

    def begin() -> None:
        failed = next((need.exception() for need in needs if need.exception() is not None), None)
        if failed is not None:
            future.set_exception(failed)
        elif execution.record.cause is not None:
            future.set_exception(Aborted(_CUT_SHORT, where=call.where, branch=call.branch))
        elif journal is None:
            launch()
        else:
            journal.call(call, bound(), launch)

    all_done(list(needs), lambda: context.copy().run(begin))


def _tool_error(call: HostCall, error: BaseException) -> ToolError:
    message = f"{call.name} raised {type(error).__name__}: {error}"
    wrapped = ToolError(message, where=call.where, branch=call.branch)
    wrapped.__cause__ = error
    return wrapped


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
