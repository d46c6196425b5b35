"""Symbols: what a traced body gets in place of arguments and values.

In: who is to be told when Python looks. Out: texts that can be said again, and stand-ins of other types of which only
the text can be used. Whatever looks at one (compares, measures, splits, tests) ends the trace there; a symbol of few
possible texts makes the trace explore each instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, Protocol, cast

from ramet.frontend.planned import Param, Use
from ramet.frontend.probes import marked, shown


class Observer(Protocol):
    """The trace that symbols belong to."""

    def look(self, what: str) -> NoReturn:
        """Python looks at free text: end the trace."""

    def decide(self, on: Param | Use, domain: tuple[str, ...]) -> str:
        """Python looks at one of few texts: which one it is on this path."""

    def written(self, frame: FrameType) -> None:
        """Python writes it into another text, at the instruction at which a frame is."""

    @property
    def other_kinds(self) -> bool:
        """A value that may be of many kinds looks like a dict here, and like a list in another trace."""


class Symbol(str):
    """A text that stands for what only a run knows; `+`, str() and f-strings give texts that contain it."""

    __slots__ = ("_domain", "_observer", "_part")
    _observer: Observer
    _part: Param | Use | None
    _domain: tuple[str, ...]

    @classmethod
    def of(cls, text: str, observer: Observer, part: Param | Use | None = None, domain: tuple[str, ...] = ()) -> Symbol:
        """A symbol; with a `domain` it is one of few texts, without `part` a text made of others."""
        symbol = str.__new__(cls, text)
        symbol._observer, symbol._part, symbol._domain = observer, part, domain
        return symbol

    def decided(self, doing: str) -> str:
        """What it is on this path. Ends the trace when it may be anything."""
        if self._domain and self._part is not None:
            return self._observer.decide(self._part, self._domain)
        name = shown(self._part) if self._part is not None else "a text that only a run knows"
        return self._observer.look(f"{doing} {name}")

    def __str__(self) -> str:
        self._observer.written(sys._getframe(1))
        return self

    def __format__(self, spec: str) -> str:
        self._observer.written(sys._getframe(1))
        return self if not spec else format(self.decided("formats"), spec)

    def __add__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Symbol.of(str.__add__(self, other), self._observer)

    def __radd__(self, other: str) -> str:
        return Symbol.of(str.__add__(other, self), self._observer)

    def join(self, parts: Any) -> str:
        """As of a str."""
        return Symbol.of(str.join(self, parts), self._observer)

    def __repr__(self) -> str:
        return str.__repr__(str.__str__(self) if _inside() else self.decided("quotes"))

    def __bool__(self) -> bool:
        return True if _inside() else bool(self.decided("tests"))

    @property
    def __class__(self) -> Any:  # as of the text that it stands for
        return str

    @__class__.setter
    def __class__(self, kind: Any) -> NoReturn:
        self._observer.look("changes the type of a text that only a run knows")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._observer.look("copies")

    def __int__(self) -> int:
        return int(self.decided("makes an int of"))

    def __float__(self) -> float:
        return float(self.decided("makes a float of"))

    def __getnewargs__(self) -> NoReturn:
        self._observer.look("copies")


def _watched(name: str, doing: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def method(self: Symbol, *args: Any, **kwargs: Any) -> Any:
        if _inside():
            return plain(str.__str__(self), *(str.__str__(a) if isinstance(a, Symbol) else a for a in args), **kwargs)
        return plain(self.decided(doing), *(_plain(arg, doing, self) for arg in args), **kwargs)

    method.__name__ = name
    return method


def _inside() -> bool:
    """The language's own code asks, and may see the sentinel: it decides nothing by it."""
    return str(sys._getframe(2).f_globals.get("__name__", "")).startswith("ramet.frontend")


def _asked_inside() -> bool:
    """The language asks for the class of a value, by itself or by way of an abstract class."""
    frame: FrameType | None = sys._getframe(3)  # behind the property and `__getattribute__`
    while frame is not None and frame.f_globals.get("__name__") == "abc":
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith("ramet.frontend")


def _plain(arg: Any, doing: str, symbol: Symbol) -> Any:
    if isinstance(arg, Symbol):
        return arg.decided(doing)
    if isinstance(arg, str) and marked(arg):
        symbol._observer.look(f"{doing} a text that only a run knows")
    return arg


_KEPT = frozenset(vars(Symbol)) | {
    "__new__", "__init__", "__getattribute__", "__setattr__", "__delattr__", "__class__", "__doc__", "__dir__",
    "__init_subclass__", "__subclasshook__", "__sizeof__", "__getstate__", "__reduce__", "__rmul__", "__mul__",
    "__rmod__", "maketrans",
}  # fmt: skip
_COMPARES = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
for _name in dir(str):
    if (_name not in _KEPT or _name in (*_COMPARES, "__hash__")) and callable(getattr(str, _name)):
        _doing = "compares" if _name in _COMPARES else f"calls {_name}() of" if _name[0] != "_" else "looks at"
        setattr(Symbol, _name, _watched(_name, _doing))


