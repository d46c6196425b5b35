"""Which errors of a read the program handles itself: handlers around the instructions at which its frames are.

In: the frames above a read. Out: whether one of them has an `except` that catches what a read may raise, and goes on.
`finally`, most `with` statements and handlers that only raise the same error again change nothing.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

from ramet.frontend.managers import Entered, catches
from ramet.frontend.users import foreign, own


class _Covered(NamedTuple):
    """Instructions from `start` to `end` (not included), in bytes, whose errors are handled at `target`."""

    start: int
    end: int
    target: int


def handled(frame: FrameType | None, entered: Entered) -> bool:
    """One of the user's functions, from `frame` upwards, handles what is raised here and goes on; `entered` are the
    managers of their `with` statements."""
    while frame is not None:
        code = frame.f_code
        if code.co_exceptiontable and not own(frame) and not foreign(code.co_filename) and _handled(frame, entered):
            return True
        frame = frame.f_back
    return False


def block_handler(frame: FrameType) -> int | None:
    """Where errors are handled of the block that the `with` statement at which a frame is will come to."""
    found, indices = _instructions(frame.f_code)
    starts = [
        (each.start, each.target)
        for each in _covered(frame.f_code)
        if each.start > frame.f_lasti and found[indices[each.target] + 1].opname == "WITH_EXCEPT_START"
    ]
    return min(starts)[1] if starts else None


def _handled(frame: FrameType, entered: Entered) -> bool:
    """Follow an error through the handlers of one function."""
    at: int | None = frame.f_lasti
    passed: set[int] = set()
    while at is not None and at not in passed:
        passed.add(at)
        target = next((each.target for each in _covered(frame.f_code) if each.start <= at < each.end), None)
        if target is None:
            return False
        if entered.swallows(frame, target, lambda inner: _handled(inner, entered)):
            return True
        goes_on, at = _through(frame, target)
        if goes_on:
            return True
    return False


def _through(frame: FrameType, target: int) -> tuple[bool, int | None]:
    """Whether a handler catches the error and goes on, and where it is raised again if not."""
    found, indices = _instructions(frame.f_code)
    index, begin, jumped = indices[target], indices[target], False
    while index < len(found):
        each = found[index]
        if each.opname == "CHECK_EXC_MATCH":
            jump = next(at for at in range(index, len(found)) if "JUMP" in found[at].opname)  # to the next `except`
            if not _catches(frame, found[begin:index]):
                index = begin = indices[found[jump].argval]
                continue
            index, jumped = jump, False
        elif each.opname == "CHECK_EG_MATCH":  # `except*`: of groups, which reads together raise
            return True, None
        elif each.opname == "POP_EXCEPT":
            if found[index + 1].opname != "RERAISE":
                return True, None
        elif each.opname in ("RERAISE", "CLEANUP_THROW"):
            return False, each.offset
        elif each.opname == "RAISE_VARARGS":
            return jumped or each.arg != 0, each.offset
        elif "JUMP" in each.opname:
            jumped = True
        index += 1
    return False, None


def _catches(frame: FrameType, expression: Sequence[dis.Instruction]) -> bool:
    """Whether the types of an `except` are those of errors that a read raises; so it is where they cannot be told."""
    kinds = _types(frame, expression)
    return kinds is None or catches(tuple(kinds))


def _types(frame: FrameType, expression: Sequence[dis.Instruction]) -> list[type] | None:
    stack: list[Any] = []
    for each in expression:
        if each.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF")) and each.argval is not None:
            scopes = (frame.f_locals, frame.f_globals, frame.f_builtins)
            stack.append(next((scope[each.argval] for scope in scopes if each.argval in scope), None))
        elif each.opname == "LOAD_ATTR" and stack and isinstance(stack[-1], types.ModuleType | type):
            stack[-1] = getattr(stack[-1], str(each.argval), None)
        elif each.opname == "BUILD_TUPLE":
            count = each.arg or 0
            stack[len(stack) - count :] = [tuple(stack[len(stack) - count :])]
        elif each.opname != "PUSH_EXC_INFO":
            return None
    kinds = stack[-1] if stack and isinstance(stack[-1], tuple) else tuple(stack)
    return list(kinds) if kinds and all(isinstance(kind, type) for kind in kinds) else None


@functools.lru_cache(maxsize=1024)
def _instructions(code: CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    found = list(dis.get_instructions(code))
    return found, {each.offset: index for index, each in enumerate(found)}


@functools.lru_cache(maxsize=1024)
def _covered(code: CodeType) -> tuple[_Covered, ...]:
    """The exception table of a code (CPython 3.11, Objects/exception_handling_notes.txt)."""
    numbers = _numbers(code.co_exceptiontable)
    found = []
    for start in numbers:
        length, target, _ = next(numbers), next(numbers), next(numbers)
        found.append(_Covered(2 * start, 2 * (start + length), 2 * target))
    return tuple(found)


def _numbers(table: bytes) -> Iterator[int]:
    """Numbers of six bits a byte, the highest first; bit 6 says that more follow, bit 7 begins an entry."""
    number = 0
    for byte in table:
        number = number << 6 | byte & 63
        if not byte & 64:
            yield number
            number = 0
