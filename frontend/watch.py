"""What a traced body does that symbols cannot see: a profile function of the traced thread.

In: every call that the body's thread makes. Out: the trace ends where text that only a run knows is handed to code
that works on text (regular expressions, JSON, methods of a str that an f-string made), and where the language is asked
for what a plan does not have; the code objects of the user that ran.
"""

from __future__ import annotations

import builtins
import random
import re
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

from ramet.frontend import roles, run, transcript, values
from ramet.frontend.branches import Branches
from ramet.frontend.escapes import Outside
from ramet.frontend.eyes import taker
from ramet.frontend.handlers import block_handler
from ramet.frontend.host import inside_async_body
from ramet.frontend.managers import ENTERS
from ramet.frontend.planned import BreakKind
from ramet.frontend.probes import MIDDLE, marked
from ramet.frontend.sights import HANDS, MAKES, SEARCHES, fed, searched, stands_in, touched
from ramet.frontend.symbols import is_opaque
from ramet.frontend.tracing import Trace
from ramet.frontend.users import foreign, line_of, own

_ENDS: dict[CodeType, tuple[BreakKind, str]] = {
    transcript.settle.__code__: ("look", "reads or waits for the text of a branch"),
    transcript.settle_async.__code__: ("look", "reads or waits for the text of a branch"),
    values.call_value.__code__: ("host", "a host function must be called"),
    values.Value.metas.__code__: ("look", "Python reads how generations went"),
    roles.ScopeVariable.__init__.__code__: ("feature", "var_scope defines a variable as a stretch of text"),
    run.start.__code__: ("program", "another program is started"),
}
_ENDS[vars(values.Value)["meta"].fget.__code__] = ("look", "Python reads how a generation went")
_FROM_USERS: dict[CodeType, tuple[BreakKind, str]] = {
    vars(values.Value)["done"].fget.__code__: ("wait", "Python asks whether a value is there")
}
_WITH: dict[CodeType, tuple[str, Any, str]] = {  # a parameter, what it is when it is not given
    values.Value.get.__code__: ("timeout", None, "a read has a timeout"),
    Branches.gather.__code__: ("on_error", "raise", "gather returns errors"),
    Branches.agather.__code__: ("on_error", "raise", "gather returns errors"),
}
_SEARCHED = tuple(SEARCHES)
_RACES = "ramet.frontend.trials"
_HARMLESS = frozenset(("join", "format", "format_map", "__format__", "__str__", "__add__", "__sizeof__"))
_CARRIERS = (  # modules that hand text on and do not look at it
    "abc asyncio collections collections.abc concurrent.futures contextlib contextvars copy dataclasses functools "
    "inspect itertools logging operator threading types typing warnings weakref"
)
_CHANCE = ("random", "secrets")
_CHOOSER = vars(random)["_inst"]  # whose methods random's functions are; seeded ones are no chance
_CLASSES = ("abc", "dataclasses", "inspect", "typing")  # modules that ask for the class of what they are given


