"""Where in the user's program something was asked for.

In: the call stack, or a traceback. Out: "file.py:12", the innermost line that is not of the language itself; the
traceback without the language's own frames.
"""

from __future__ import annotations

import functools
import os
import sys
from types import FrameType, TracebackType

from ramet.frontend.errors import RametError

_base = functools.lru_cache(maxsize=4096)(os.path.basename)
_OWN = "ramet.frontend"
_INSIDE = ("ramet.frontend", "ramet.runtime")
_PLUMBING = ("contextlib", "threading")


def user_line() -> str:
    """The user's "file.py:12", or "" when no frame of the stack is the user's (a body that has returned)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_OWN) and module not in _PLUMBING:
            return f"{_base(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _on_purpose(error: BaseException) -> bool:
    return isinstance(error, RametError) or (
        isinstance(error, BaseExceptionGroup) and all(map(_on_purpose, error.exceptions))
    )


def users_frames(error: BaseException) -> TracebackType | None:
    """The traceback of an error that left a body, as its author should read it: from the body on, and for an error
    that ramet raised on purpose without the frames in which ramet found it. Any other keeps those: they may show a
    bug."""
    purposely = _on_purpose(error)
    traces: list[TracebackType] = []
    trace = error.__traceback__
    while trace is not None:
        ours = trace.tb_frame.f_globals.get("__name__", "").startswith(_INSIDE)
        if not ours or (traces and not purposely):
            traces.append(trace)
        trace = trace.tb_next
    kept: TracebackType | None = None
    for trace in reversed(traces):
        kept = TracebackType(kept, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)
    return kept if kept is not None else error.__traceback__
