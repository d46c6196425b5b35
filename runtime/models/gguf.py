"""A reader of GGUF files: header, tensor table, dequantised tensors.

In: a file that nobody vouches for. Out: metadata as plain values and memory-mapped tensors. Every count, length, offset
and dimension is checked against the file's length and a cap before anything is allocated (RELIABILITY R2).
Format: github.com/ggml-org/ggml, docs/gguf.md; versions 2 and 3, little endian.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramet.frontend.errors import ModelError

if TYPE_CHECKING:  # the world of text reads headers only, and starts sooner without numpy
    import numpy as np
    import numpy.typing as npt

    U8 = npt.NDArray[np.uint8]
    F32 = npt.NDArray[np.float32]

MAX_ENTRIES = 1 << 16  # metadata keys
MAX_TENSORS = 1 << 18
MAX_DIMENSIONS = 4
MAX_KEY = (1 << 16) - 1  # bytes of a key, by the format
MAX_NAME = 256  # bytes of a tensor's name; the format says 64
MAX_STRING = 1 << 26  # bytes of one string value
MAX_ARRAY = 1 << 24  # elements of one array
MAX_ALIGNMENT = 1 << 20

# type id: name, elements per block, bytes per block. Only types that `dequantize` can read.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
_IDS = {name: (type_id, block, size) for type_id, (name, block, size) in TENSOR_TYPES.items()}

# value type id: struct code and size. 7 is bool (a byte, 0 or 1), 8 a string, 9 an array.
_SCALARS: dict[int, tuple[str, int]] = {
    0: ("B", 1),
    1: ("b", 1),
    2: ("H", 2),
    3: ("h", 2),
    4: ("I", 4),
    5: ("i", 4),
    6: ("f", 4),
    7: ("B", 1),
    10: ("Q", 8),
    11: ("q", 8),
    12: ("d", 8),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_CHUNK_BLOCKS = 4096  # blocks dequantised at once: bounds the temporaries to some MB


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is. `shape` is numpy's order (`[out, in]`), `offset` bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GGUFFile:
    """A checked header over a memory-mapped file; tensors are read when they are asked for."""

    def __init__(
        self, path: Path, data: mmap.mmap, version: int, metadata: dict[str, object], tensors: dict[str, TensorInfo]
    ) -> None:
        self.path, self.version, self.metadata, self.tensors = path, version, metadata, tensors
        self._map = data

    @cached_property
    def _data(self) -> U8:
        import numpy as np

        return np.frombuffer(self._map, np.uint8)

    def raw(self, name: str) -> U8:
        """The tensor's bytes as they lie in the file, `[nbytes] uint8`, memory-mapped and read-only."""
        info = self._info(name)
        return self._data[info.offset : info.offset + info.nbytes]

    def dequantize(self, name: str) -> F32:
        """The tensor as float32, of the shape in `tensors[name]`: a new array, every element written."""
        import numpy as np

        info, raw = self._info(name), self.raw(name)
        if info.type == "F32":
            return raw.view("<f4").astype(np.float32).reshape(info.shape)
        if info.type == "F16":
            return raw.view("<f2").astype(np.float32).reshape(info.shape)
        if info.type == "BF16":
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(info.shape)
        return dequantize_blocks(raw, info.type).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.path}: no tensor {name!r}")
        return info


