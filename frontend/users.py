"""Which frames are the user's: where a graph break is, and which code it is that runs.

In: the call stack. Out: "file.py:12" of the innermost frame that is neither ramet's nor the standard library's.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from types import FrameType

from ramet.frontend.where import user_line

_STANDARD = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    if path is not None
)
_FOREIGN = ("site-packages", "dist-packages")


def own(frame: FrameType) -> bool:
    """It is the language's."""
    return str(frame.f_globals.get("__name__", "")).startswith("ramet.frontend")


@functools.lru_cache(maxsize=4096)
def foreign(filename: str) -> bool:
    """Code of the standard library, or of an installed package."""
    if filename.startswith("<frozen"):
        return True
    real = os.path.realpath(filename)
    return real.startswith(_STANDARD) or any(f"{os.sep}{name}{os.sep}" in real for name in _FOREIGN)


def place() -> str:
    """The user's line that runs now; a library's, when nothing else is on the stack."""
    return next(iter(places()), "") or user_line()


def places() -> list[str]:
    """The user's lines on the stack, the innermost first."""
    return lines_above(sys._getframe(1))


def lines_above(frame: FrameType | None) -> list[str]:
    """The user's lines of a frame and those that called it, the innermost first."""
    found: list[str] = []
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        mine = name == "ramet" or (name.startswith("ramet.") and not name.startswith("ramet.examples"))
        if not mine and not foreign(frame.f_code.co_filename):
            found.append(line_of(frame))
        frame = frame.f_back
    return found


def line_of(frame: FrameType) -> str:
    """The line at which a frame is."""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
