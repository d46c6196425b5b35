"""Context managers of a traced body that swallow the error of a read: the body goes on behind their block.

In: the managers that `with` statements enter, and where. Out: whether one of them may swallow what a read raises. What
an `__exit__` returns is told by its bytecode; one that returns anything but None or False may swallow.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import itertools
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from ramet.frontend.errors import BudgetExceeded, GenerationError, ToolError

RAISED: tuple[type[BaseException], ...] = (GenerationError, ToolError, BudgetExceeded, BaseExceptionGroup)
ENTERS = ("__enter__", "__aenter__")
_Goes = Callable[[FrameType], bool]  # an error that comes out of where a frame is does not leave it


class Entered:
    """The managers of `with` statements: by frame, and by the handler of the errors of their block."""

    def __init__(self) -> None:
        self._managers: dict[tuple[int, CodeType, int], object] = {}

    def enter(self, frame: FrameType, handler: int | None, manager: object) -> None:
        """A `with` statement of a frame, whose block has its handler at `handler`, enters a manager."""
        if handler is not None:
            self._managers[id(frame), frame.f_code, handler] = manager

    def forget(self) -> None:
        """The trace is over: what the managers hold may hold it."""
        self._managers.clear()

    def swallows(self, frame: FrameType, handler: int, goes_on: _Goes) -> bool:
        """The manager of a `with` statement may swallow what a read raises in its block."""
        return _swallows(self._managers.get((id(frame), frame.f_code, handler)), goes_on)


def catches(kinds: tuple[type[BaseException], ...]) -> bool:
    """They are types of errors that a read raises."""
    return any(issubclass(kind, one) or issubclass(one, kind) for kind in kinds for one in RAISED)


def _swallows(manager: Any, goes_on: _Goes) -> bool:
    if isinstance(manager, contextlib.suppress):
        return catches(vars(manager)["_exceptions"])
    if isinstance(manager, contextlib.ExitStack | contextlib.AsyncExitStack):
        callbacks = [callback for _, callback in vars(manager)["_exit_callbacks"]]
        return any(_callback_swallows(callback, goes_on) for callback in callbacks)
    generator = getattr(manager, "gen", None)
    if inspect.isgenerator(generator) or inspect.isasyncgen(generator):
        frame = generator.gi_frame if inspect.isgenerator(generator) else generator.ag_frame
        return frame is not None and goes_on(frame)
    kind = type(manager)
    return any(_may_be_true(getattr(kind, name, None)) for name in ("__exit__", "__aexit__"))


def _callback_swallows(callback: Any, goes_on: _Goes) -> bool:
    manager = getattr(callback, "__self__", None)
    return _may_be_true(callback) if manager is None else _swallows(manager, goes_on)


def _may_be_true(function: Any) -> bool:
    """A function that is neither C's nor the language's may return something true."""
    code = getattr(function, "__code__", None)
    if code is None or str(getattr(function, "__module__", "")).startswith("ramet.frontend"):
        return False
    return _returns(code)


@functools.lru_cache(maxsize=1024)
def _returns(code: CodeType) -> bool:
    found = list(dis.get_instructions(code))
    for before, each in itertools.pairwise(found):
        if each.opname == "RETURN_VALUE" and not (before.opname == "LOAD_CONST" and not before.argval):
            return True
    return any(each.opname == "RETURN_CONST" and each.argval for each in found)
