"""Text that someone else wrote, on its way to a terminal.

In: what a model or a server said. Out: the same characters, those that a terminal would obey shown escaped; one line
for an error.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

from ramet.frontend.errors import ProgramError

# C0 and C1 controls, and the marks that turn the direction of what follows; line ends and tabs stay
_OBEYED = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SHOWN = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _OBEYED if chr(code) not in "\n\t"}
_LOADERS = ("importlib", "runpy", "ramet.frontend", "ramet.runtime", "ramet.__main__")


def plain(text: str) -> str:
    """`text` with control characters as escapes: nothing in it moves a cursor, sets a colour or a title."""
    return text.translate(_SHOWN)


def write(stream: TextIO, text: str) -> None:
    """Write now: plain text on a terminal, `text` itself elsewhere; what the stream's encoding lacks is escaped."""
    encoding = stream.encoding or "utf-8"
    shown = plain(text) if stream.isatty() else text
    stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def told(error: BaseException) -> str:
    """What went wrong, in one line, without the places of a program that the user has not written."""
    text = error.message if isinstance(error, ProgramError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def users_traceback(error: BaseException) -> str:
    """The traceback of an error as the author of the failing file should read it: the frames that called it left
    out."""
    for one in _chain(error):
        one.__traceback__ = _without_callers(one.__traceback__)
    return "".join(traceback.format_exception(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__]
            left += one.exceptions if isinstance(one, BaseExceptionGroup) else []


def _without_callers(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and _ours(trace):
        trace = trace.tb_next
    return trace


def _ours(trace: TracebackType) -> bool:
    module = trace.tb_frame.f_globals.get("__name__", "")
    return any(module == name or module.startswith(f"{name}.") for name in _LOADERS)
