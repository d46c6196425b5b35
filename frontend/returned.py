"""What a program returns, as data.

In: the object that a traced body returned, symbols in it. Out: constants, texts, values of operations, lists, dicts and
dataclasses of these; or the trace ends, because no plan can make the object without Python.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ramet.frontend.planned import Const, Fields, Given, Many, Param, Returned, Said, Whole
from ramet.frontend.probes import Altered, marked
from ramet.frontend.symbols import is_opaque, opaque
from ramet.frontend.tracing import Trace
from ramet.frontend.values import Value

Types = dict[str, type]


def returned(value: Any, trace: Trace, types: Types) -> Returned:
    """The expression that makes the object again. `types` takes the dataclasses that it needs."""
    if is_opaque(value):
        part = opaque(value).part
        return Given(part.name) if isinstance(part, Param) else Whole(part.op, part.read)
    if isinstance(value, Value):
        trace.stop("returns", "the body returns the handle of a value, unread: return what .get() or await gives")
    if isinstance(value, str):
        return _text(value, trace)
    if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
        return Const(value)
    if type(value) in (list, tuple):
        items = tuple(returned(item, trace, types) for item in value)
        return Many(items, "list" if type(value) is list else "tuple")
    if type(value) is dict and all(type(key) is str and not marked(key) for key in value):
        return Fields({key: returned(item, trace, types) for key, item in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _record(value, trace, types)
    return trace.stop("returns", f"the body returns an object of type {type(value).__name__}, which it computes")


def _text(value: str, trace: Trace) -> Returned:
    text = str.__str__(value)
    if not marked(text):
        if type(value) is not str:
            trace.stop("returns", f"the body returns an object of type {type(value).__name__}")
        return Const(text)
    try:
        return Said(trace.probe.cut(text))
    except Altered:
        trace.stop("returns", f"the body returns a text that it computes from {trace.probe.names(text)}")


def _plain(kind: type[Any]) -> bool:
    """It is made by a constructor that `dataclass` has written: from its fields alone, and of them all."""
    code = getattr(kind.__init__, "__code__", None)
    if code is None or code.co_filename != "<string>":
        return False
    fields = {field.name for field in dataclasses.fields(kind)}
    taken = {*code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]}
    params = getattr(kind, "__dataclass_params__", None)
    own = {name for each in kind.__mro__[:-1] for name in vars(each)}
    setting = "__setattr__" in own and not (params is not None and params.frozen)
    slots = {name for each in kind.__mro__[:-1] for name in _slots(each)}
    return taken == fields and "__new__" not in own and not setting and slots - {"__weakref__", "__dict__"} <= fields


def _slots(kind: type[Any]) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _record(value: Any, trace: Trace, types: Types) -> Returned:
    kind = type(value)
    fields = dataclasses.fields(value)
    if hasattr(value, "__post_init__") or not _plain(kind) or not all(field.init for field in fields):
        trace.stop("returns", f"the body returns a {kind.__name__}, which computes its own fields")
    if not getattr(value, "__dict__", {}).keys() <= {field.name for field in fields}:
        trace.stop("returns", f"the body returns a {kind.__name__} with more than its fields")
    name = f"{kind.__module__}.{kind.__qualname__}"
    if types.setdefault(name, kind) is not kind:
        trace.stop("returns", f"the body returns objects of two types named {kind.__name__}")
    return Fields({field.name: returned(getattr(value, field.name), trace, types) for field in fields}, name)