def dequantize_blocks(raw: U8, type_name: str) -> F32:
    """Block-quantised bytes to float32, a bounded number of blocks at a time, by the `gguf` package's numpy code."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    type_id, block, size = _IDS[type_name]
    blocks = raw.size // size
    out = np.empty(blocks * block, np.float32)  # covered: the loop writes each chunk, and a wrong length raises
    # Extreme scales in a corrupt file overflow to inf here; the loader refuses such tensors by name.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, blocks, _CHUNK_BLOCKS):
            stop = min(start + _CHUNK_BLOCKS, blocks)
            chunk = raw[start * size : stop * size].reshape(1, -1)
            out[start * block : stop * block] = dequantize(chunk, GGMLQuantizationType(type_id))[0]
    return out


class _Header:
    """A cursor over the header; each read checks that it stays inside the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.pos = path, data, len(data), 0

    def error(self, message: str, at: int | None = None) -> ModelError:
        where = self.pos if at is None else at
        return ModelError(f"{self.path}: not a valid GGUF file: {message} (at byte {where} of {self.size})")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.pos:
            raise self.error(f"{what} needs {count} bytes, {self.size - self.pos} are left")

    def number(self, code: str, size: int, what: str) -> Any:
        self.need(size, what)
        value = struct.unpack_from("<" + code, self.data, self.pos)[0]
        self.pos += size
        return value

    def string(self, cap: int, what: str) -> str:
        length = self.number("Q", 8, f"the length of {what}")
        if length > cap:
            raise self.error(f"{what} has {length} bytes; at most {cap} are accepted", self.pos - 8)
        self.need(length, what)
        start, self.pos = self.pos, self.pos + length
        try:
            return self.data[start : self.pos].decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.error(f"{what} is not UTF-8: {e.reason}", start) from None

    def value(self, kind: int, key: str) -> object:
        if kind == _STRING:
            return self.string(MAX_STRING, f"the value of {key!r}")
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise self.error(f"{key!r} has the unknown value type {kind}", self.pos - 4)
        code, size = _SCALARS[kind]
        number = self.number(code, size, f"the value of {key!r}")
        if kind == _BOOL and number > 1:
            raise self.error(f"{key!r} is a boolean of value {number}", self.pos - 1)
        return bool(number) if kind == _BOOL else number

    def array(self, key: str) -> list[Any]:
        kind, count = self.number("I", 4, f"the type of {key!r}"), self.number("Q", 8, f"the count of {key!r}")
        if kind == _ARRAY:
            raise self.error(f"{key!r} is an array of arrays, which is not supported", self.pos - 12)
        if kind != _STRING and kind not in _SCALARS:
            raise self.error(f"{key!r} has the unknown element type {kind}", self.pos - 12)
        if count > MAX_ARRAY:
            raise self.error(f"{key!r} has {count} elements; at most {MAX_ARRAY} are accepted", self.pos - 8)
        if kind == _STRING:
            return self.strings(count, key)
        code, size = _SCALARS[kind]
        self.need(count * size, f"the array {key!r}")
        values: list[Any] = list(struct.unpack_from(f"<{count}{code}", self.data, self.pos))
        if kind == _BOOL:
            if max(values, default=0) > 1:
                raise self.error(f"{key!r} has a boolean that is neither 0 nor 1")
            values = list(map(bool, values))
        self.pos += count * size
        return values

    def strings(self, count: int, key: str) -> list[str]:
        """A vocabulary has 50,000 to 500,000 of them: one tight loop over the map, the same checks as `string`."""
        self.need(count * 8, f"the array {key!r}")
        data, size, pos = self.data, self.size, self.pos
        unpack, out = struct.Struct("<Q").unpack_from, list[str]()
        add = out.append
        try:
            for _ in range(count):
                (length,) = unpack(data, pos)
                pos += 8
                end = pos + length
                if end > size or length > MAX_STRING:
                    raise self.error(f"a string of {key!r} has {length} bytes; {size - pos} are left", pos - 8)
                add(data[pos:end].decode())  # UTF-8, said by nothing: an argument costs as much as the decoding
                pos = end
        except struct.error:
            raise self.error(f"the array {key!r} runs over the end", pos) from None
        except UnicodeDecodeError as e:
            raise self.error(f"a string of {key!r} is not UTF-8: {e.reason}", pos) from None
        self.pos = pos
        return out


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check the header of a GGUF file; tensor data stays on disk, memory-mapped. Raises `ModelError`."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise ModelError(f"{path}: not a GGUF file: shorter than its fixed header of 24 bytes")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e.strerror or e}") from e
    header = _Header(path, data)
    if data[:4] != b"GGUF":
        raise header.error(f"starts with {data[:4]!r} instead of b'GGUF'")
    header.pos = 4
    version = header.number("I", 4, "the version")
    if version not in (2, 3):
        raise header.error(f"version {version}; supported: 2 and 3, little endian", 4)
    tensor_count, entry_count = header.number("Q", 8, "the tensor count"), header.number("Q", 8, "the key count")
    # The smallest tensor entry has 33 bytes (name 8 + 1, dimensions 4 + 8, type 4, offset 8), the smallest key 14.
    if tensor_count > MAX_TENSORS or tensor_count * 33 > header.size:
        raise header.error(f"{tensor_count} tensors do not fit", 8)
    if entry_count > MAX_ENTRIES or entry_count * 14 > header.size:
        raise header.error(f"{entry_count} keys do not fit", 16)
    metadata = _read_metadata(header, entry_count)
    tensors = _read_tensors(header, tensor_count, _alignment(header, metadata))
    return GGUFFile(path, data, version, metadata, tensors)


