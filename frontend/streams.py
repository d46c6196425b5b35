"""Reading text while it is generated: each reader gets each character once, in order.

In: entries and sequences that grow. Out: new pieces of text, and whether more will come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from ramet.frontend.entries import Entry, Seq
from ramet.frontend.execution import Execution
from ramet.frontend.values import Value
from ramet.frontend.waiting import refuse_blocking


class Reader(Protocol):
    """Takes what is new since its last call; says whether that was the end. Raises what a failed operation failed
    with."""

    def take(self) -> tuple[str, bool]:
        """(new text, finished)."""


class EntryReader:
    """Follows one entry from its piece `start` to its piece `stop` (None: its last)."""

    def __init__(self, entry: Entry, start: int = 0) -> None:
        self._entry = entry
        self._next = start

    def take(self, stop: int | None = None) -> tuple[str, bool]:
        """See `Reader`."""
        entry = self._entry
        if entry.kind in ("fork", "put", "close"):
            return "", True
        complete = entry.complete  # before the pieces: what is complete gets no further ones
        end = len(entry.pieces) if stop is None else stop
        out: list[str] = []
        while self._next < end:
            piece = entry.pieces[self._next]
            if isinstance(piece, Entry):
                if not piece.future.done():
                    return "".join(out), False
                out.append(piece.future.result())
            else:
                out.append(piece)
            self._next += 1
        if entry.error is not None:
            raise entry.error
        return "".join(out), stop is not None or complete


class OnceReader:
    """A value that does not come in pieces."""

    def __init__(self, value: Value[Any]) -> None:
        self._value = value

    def take(self) -> tuple[str, bool]:
        """See `Reader`."""
        return (str(self._value.get()), True) if self._value.done else ("", False)


@dataclass
class Position:
    """A place in a state's text: before piece `piece` of entry `index` of its timeline."""

    index: int
    piece: int = 0


@dataclass
class Span:
    """The text of a state from one position to another; `end` is None while it is open. `future` has its text."""

    where: str
    start: Position
    end: Position | None = None
    future: Future[str] = field(default_factory=Future)


class SpanReader:
    """Follows the text of a state over `span`; `over` says that an open span gets no further text."""

    def __init__(self, seq: Callable[[], Seq], span: Span, over: Callable[[], bool]) -> None:
        self._seq = seq
        self._span = span
        self._over = over
        self._index = span.start.index
        self._reader: EntryReader | None = None
        self._first = span.start.piece

    def take(self) -> tuple[str, bool]:
        """See `Reader`."""
        over, end = self._over(), self._span.end
        timeline = self._seq().timeline()
        out: list[str] = []
        while end is None or (self._index, 0) < (end.index, end.piece):
            if self._index >= len(timeline):
                return "".join(out), over
            if self._reader is None:
                self._reader, self._first = EntryReader(timeline[self._index], self._first), 0
            last = end is not None and self._index == end.index
            text, finished = self._reader.take(end.piece if end is not None and last else None)
            out.append(text)
            if not finished:  # what is incomplete when everything is over stays so
                return "".join(out), over
            self._reader = None
            self._index += 1
        return "".join(out), True


def follow(execution: Execution, find: Callable[[], Reader | None]) -> Iterator[str]:
    """The texts of the reader that `find` gives as soon as it exists, as they come; waits in this thread."""
    found = _Found(find)
    while not found.finished:
        seen = execution.bell.count
        text = found.take()
        if text:
            yield text
        elif not found.finished and execution.bell.count == seen:
            refuse_blocking(execution.loop, "the next text")
            execution.bell.wait(seen)


async def follow_async(execution: Execution, find: Callable[[], Reader | None]) -> AsyncIterator[str]:
    """`follow` for event loops."""
    found = _Found(find)
    while not found.finished:
        seen = execution.bell.count
        text = found.take()
        if text:
            yield text
        elif not found.finished and execution.bell.count == seen:
            await execution.bell.wait_async(seen)


class _Found:
    """A reader that may not exist yet."""

    def __init__(self, find: Callable[[], Reader | None]) -> None:
        self._find = find
        self._reader: Reader | None = None
        self.finished = False

    def take(self) -> str:
        """What can be told now."""
        self._reader = self._reader or self._find()
        if self._reader is None:
            return ""
        text, self.finished = self._reader.take()
        return text
