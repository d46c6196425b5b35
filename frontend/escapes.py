"""What a traced body keeps outside of itself: a plan that runs alone would not keep it.

In: the frames of the user's functions as they are called, and that of the body as it returns. Out: the name of a global
variable, an argument or a variable around the body in which a stand-in, or a text made of one, is found afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from types import CodeType, FrameType
from typing import Any

from ramet.frontend.probes import marked
from ramet.frontend.state import State
from ramet.frontend.symbols import is_opaque
from ramet.frontend.traced import TraceExecution
from ramet.frontend.values import Value

_MOST = 1000  # items of a container that are looked at, from its end
_CONTAINERS = (list, dict, set, deque)


class Outside:
    """What the functions of one trace can reach from outside: looked at one level deep, objects' attributes two."""

    def __init__(self, body: CodeType) -> None:
        self._body = body
        self._globals: dict[tuple[int, CodeType], Mapping[str, Any]] = {}
        self._objects: dict[str, Any] = {}

    def called(self, frame: FrameType) -> None:
        """A function of the user's begins."""
        key = (id(frame.f_globals), frame.f_code)
        if key not in self._globals:
            self._globals[key] = frame.f_globals
        if frame.f_code is self._body:
            self._objects.update(
                (name, value)
                for name, value in frame.f_locals.items()
                if not isinstance(value, State | str) and not is_opaque(value)
            )

    def returned(self, frame: FrameType) -> None:
        """The body returns: what the variables around it are now."""
        self._objects.update((name, frame.f_locals.get(name)) for name in frame.f_code.co_freevars)

    def kept(self) -> str:
        """Where a stand-in is kept; "" where none is."""
        for name, value in self._objects.items():
            if _touches(value) or any(map(_touches, _attributes(value))):
                return name
        for (_, code), names in self._globals.items():
            for name in code.co_names:
                if _touches(names.get(name)):
                    return name
        return ""


def _touches(value: object) -> bool:
    return _stands_in(value) or _holds(value)


def _stands_in(value: object) -> bool:
    if isinstance(value, Value) and not is_opaque(value):
        return isinstance(value._execution, TraceExecution)
    return is_opaque(value) or (isinstance(value, str) and marked(value))


def _holds(value: object) -> bool:
    return type(value) in _CONTAINERS and any(map(_stands_in, _items(value)))


def _items(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        for key, item in islice(reversed(value.items()), _MOST):
            yield key
            yield item
    else:
        yield from islice(value if isinstance(value, set) else reversed(value), _MOST)


def _attributes(value: object) -> list[object]:
    """Of an object whose class is the user's."""
    return list(vars(value).values()) if type(value).__module__ != "builtins" and hasattr(value, "__dict__") else []
