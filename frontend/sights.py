"""Texts made of symbols, which are plain texts, where Python looks at them and no symbol is told.

In: frames of the user's functions, what their bytecode does next (`eyes`), the values of their variables. Out: which
text that only a run knows it looks at, and how.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import FrameType, MemberDescriptorType
from typing import Any

from ramet.frontend.eyes import ASKS, COLLECTS, IS, ITERATES, Index, Taker, Way, arguments, table
from ramet.frontend.probes import marked
from ramet.frontend.symbols import Symbol, is_opaque, opaque

_OF_SETS = (
    *("__contains__", "union", "intersection", "difference", "symmetric_difference", "issubset", "issuperset"),
    "isdisjoint",
)
SEARCHES: Mapping[type, frozenset[str]] = {  # methods that look for their first argument
    str: frozenset(
        (
            *("startswith", "endswith", "find", "rfind", "index", "rindex", "count", "split", "rsplit", "partition"),
            *("rpartition", "replace", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "__contains__"),
        )
    ),
    dict: frozenset(("get", "pop", "setdefault", "__contains__", "__getitem__")),
    list: frozenset(("index", "count", "remove", "__contains__")),
    tuple: frozenset(("index", "count", "__contains__")),
    set: frozenset(("add", "remove", "discard", "update", "difference_update", "intersection_update", *_OF_SETS)),
    frozenset: frozenset(_OF_SETS),
}
MAKES = frozenset(("join", "replace", "translate", "format", "format_map"))  # texts of what they are given
HANDS = frozenset(("next", "max", "min", "getattr", "pop", "popitem", "values", "items"))  # on what they are given
_CONTAINERS = (list, tuple, set, frozenset, dict)
_MOST = 1000  # items of a container that are looked at
_ABSENT = object()


def seen(frame: FrameType, looks: Sequence[tuple[Way, Taker]]) -> str:
    """What of texts that only a run knows is looked at by the line or instruction at which a frame is, in words; ""
    where none is. `looks` are those that it has in its `Table`."""
    for way, taken in looks:
        value = _reached(frame, way)
        if value is not _ABSENT and _looked_at(frame, way, taken, value):
            what = "value" if is_opaque(value) else "text"
            return f"{_said(taken)} {_named(way)}, a {what} that only a run knows"
    return ""


def looks(frame: FrameType, taken: Taker, value: object) -> str:
    """How `value`, which is made inside of an expression, is looked at by what takes it, in words; "" where it is
    not."""
    return _said(taken) if _looked_at(frame, None, taken, value) else ""


def _said(taken: Taker) -> str:
    if not taken.callee:
        return taken.doing
    return "asks the type of" if taken.callee == "type" else f"calls {taken.callee}() with"


def _looked_at(frame: FrameType, way: Way | None, taken: Taker, value: object) -> bool:
    if taken.doing == "calls":
        return _asked(frame, taken, value)
    if taken.doing == ITERATES:
        return not taken.held and type(value) is str and marked(value)
    if taken.doing == IS:
        return is_opaque(value) and not taken.held and opaque(value).kind is None
    if taken.container and isinstance(value, list | tuple) and taken.doing != "looks for":
        return False
    keys = taken.container and isinstance(value, dict)
    if not touched(value, keys):
        return False
    if taken.doing in ("compares", "matches") or (taken.container and type(value) is str):
        return True
    if taken.beside:
        return False
    others = [_reached(frame, each) for each, its in table(frame.f_code).ways.get(taken.offset, ()) if each != way]
    others = [other for other in others if other is not _ABSENT]
    if taken.container:
        return not others or any(type(other) is str and not marked(other) for other in others)
    return not any(isinstance(other, _CONTAINERS) and alike(other) for other in others)


def _asked(frame: FrameType, taken: Taker, value: object) -> bool:
    """A function of Python's own is called, which looks at this argument."""
    name = taken.callee
    if name in COLLECTS and taken.position == 0:
        mixed = taken.held == "mixed" if type(value) is str else isinstance(value, _CONTAINERS) and not alike(value)
        if mixed and touched(value):
            return True
    if name not in ASKS or taken.position != ASKS[name] or taken.held or name in frame.f_locals:
        return False
    if frame.f_globals.get(name, getattr(builtins, name)) is not getattr(builtins, name):
        return False
    if name == "type":
        return is_opaque(value) or isinstance(value, Symbol) or (isinstance(value, str) and marked(value))
    if isinstance(value, Symbol):  # which is told by all others
        return name in ("bytes", "bytearray")
    return type(value) is str and marked(value)


