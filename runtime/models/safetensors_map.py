"""The header of a safetensors file, without a library that wants a tensor framework.

In: a file that nobody vouches for. Out: type, shape and place of each tensor. Every length and offset is checked
against the file's length before it is used (RELIABILITY R2). Format: github.com/huggingface/safetensors, README.md.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.frontend.errors import ModelError

MAX_HEADER = 100_000_000  # bytes, by the format's own reader
# bytes of an element; other types may be present, and are refused when they are asked for
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: `offset` in bytes from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, in the order in which they lie there. Raises `ModelError`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise _wrong(path, f"a header of {length} bytes in a file of {size}")
            text = file.read(length)
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e.strerror or e}") from e
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _wrong(path, f"its header is not JSON: {type(e).__name__}") from None
    if not isinstance(header, dict):
        raise _wrong(path, "its header is not an object")
    base = 8 + length
    found = [_entry(path, name, fields, base) for name, fields in header.items() if name != "__metadata__"]
    found.sort(key=lambda entry: (entry.offset, entry.nbytes))
    end = base
    for entry in found:
        if entry.offset != end:
            raise _wrong(path, f"tensor {entry.name!r} starts at byte {entry.offset}, the one before ends at {end}")
        end += entry.nbytes
    if end != size:
        raise _wrong(path, f"its tensors end at byte {end}, the file at {size}: the download is incomplete or damaged")
    return {entry.name: entry for entry in found}


def _wrong(path: Path, message: str) -> ModelError:
    return ModelError(f"{path}: cannot be read as safetensors: {message}")


def _entry(path: Path, name: str, fields: Any, base: int) -> Entry:
    try:
        kind, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        raise _wrong(path, f"tensor {name!r} lacks dtype, shape or data_offsets") from None
    if not whole or not isinstance(kind, str) or len(shape) > 8:
        raise _wrong(path, f"tensor {name!r} has shape {str(shape)[:80]} and data_offsets {[start, stop]}")
    if kind in SIZES and math.prod(shape) * SIZES[kind] != stop - start:
        raise _wrong(path, f"tensor {name!r} of {kind} {shape} has {stop - start} bytes")
    if stop < start:
        raise _wrong(path, f"tensor {name!r} ends before it starts")
    return Entry(name, kind, tuple(shape), base + start, stop - start)