def _read_metadata(header: _Header, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(count):
        start = header.pos
        key = header.string(MAX_KEY, "a key")
        if not key or key in metadata:
            raise header.error(f"the key {key!r} is empty or occurs twice", start)
        metadata[key] = header.value(header.number("I", 4, f"the type of {key!r}"), key)
    return metadata


def _alignment(header: _Header, metadata: dict[str, object]) -> int:
    value = metadata.get("general.alignment", 32)
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_ALIGNMENT
    if not isinstance(value, int) or not valid or value & (value - 1):
        raise header.error(f"general.alignment={value!r} must be a power of two up to {MAX_ALIGNMENT}")
    return value


def _read_tensors(header: _Header, count: int, alignment: int) -> dict[str, TensorInfo]:
    entries: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
    for _ in range(count):
        start = header.pos
        name = header.string(MAX_NAME, "a tensor's name")
        if not name or name in entries:
            raise header.error(f"the tensor name {name!r} is empty or occurs twice", start)
        entries[name] = (*_read_entry(header, name), start)
    base = -(-header.pos // alignment) * alignment
    tensors = {}
    for name, (shape, type_id, offset, start) in entries.items():
        type_name, block, size = TENSOR_TYPES[type_id]
        nbytes = math.prod(shape) // block * size
        if offset % alignment:
            raise header.error(f"tensor {name!r} has offset {offset}, not a multiple of {alignment}", start)
        if base + offset + nbytes > header.size:
            raise header.error(f"tensor {name!r} needs {nbytes} bytes at {base + offset}, beyond the end", start)
        tensors[name] = TensorInfo(name, shape, type_name, base + offset, nbytes)
    end, before = 0, ""
    for info in sorted(tensors.values(), key=lambda t: t.offset):
        if info.offset < end:
            raise header.error(f"tensors {before!r} and {info.name!r} overlap", info.offset)
        end, before = info.offset + info.nbytes, info.name
    return tensors


def _read_entry(header: _Header, name: str) -> tuple[tuple[int, ...], int, int]:
    """The shape (numpy's order), type id and relative offset of one tensor."""
    start = header.pos
    rank = header.number("I", 4, f"the rank of {name!r}")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise header.error(f"tensor {name!r} has {rank} dimensions; 1 to {MAX_DIMENSIONS} are accepted", start)
    dims = [header.number("Q", 8, f"a dimension of {name!r}") for _ in range(rank)]
    if min(dims) < 1 or math.prod(dims) > header.size * 4:  # no type packs more than 4 elements into a byte
        raise header.error(f"tensor {name!r} of dimensions {dims} does not fit into the file", start)
    type_id = header.number("I", 4, f"the type of {name!r}")
    if type_id not in TENSOR_TYPES:
        known = ", ".join(t[0] for t in TENSOR_TYPES.values())
        raise ModelError(
            f"{header.path}: tensor {name!r} has the unsupported type {type_id} (at byte {header.pos - 4}); "
            f"supported: {known}"
        )
    if dims[0] % TENSOR_TYPES[type_id][1]:
        block = TENSOR_TYPES[type_id][1]
        raise header.error(f"tensor {name!r} has rows of {dims[0]}, not a multiple of its block of {block}", start)
    return tuple(reversed(dims)), type_id, header.number("Q", 8, f"the offset of {name!r}")
