"""Bodies that never come back: what bounds them while they are traced.

In: the lines that a traced body runs, and how far the tracing has come. Out: the trace ends (`Break`, kind "limit") at
the line of a loop that records nothing, reads nothing new and decides nothing; where that is not possible, because the
body waits inside some other code or catches everything, compiling ends with `PlanError`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from ramet.frontend.errors import PlanError
from ramet.frontend.tracing import Stop, Trace
from ramet.frontend.users import foreign, lines_above, own

MOST_LINES = 500_000  # of the user's, without anything recorded, until the trace ends; at most twice as many
GLANCE = 0.5  # seconds between two looks at a trace
SILENCE = 60.0  # seconds without anything recorded after which a trace is given up; and a glance

_Local = Callable[[FrameType, str, Any], Any]


class Lines:
    """The trace function (`sys.settrace`) of one traced body: counts the lines of the user's functions."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.count = self._moves = 0
        self._mine: dict[CodeType, bool] = {}  # whose functions these are
        self.given_up = False
        if sys.version_info[:2] == (3, 12):  # which tells no tracer of instructions until a frame has asked for them
            sys._getframe().f_trace_opcodes = True

    def __call__(self, frame: FrameType, event: str, arg: Any) -> _Local | None:
        code = frame.f_code
        mine = self._mine.get(code)
        if mine is None:
            mine = self._mine[code] = not own(frame) and not foreign(code.co_filename)
        return self._line if mine else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> _Local:
        if self.given_up:
            raise Stop
        self.count += 1
        if self.count > MOST_LINES:
            moves, self.count = self.trace.moves, 0
            if moves == self._moves and self.trace.end is None:
                self.trace.stop(
                    "limit", f"{MOST_LINES} lines of the body ran without recording anything: does a loop end?"
                )
            self._moves = moves
        return self._line

    def closer(self, frame: FrameType | None) -> None:
        """Count instructions from now on: a loop of one instruction comes to no new line. For any thread."""
        while frame is not None:
            if frame.f_trace is not None and self._mine.get(frame.f_code):
                frame.f_trace_opcodes = True
            frame = frame.f_back


def watched(name: str, work: Callable[[], None], progress: Callable[[], object], lines: Callable[[], Lines]) -> None:
    """Run `work` in a thread of its own until it is done. Raises `PlanError` when `progress()` stays the same for
    `SILENCE` seconds; the thread is then left behind: it ends when its code comes back. `lines()` are those of the
    trace under way."""
    done = threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            done.set()

    thread = threading.Thread(target=run, name=f"ramet-compile-{name}", daemon=True)
    thread.start()
    seen, since, count = progress(), time.monotonic(), -1
    try:
        while not done.wait(GLANCE):
            now = progress()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= SILENCE:
                raise PlanError(
                    f"{name}: compiling it has recorded nothing for {SILENCE:g} s; its body is at "
                    f"{_line_of(thread)}. Bound the loop there by an argument or a choice, and keep what waits for the "
                    "world outside in host functions (s.call), or run the program without compiling it"
                )
            if lines().count == count:
                lines().closer(sys._current_frames().get(thread.ident or 0))
            count = lines().count
    finally:
        if not done.is_set():
            lines().given_up = True


def _line_of(thread: threading.Thread) -> str:
    """The user's line at which a thread is. A function that returns while one looks at its frame has no caller any
    more: then one looks again."""
    lines: list[str] = []
    for _ in range(100):
        lines = lines or lines_above(sys._current_frames().get(thread.ident or 0))
    return next(iter(lines), "an unknown line")