def settled(text: Any, doing: str) -> Any:
    """What a text is on this path; the trace ends where it is a symbol that may be anything."""
    return text.decided(doing) if isinstance(text, Symbol) else text


class Opaque:
    """A value that is no str: an argument, or the value of a typed generation. Its text can be said where `said` tells
    how Python writes it, and its class where `kind` is one; everything else ends the trace."""

    __slots__ = ("_kind", "_observer", "_part", "_said")

    def __init__(self, observer: Observer, part: Param | Use, kind: Any, said: str | None) -> None:
        self._observer = observer
        self._part = part
        self._kind = kind if isinstance(kind, type) and kind is not object else None
        self._said = said

    @classmethod
    def of(cls, observer: Observer, part: Param | Use, kind: Any, said: str | None) -> Opaque:
        """A stand-in that patterns of `match` take for what it is: a sequence, a mapping or neither."""
        made = cls(observer, part, kind, said)
        known = made._kind
        if known is None:
            shape: type[Opaque] = _Keyed if observer.other_kinds else _Listed
        else:
            shape = _Listed if issubclass(known, Sequence) else _Keyed if issubclass(known, Mapping) else Opaque
        return shape(observer, part, kind, said)

    @property
    def part(self) -> Param | Use:
        """What it stands for."""
        return self._part

    @property
    def kind(self) -> type | None:
        """The class that it has in every run, if there is one."""
        return self._kind

    @property
    def __class__(self) -> Any:  # isinstance(n, int) holds for a parameter of type int
        if self._kind is None and not _asked_inside():
            self._look("asks the type of")
        return self._kind or object

    @__class__.setter
    def __class__(self, kind: Any) -> NoReturn:
        self._look("changes the type of")

    def _look(self, doing: str) -> NoReturn:
        self._observer.look(f"{doing} {shown(self._part)}")

    def __str__(self) -> str:
        if self._said is None:
            self._look("writes out")
        self._observer.written(sys._getframe(1))
        return Symbol.of(self._said, self._observer)

    def __format__(self, spec: str) -> str:
        if spec:
            self._look("formats")
        self._observer.written(sys._getframe(1))
        return str(self)

    def __getattribute__(self, name: str) -> Any:
        if name in _LOOKING:  # Python itself asks the class for these
            object.__getattribute__(self, "_look")(f"reads .{name} of")
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._look(f"reads .{name} of")


def _refused(doing: str) -> Callable[..., Any]:
    def method(self: Opaque, *args: Any, **kwargs: Any) -> Any:
        self._look(doing)

    return method


_LOOKS = {
    "compares": "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__",
    "tests": "__bool__",
    "measures": "__len__ __length_hint__",
    "iterates over": "__iter__ __next__ __reversed__",
    "searches": "__contains__",
    "indexes": "__getitem__ __setitem__ __delitem__ __index__",
    "writes out": "__repr__",
    "converts": "__int__ __float__ __complex__ __round__ __trunc__ __floor__ __ceil__ __bytes__",
    "enters": "__enter__ __exit__",
    "computes with": (
        "__neg__ __pos__ __abs__ __invert__ __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ "
        "__rtruediv__ __floordiv__ __rfloordiv__ __mod__ __rmod__ __divmod__ __rdivmod__ __pow__ __rpow__ __and__ "
        "__rand__ __or__ __ror__ __xor__ __rxor__ __lshift__ __rlshift__ __rshift__ __rrshift__ __matmul__"
    ),
}
_LOOKING = frozenset(" ".join(_LOOKS.values()).split())
for _doing, _names in _LOOKS.items():
    for _name in _names.split():
        setattr(Opaque, _name, _refused(_doing))


class _Listed(Opaque):
    """One that patterns take for a sequence."""

    __slots__ = ()


class _Keyed(Opaque):
    """One that patterns take for a mapping."""

    __slots__ = ()


Sequence.register(_Listed)
Mapping.register(_Keyed)


def is_opaque(value: object) -> bool:
    """Whether it is a stand-in (its `__class__` says otherwise)."""
    return type(value) in (Opaque, _Listed, _Keyed)


def look(value: object, doing: str) -> None:
    """Python does something with the value: the trace ends where it is a stand-in."""
    if is_opaque(value):
        opaque(value)._look(doing)


def opaque(value: object) -> Opaque:
    """The same, for a type checker."""
    return cast(Opaque, value)
