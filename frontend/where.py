"""Where in the user's program something was asked for.

In: the call stack. Out: "file.py:12", the innermost line that is not of the language itself.
"""

from __future__ import annotations

import os
import sys
from types import FrameType

_OWN = "ramet.frontend"
_PLUMBING = ("contextlib", "threading")


def user_line() -> str:
    """The user's "file.py:12", or "" when no frame of the stack is the user's (a body that has returned)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_OWN) and module not in _PLUMBING:
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
