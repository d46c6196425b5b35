"""Host functions as operations of a program.

In: a function and the futures that it waits for. Out: a future of its result; it runs on a worker thread, or is
awaited in the event loop of the body when it is async, and never on the thread of the body or of the backend.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from ramet.frontend.entries import Seq
from ramet.frontend.errors import Aborted, ConstraintError, ToolError
from ramet.frontend.execution import Execution
from ramet.frontend.host import HOST
from ramet.frontend.waiting import all_done


def call_host(
    execution: Execution,
    seq: Seq,
    name: str,
    fn: Callable[..., Any],
    needs: Sequence[Future[Any]],
    bound: Callable[[], tuple[list[Any], dict[str, Any]]],
    where: str,
    begun: list[float],
) -> Future[Any]:
    """Run `fn(*args, **kwargs)` of `bound()` once all of `needs` are done. Fails with what a need failed with, else
    with `ToolError` (the function's exception is its cause). `begun` gets the time at which `fn` begins."""
    if not callable(fn):
        raise ConstraintError(f"{fn!r} cannot be called: give a function", where=where)
    future: Future[Any] = Future()
    tool_error = partial(_tool_error, name, where=where, branch=seq.path)

    def run_sync() -> None:
        begun.append(time.monotonic())
        try:
            args, kwargs = bound()
            result = fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it belongs to the reader of the value, not to the worker thread
            future.set_exception(tool_error(error))
        else:
            future.set_result(result)

    async def run_async() -> None:
        begun.append(time.monotonic())
        try:
            args, kwargs = bound()
            result = await fn(*args, **kwargs)
        except BaseException as error:
            future.set_exception(tool_error(error))
            if not isinstance(error, Exception):
                raise  # cancellation goes on to the task
        else:
            future.set_result(result)

    def begin() -> None:
        try:
            start()
        except RuntimeError as error:  # the loop is closed, or the interpreter is shutting down
            future.set_exception(tool_error(error))

    def start() -> None:
        failed = next((need.exception() for need in needs if need.exception() is not None), None)
        if failed is not None:
            future.set_exception(failed)
        elif execution.record.cause is not None:
            future.set_exception(Aborted("the program was cut short before this call", where=where, branch=seq.path))
        elif _is_async(fn):
            loop = execution.loop if execution.loop is not None and not execution.loop.is_closed() else HOST.loop()
            asyncio.run_coroutine_threadsafe(run_async(), loop)
        else:
            HOST.submit(run_sync)

    all_done(list(needs), begin)
    return future


def _tool_error(name: str, error: BaseException, where: str, branch: str) -> ToolError:
    wrapped = ToolError(f"{name} raised {type(error).__name__}: {error}", where=where, branch=branch)
    wrapped.__cause__ = error
    return wrapped


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
