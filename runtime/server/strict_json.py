"""JSON texts as values, strictly and within bounds.

In: the bytes of a body or of a message. Out: plain values, or a `Failure` 400; large ones are read beside the loop.
"""

from __future__ import annotations

import asyncio
import codecs
from typing import Any

import msgspec
import numpy as np

from ramet.runtime.server.failures import bad

MAX_DEPTH = 64  # of nested JSON; beyond it a body is refused before anything looks at it
MAX_PARTS = 100_000  # arrays and objects of a body, and fields of its objects
MAX_EXPONENTS = 1000  # numbers like 1e5 in a body: their slow path in the parser takes 10 µs each
LARGE = 256 << 10  # bytes of a body from which on it is parsed in a thread, so that the loop has its turns
_NESTED = (dict, list)


def parse(raw: bytes) -> Any:
    """The value of a JSON text. Raises `Failure`: not JSON (nan, infinities, lone surrogates included), an object that
    has a key twice, or more than `MAX_DEPTH`, `MAX_PARTS`, `MAX_EXPONENTS` allow."""
    raw = raw.removeprefix(codecs.BOM_UTF8)  # which JSON must not have, and files of Windows do
    outside = _outside_strings(raw)
    _check_shape(outside)
    try:
        value = msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:  # DecodeError and UnicodeDecodeError are ValueErrors
        raise bad(f"the body is not valid JSON: {error}", code="invalid_json") from None
    fields = outside.count(b":")
    if fields and fields != _keys(value, outside.count(b"[") + outside.count(b"{")):
        raise bad("an object of the body has a key twice", code="invalid_json")
    return value


async def parsed(raw: bytes) -> Any:
    """`parse`, beside the loop where it takes long."""
    return parse(raw) if len(raw) < LARGE else await asyncio.to_thread(parse, raw)


def _outside_strings(raw: bytes) -> bytes:
    """What stands outside the strings of a JSON text; in linear time, for every text."""
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw
    return b"".join(plain.split(b'"')[::2])


def _check_shape(outside: bytes) -> None:
    parts = outside.count(b"[") + outside.count(b"{")
    if max(parts, outside.count(b":")) > MAX_PARTS:
        raise bad(f"the body has more than {MAX_PARTS} arrays, objects or fields", code="invalid_json")
    words = outside.count(b"true") + outside.count(b"false")
    if outside.count(b"e") + outside.count(b"E") - words > MAX_EXPONENTS:
        raise bad(f"the body has more than {MAX_EXPONENTS} numbers with an exponent", code="invalid_json")
    if parts > MAX_DEPTH and _depth(outside) > MAX_DEPTH:
        raise bad(f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")


def _depth(outside: bytes) -> int:
    """How deep brackets nest."""
    codes = np.frombuffer(outside, np.uint8)
    opened, closed = (codes == ord("[")) | (codes == ord("{")), (codes == ord("]")) | (codes == ord("}"))
    return int((opened.astype(np.int8) - closed.astype(np.int8)).cumsum(dtype=np.int32).max(initial=0))


def _keys(value: Any, parts: int) -> int:
    """Keys of all objects in a value that has `parts` arrays and objects. Once these were all met, nothing is looked
    through any more: most long arrays are of numbers alone."""
    met, count = [value], 0
    for each in met:  # which grows meanwhile
        if isinstance(each, dict):
            count += len(each)
        if len(met) < parts:
            met += [part for part in (each.values() if isinstance(each, dict) else each) if type(part) in _NESTED]
    return count
