"""Blocks of a body: a message of a role, and the text of a variable.

In: the state's core. Out: a begin when the block is entered, an end when it is left, however it is left.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ramet.frontend.core import Core
from ramet.frontend.entries import Entry
from ramet.frontend.errors import ProgramError, StateError
from ramet.frontend.streams import Position, Span, SpanReader
from ramet.frontend.values import Value
from ramet.frontend.waiting import all_done
from ramet.frontend.where import user_line


class RoleScope:
    """`with s.user(): ...`: the message ends in a finally."""

    def __init__(self, core: Core, role: str, where: str) -> None:
        self._core = core
        self._role = role
        self._where = where
        self.promise = (role, where)  # a block that is made is to be entered: see `Core.check`

    def __enter__(self) -> None:
        if self._core.unentered is self.promise:
            self._core.unentered = None
        self._core.check(self._where)
        self._core.role(self._role, True, self._where)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # A block that is left by an exception ends its message too; if that cannot be recorded any more (the program
        # was cancelled), the first exception is the one to see.
        with contextlib.suppress(ProgramError) if error is not None else contextlib.nullcontext():
            self._core.role(self._role, False, user_line() or self._where)


class ScopeVariable:
    """A variable that is the text between two places of a state."""

    def __init__(self, core: Core, name: str, where: str) -> None:
        core.check(where)
        self._core = core
        self._span = Span(where, _here(core))
        value: Value[str] = Value(core.execution, core.seq, self._span.future, name=name, where=where)
        value.span = self._span
        core.define(name, value)

    def end(self) -> None:
        """The scope ends here; its value is done when all of its text is known."""
        core, span = self._core, self._span
        span.end = _here(core)
        entries = core.seq.timeline()[span.start.index : span.end.index + 1]
        needs = [future for entry in entries for future in _needs(entry, span.end, entries)]
        all_done(needs, lambda: _complete(core, span))
        core.execution.bell.ring()


def _here(core: Core) -> Position:
    timeline = core.seq.timeline()
    if core.seq.open_text is not None:
        # Text that follows joins this entry: the place is inside it. (Values computed later never stand before it.)
        index = max(i for i, entry in enumerate(timeline) if entry is core.seq.open_text)
        return Position(index, len(core.seq.open_text.pieces))
    return Position(len(timeline))


def _needs(entry: Entry, end: Position, entries: list[Entry]) -> list[Any]:
    if entry is entries[-1] and end.piece:
        pieces = entry.pieces[: end.piece]
        return [piece.future for piece in pieces if isinstance(piece, Entry)]
    return entry.waits_for()


def _complete(core: Core, span: Span) -> None:
    reader = SpanReader(lambda: core.seq, span, lambda: True)
    try:
        text, finished = reader.take()
        if not finished:
            raise StateError("the text of the scope is not complete", where=span.where)
    except BaseException as error:  # noqa: BLE001 - what an operation inside failed with belongs to the reader
        span.future.set_exception(error)
    else:
        span.future.set_result(text)
