"""Values as JSON text, exactly: what is read back has the same types and the same bits, or it is not written at all.

In: plain data (None, bool, int, float, str, list, tuple, dict of those). Out: JSON text, and the data again. Objects of
other types are never made from text: reading runs no code (R13).
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import json
import math
from typing import Any

from ramet.frontend.errors import JournalError

DEEPEST = 100  # containers inside each other
MOST_BITS = 14_000  # of an integer: Python reads no longer ones from text
_TAG = "$"


class Unwritable(Exception):
    """A value has no exact JSON form; `what` is its type, or what is wrong with it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def written(value: Any) -> str:
    """JSON text of plain data. Raises `Unwritable`."""
    return _dumped(_plain(value, 0))


def described(value: Any) -> str:
    """JSON text of any value: of plain data as by `written`; of functions and objects what tells them from others that
    a later process would make in their place (a dataclass's fields, a function's name; else the type alone)."""
    return _dumped(_likeness(value, 0))


def read(text: str) -> Any:
    """The value that `written` wrote. Raises `JournalError` for anything else."""
    try:
        return _restored(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise JournalError(f"a value of the journal cannot be read: {error}") from None


def digest(*columns: object) -> str:
    """The hash of a row: BLAKE2b (128 bits) of its columns as a JSON list."""
    text = json.dumps(columns, ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _dumped(plain: Any) -> str:
    return json.dumps(plain, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if depth > DEEPEST:
        raise Unwritable(f"more than {DEEPEST} containers inside each other")
    if value is None or kind in (bool, str):
        return value
    if kind is int and value.bit_length() <= MOST_BITS:
        return value
    if kind is float:
        return value if math.isfinite(value) else {_TAG: "float", "v": repr(value)}
    if kind is list:
        return [_plain(item, depth + 1) for item in value]
    if kind is tuple:
        return {_TAG: "tuple", "v": [_plain(item, depth + 1) for item in value]}
    if kind is dict:
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: _plain(item, depth + 1) for key, item in value.items()}
        pairs = [[_plain(key, depth + 1), _plain(item, depth + 1)] for key, item in value.items()]
        return {_TAG: "dict", "v": pairs}
    raise Unwritable(f"an integer of {value.bit_length()} bits" if kind is int else _name(kind))


def _restored(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_restored(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    tag = plain.get(_TAG)
    if tag is None:
        return {key: _restored(item) for key, item in plain.items()}
    if tag == "float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[plain["v"]]
    if tag == "tuple":
        return tuple(_restored(plain["v"]))
    if tag == "dict":
        return dict(_restored(plain["v"]))
    raise ValueError(f"it stands for an object ({tag}), which only its program can make")


def _likeness(value: Any, depth: int) -> Any:
    try:
        return _plain(value, depth)
    except Unwritable as unwritable:
        kind: Any = type(value)
        if depth > DEEPEST:
            return {_TAG: "deep", "v": unwritable.what}
    if isinstance(value, enum.Enum):
        return {_TAG: "enum", "v": f"{_name(kind)}.{value.name}"}
    if isinstance(value, dict):
        pairs = [[_likeness(key, depth + 1), _likeness(item, depth + 1)] for key, item in value.items()]
        return {_TAG: "mapping", "v": _name(kind), "of": pairs}
    if isinstance(value, list | tuple):
        return {_TAG: "sequence", "v": _name(kind), "of": [_likeness(item, depth + 1) for item in value]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [[each.name, _likeness(getattr(value, each.name), depth + 1)] for each in dataclasses.fields(value)]
        return {_TAG: "record", "v": _name(kind), "of": fields}
    if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):  # pydantic's
        return {_TAG: "record", "v": _name(kind), "of": _likeness(value.model_dump(mode="json"), depth + 1)}
    if isinstance(value, type) or inspect.isroutine(value):
        return {_TAG: "name", "v": _name(value)}
    return {_TAG: "object", "v": _name(kind)}


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(type(value)))}"
