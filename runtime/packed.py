"""A model's weights as the native kernels want them: one block of memory, packed once.

In: a model's `Spec`, a dtype, its weights as they are stored. Out: `Packed`, whose memory lies on huge pages where the
system grants them; packed a few MB at a time, or read from the cache file of an earlier start (packed_file.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ramet.frontend.errors import ModelError
from ramet.kernels.cpu import library
from ramet.kernels.cpu.library import Library, Memory, Pool
from ramet.runtime.models.spec import Spec
from ramet.runtime.models.stored import Chunk, Stored, values

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

DTYPES = ("bfloat16", "int8", "int4")
_LAYERS = {"bfloat16": library.BF16, "int8": library.INT8, "int4": library.INT4}
# the head decides between near equals, and its rows are the embedding of a tied model: never in 4 bits
_HEAD = {"bfloat16": library.BF16, "int8": library.INT8, "int4": library.INT8}
_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed weight: `nbytes` at `offset` of the block."""

    kind: int
    n: int
    k: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Vector:
    """`count` float32 numbers at `offset`."""

    count: int
    offset: int


@dataclass(slots=True)
class Layout:
    """Where everything is in the block of `nbytes`, a function of spec and dtype.

    Names: `layers.N.qkv`, `o`, `gate_up`, `down` (matrices; with `_bias`, vectors), `norm1`, `norm2`, `q_norm`,
    `k_norm`; `head`, `norm`. `embedding` is the offset of the rows `[vocab, hidden]` bfloat16 of an untied model, None
    where the head's columns serve."""

    matrices: dict[str, Matrix] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)
    embedding: int | None = None
    nbytes: int = 0

    def matrix(self, lib: Library, name: str, kind: int, n: int, k: int) -> None:
        """Append a matrix."""
        nbytes = lib.weight_bytes(kind, n, k)
        if nbytes <= 0:
            raise ModelError(f"{name}: the native kernels have no weight of {n} x {k}; use dtype='float32'")
        self.matrices[name] = Matrix(kind, n, k, self.take(nbytes), nbytes)

    def vector(self, name: str, count: int) -> None:
        """Append a vector."""
        self.vectors[name] = Vector(count, self.take(4 * count))

    def take(self, nbytes: int) -> int:
        """The offset of `nbytes` more."""
        offset = self.nbytes
        self.nbytes = -(-(offset + nbytes) // _ALIGN) * _ALIGN
        return offset


def layout(lib: Library, spec: Spec, dtype: str) -> Layout:
    """The block of a model. Raises `ModelError` for a dtype or sizes that the kernels do not have."""
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r}: the native kernels have {', '.join(DTYPES)}")
    made, kind = Layout(), _LAYERS[dtype]
    e, d, wide = spec.hidden, spec.head_dim, 2 * _padded(spec.intermediate)
    shapes = {
        "qkv": ((spec.heads + 2 * spec.kv_heads) * d, e, spec.qkv_bias),
        "o": (e, spec.heads * d, spec.output_bias),
        "gate_up": (wide, e, spec.mlp_bias),
        "down": (e, spec.intermediate, spec.mlp_bias),
    }
    for layer in range(spec.layers):
        prefix = f"layers.{layer}."
        for norm, count in {"norm1": e, "norm2": e, **({"q_norm": d, "k_norm": d} if spec.qk_norm else {})}.items():
            made.vector(prefix + norm, count)
        for name, (n, k, biased) in shapes.items():
            made.matrix(lib, prefix + name, kind, n, k)
            if biased:
                made.vector(f"{prefix}{name}_bias", n)
    made.vector("norm", e)
    made.matrix(lib, "head", _HEAD[dtype], spec.vocab, e)
    if not spec.tied:
        made.embedding = made.take(2 * spec.vocab * e)
    return made


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights in `memory`, laid out as `layout` says. `cached`: they were read from the cache file."""

    spec: Spec
    dtype: str
    layout: Layout
    memory: Memory
    cached: bool = False

    def address(self, name: str) -> int:
        """Where the matrix or vector `name` begins; 0 (null) when the model has none of that name."""
        place = self.layout.matrices.get(name) or self.layout.vectors.get(name)
        return self.memory.address + place.offset if place else 0


def pack(lib: Library, pool: Pool, spec: Spec, dtype: str, weights: Stored) -> Packed:
    """Pack every chunk of `weights`. Peak memory: the block and one chunk, in float32 where its type has no kernels."""
    made = layout(lib, spec, dtype)
    memory = lib.map(made.nbytes)
    columns = {name: _columns(spec, name, weights.interleaved) for name in ("q", "k", "v", "gate", "up")}
    packed = Packed(spec, dtype, made, memory)
    for chunk in weights.chunks:
        _place(pool, packed, chunk, columns)
    return packed


def _padded(intermediate: int) -> int:
    """Rows of gate, and of up, in their common matrix."""
    return -(-intermediate // 64) * 64


def _columns(spec: Spec, part: str, interleaved: bool) -> I32:
    """The column of `qkv` or `gate_up` for each row of a tensor as it is stored."""
    d, q, kv = spec.head_dim, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    if part in ("gate", "up"):
        rows = np.arange(spec.intermediate, dtype=np.int32)
        return rows // 16 * 32 + rows % 16 + (16 if part == "up" else 0)
    first, count = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}[part]
    rows = np.arange(count, dtype=np.int32)
    if interleaved and part != "v":  # row 2i + j of a head is dimension i + j * d / 2
        inside = rows % d
        rows = rows - inside + inside // 2 + inside % 2 * (d // 2)
    return rows + np.int32(first)


_WHERE = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "gate_up", "up": "gate_up", "down": "down"}
_NORMS = {"attn_norm": "norm1", "mlp_norm": "norm2", "q_norm": "q_norm", "k_norm": "k_norm"}


def _place(pool: Pool, packed: Packed, chunk: Chunk, columns: dict[str, I32]) -> None:
    """Write a chunk where it belongs."""
    prefix, dot, part = chunk.name.rpartition(".")
    prefix += dot
    if chunk.name == "norm" or part in _NORMS:
        _vector(packed, prefix + _NORMS.get(part, part))[:] = values(chunk)[0]
    elif part.endswith("_bias"):
        part = part.removesuffix("_bias")
        into = _vector(packed, f"{prefix}{_WHERE[part]}_bias")
        into[columns.get(part, slice(None))] = values(chunk)[0]
    elif chunk.name == "embed" and packed.layout.embedding is not None:
        _embed(packed, packed.layout.embedding, chunk)
    else:
        name = "head" if part in ("embed", "head") else prefix + _WHERE[part]
        rows = slice(chunk.first, chunk.first + len(chunk.raw))
        known = columns.get(part)
        into_columns = np.arange(rows.start, rows.stop, dtype=np.int32) if known is None else known[rows]
        at = packed.layout.matrices[name]
        pool.pack(at.kind, at.n, at.k, packed.memory.view(at.offset, at.nbytes), chunk.type, chunk.raw, into_columns)


def _vector(packed: Packed, name: str) -> F32:
    place = packed.layout.vectors[name]
    return packed.memory.view(place.offset, 4 * place.count).view(np.float32)


def _embed(packed: Packed, offset: int, chunk: Chunk) -> None:
    """Rows of the embedding, in bfloat16, rounded to nearest even."""
    width = 2 * packed.spec.hidden
    into = packed.memory.view(offset + chunk.first * width, len(chunk.raw) * width).view(np.uint16)
    if chunk.type == "BF16":
        into[:] = chunk.raw.view("<u2").ravel()
        return
    bits = np.ascontiguousarray(values(chunk)).view(np.uint32).ravel()
    into[:] = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> np.uint32(16)