def touched(value: object, keys: bool = False, depth: int = 2) -> bool:
    """It is a plain text that only a run knows, or holds one; `keys`: among the keys of a dict."""
    if type(value) is str:
        return marked(value)
    if type(value) in (bool, int, float, type(None)):
        return False
    return depth > 0 and any(touched(each, False, depth - 1) for each in islice(_inside(value, keys), _MOST))


def _inside(value: object, keys: bool = False) -> Iterator[object]:
    if is_opaque(value):
        return
    if isinstance(value, dict):
        yield from dict.keys(value)
        yield from () if keys else dict.values(value)
    elif isinstance(value, _CONTAINERS):
        kind: Any = next(kind for kind in _CONTAINERS if isinstance(value, kind))
        yield from kind.__iter__(value)  # a class of the user's may have another
    elif dataclasses.is_dataclass(type(value)):
        yield from getattr(value, "__dict__", {}).values()


def alike(container: Any) -> bool:
    """All texts in it are known to a run alone."""
    return all(marked(each) for each in container if isinstance(each, str))


def searched(frame: FrameType, owner: Any, given: bool) -> str:
    """Which variable a method that looks for its first argument is called with, "a text" for one without a name, when
    a text that only a run knows is looked for, or looked at; else "". `given`: the argument is such a text."""
    ways = [(way, _reached(frame, way)) for way, taken in _ways(frame) if taken.position == 0 and not taken.held]
    names = [_named(way) for way, value in ways if touched(value) or (isinstance(value, str) and marked(value))]
    same = not isinstance(owner, str) and alike(owner)
    if names or given:
        return "" if same else (names or ["a text"])[0]
    if touched(owner, keys=True) and not any(is_opaque(value) for _, value in ways):
        return "a text"
    return ""


def fed(frame: FrameType) -> bool:
    """The call at which a frame is makes its arguments of variables that hold what only a run knows."""
    names = arguments(frame.f_code, frame.f_lasti)
    return any(_holds(_reached(frame, (name,))) for name in names)


def _holds(value: object) -> bool:
    return (
        isinstance(value, Symbol)
        or is_opaque(value)
        or touched(value)
        or any(map(stands_in, islice(_inside(value), _MOST)))
    )


def stands_in(value: object) -> bool:
    """It stands for an argument or a value."""
    return isinstance(value, Symbol) or is_opaque(value)


def _ways(frame: FrameType) -> Sequence[tuple[Way, Taker]]:
    return table(frame.f_code).ways.get(frame.f_lasti, ())


def _reached(frame: FrameType, way: Way) -> Any:
    """The value at the end of a way, without running code of the user's; `_ABSENT` where there is none."""
    value = frame.f_locals.get(str(way[0]), frame.f_globals.get(str(way[0]), _ABSENT))
    for step in way[1:]:
        if value is _ABSENT or is_opaque(value):
            return _ABSENT
        value = _attribute(value, step[1:]) if isinstance(step, str) else _item(frame, value, step)
    return value


def _attribute(value: object, name: str) -> Any:
    found = inspect.getattr_static(value, name, _ABSENT)
    if isinstance(found, MemberDescriptorType):
        try:
            return found.__get__(value)
        except AttributeError:
            return _ABSENT
    return _ABSENT if hasattr(type(found), "__get__") else found


def _item(frame: FrameType, value: Any, step: Index) -> Any:
    index = _reached(frame, (str(step.value),)) if step.variable else step.value
    if type(value) not in (list, tuple, dict) or type(index) not in (str, int):
        return _ABSENT
    try:
        return value[index]
    except (LookupError, TypeError):
        return _ABSENT


def _named(way: Way) -> str:
    return "".join(
        step if isinstance(step, str) else f"[{step.value if step.variable else repr(step.value)}]" for step in way
    )