class Watch:
    """The profile function of one trace. `codes` collects what of the user's code has run; `returned` is the line at
    which `body` returned."""

    def __init__(self, trace: Trace, body: CodeType, codes: set[CodeType]) -> None:
        self._trace = trace
        self._body = body
        self._codes = codes
        self._quiet: set[CodeType] = set()  # the language's own functions that mean nothing here
        self.outside = Outside(body)
        self.returned = ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if frame.f_code in self._quiet or self._trace.end is not None:
            return
        if event == "call":
            self._called(frame)
        elif event == "c_call":
            self._called_c(frame, arg)
        elif event == "return":
            self._returned(frame, arg)

    def _returned(self, frame: FrameType, value: object) -> None:
        if frame.f_code is self._body:
            self.returned = line_of(frame)
            self.outside.returned(frame)
        elif frame.f_back is not None and not own(frame) and (stands_in(value) or touched(value)):
            self._trace.made(frame.f_back, value)

    def _called(self, frame: FrameType) -> None:
        code = frame.f_code
        if own(frame):
            self._language(frame, code)
            return
        back = frame.f_back
        if code.co_name in ENTERS and code.co_argcount and back is not None and not own(back):
            self._trace.entered.enter(back, block_handler(back), frame.f_locals[code.co_varnames[0]])
        if not foreign(code.co_filename):
            self._codes.add(code)
            self.outside.called(frame)
        elif back is not None and not own(back) and not _foreign_frame(back):
            module = str(frame.f_globals.get("__name__", ""))
            values = frame.f_locals.values()
            if module in _CHANCE and (frame.f_locals.get("self") or _CHOOSER) is _CHOOSER:
                self._trace.stop("differs", f"{module}.{code.co_name} gives something else in every run")
            if module in _CLASSES and any(map(is_opaque, values)):
                self._trace.look(f"gives {module}.{code.co_name} a value that only a run knows")
            if module not in _CARRIERS.split() and any(map(_marked, values)):
                self._trace.stop("look", f"{module}.{code.co_name} is given text that only a run knows")

    def _language(self, frame: FrameType, code: CodeType) -> None:
        races = frame.f_globals.get("__name__") == _RACES
        if code in _ENDS:
            self._trace.stop(*_ENDS[code])
        if not (code in _FROM_USERS or code in _WITH or races):
            self._quiet.add(code)
            return
        back = frame.f_back
        if code in _FROM_USERS and back is not None and not own(back):
            self._trace.stop(*_FROM_USERS[code])
        if code in _WITH:
            name, absent, reason = _WITH[code]
            if frame.f_locals.get(name, absent) != absent:
                self._trace.stop("feature", reason)
        if races and back is not None and not own(back) and not _foreign_frame(back):
            self._trace.stop("feature", "attempts race each other")

    def _called_c(self, frame: FrameType, function: Any) -> None:
        if own(frame):
            return
        if getattr(function, "__module__", "") == "_asyncio" and inside_async_body.get() and not _own_caller(frame):
            self._trace.stop("wait", "the body uses its event loop, which only a run has")
        owner = getattr(function, "__self__", None)
        if type(owner) is str and marked(owner):
            if function.__name__ not in _HARMLESS:
                self._trace.stop("look", f"Python calls {function.__name__}() of text that only a run knows")
            self._trace.made(frame, owner)
        elif owner is _CHOOSER:
            self._trace.stop("differs", f"random.{function.__name__} gives something else in every run")
        elif isinstance(owner, _SEARCHED) and not _foreign_frame(frame):
            self._searched(frame, owner, function.__name__)
            self._handed(frame, owner, function.__name__)
        elif owner is builtins and function.__name__ in HANDS:
            self._handed(frame, None, function.__name__)
        elif getattr(function, "__module__", "") == "_operator" and not _foreign_frame(frame):
            if self._holds(frame):
                self._trace.look(f"calls {function.__name__}() with a text that only a run knows")
        elif isinstance(owner, re.Pattern) and any(_marked(value) for value in frame.f_locals.values()):
            self._trace.stop("look", f"a regular expression is matched where {self._names(frame)} only a run knows")

    def _searched(self, frame: FrameType, owner: Any, method: str) -> None:
        """The user calls a method, of which some look for their argument, and others make a text of it."""
        kind = next(kind for kind in _SEARCHED if isinstance(owner, kind))
        if method in SEARCHES[kind]:
            name = searched(frame, owner, self._given(frame))
            if name:
                named = "" if name == "a text" else f"{name}, "
                self._trace.look(f"calls {method}() with {named}a text that only a run knows")
        if kind is str and method in MAKES and taker(frame.f_code, frame.f_lasti) and self._holds(frame):
            self._trace.made(frame, MIDDLE)

    def _handed(self, frame: FrameType, owner: object, function: str) -> None:
        """The user calls a function whose result may be what it is given."""
        if function in HANDS and taker(frame.f_code, frame.f_lasti) and (touched(owner) or self._holds(frame)):
            self._trace.made(frame, MIDDLE)

    def _holds(self, frame: FrameType) -> bool:
        """The call at which a frame is has an argument with what only a run knows."""
        return self._given(frame) or fed(frame)

    def _given(self, frame: FrameType) -> bool:
        return (frame.f_code, frame.f_lasti) in self._trace.given

    def _names(self, frame: FrameType) -> str:
        return " and ".join(name for name, value in frame.f_locals.items() if _marked(value)) + " holds text that"


def _foreign_frame(frame: FrameType) -> bool:
    return foreign(frame.f_code.co_filename)


def _own_caller(frame: FrameType) -> bool:
    """The language has called asyncio's code here."""
    caller: FrameType | None = frame
    while caller is not None and str(caller.f_globals.get("__name__", "")).partition(".")[0] == "asyncio":
        caller = caller.f_back
    return caller is not None and own(caller)


def _marked(value: object) -> bool:
    if isinstance(value, str):
        return marked(value)
    return type(value) in (list, tuple) and any(isinstance(v, str) and marked(v) for v in value)  # type: ignore[attr-defined]


def constants(codes: set[CodeType]) -> Iterator[str]:
    """The texts that the code mentions."""
    for code in codes:
        for constant in code.co_consts:
            if isinstance(constant, str):
                yield constant
            elif isinstance(constant, tuple | frozenset):
                yield from (item for item in constant if isinstance(item, str))
