"""Random models for the native kernels, and their definition in float64.

In: a `Shape`, a kind of weights, a seed. Out: a `NativeModel` that forwards batches, and a reference that computes a
sequence from the very weights that were packed, so that what is compared is arithmetic alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramet.kernels import groups
from ramet.kernels.cpu import library
from ramet.kernels.cpu.library import BF16, Library, Pool
from ramet.kernels.cpu.ragged import Ragged, ragged
from ramet.runtime.batch import Batch

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """A decoder: `window` 0 is full attention, in every layer but the first."""

    layers: int = 2
    hidden: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 72
    vocab: int = 150
    context: int = 1024
    bias: bool = False
    qk_norm: bool = False
    window: int = 0
    tied: bool = True

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def inner(self) -> int:
        return -(-self.intermediate // 64) * 64


@functools.cache
def lib() -> Library:
    """The library that was built with the package."""
    return library.load()


@functools.cache
def pool(threads: int = 1, level: str | None = None) -> Pool:
    return Pool(lib(), threads, level)


def levels() -> tuple[str, ...]:
    """The levels that this machine runs."""
    return library.LEVELS[: library.LEVELS.index(lib().level) + 1]


def bf16(x: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> F32:
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Matrix:
    """A packed weight of random values; `value` `[n, k]` are the packed ones."""

    def __init__(
        self, kind: int, rows: F32, columns: NDArray[np.int32] | None = None, n: int = 0, bias: F32 | None = None
    ) -> None:
        count, k = rows.shape
        n = n or count
        at = np.arange(count, dtype=np.int32) if columns is None else columns
        self.memory = lib().map(lib().weight_bytes(kind, n, k))
        packed = self.memory.view(0, self.memory.nbytes)
        pool().pack(kind, n, k, packed, "F32", np.ascontiguousarray(rows), at)
        self.value, self.bias = lib().unpack(kind, n, k, packed, at), bias
        self._bias = None if bias is None else np.zeros(n, np.float32)
        if self._bias is not None and bias is not None:
            self._bias[at] = bias
        address = None if self._bias is None else self._bias.ctypes.data
        self.struct = library.Weight(kind, n, k, self.memory.address, address)


class NativeModel:
    """Weights, a KV pool of `capacity` slots, and forwards of batches."""

    def __init__(self, shape: Shape, kind: int = BF16, *, seed: int = 0, capacity: int = 2048, head: int | None = None):
        self.shape, self.capacity = shape, capacity
        self._rng = np.random.default_rng(seed)
        gate, up = (np.arange(shape.intermediate, dtype=np.int32) // 16 * 32 for _ in range(2))
        inside = np.arange(shape.intermediate, dtype=np.int32) % 16
        self._columns = np.concatenate((gate + inside, up + inside + 16))
        self.layers = [self._layer(kind) for _ in range(shape.layers)]
        self.head = Matrix(kind if head is None else head, self._normal(shape.vocab, shape.hidden))
        self.norm = self._scales(shape.hidden)
        self.embedding = None if shape.tied else bf16(self._normal(shape.vocab, shape.hidden))
        angles = np.arange(shape.context)[:, None] * 1e4 ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        planes = shape.layers * 2 * shape.kv_heads
        self.kv = lib().map(planes * capacity * shape.head_dim * 2)
        self.cache = library.Cache(self.kv.address, capacity)
        self.model = self._struct()

    def _normal(self, n: int, k: int) -> F32:
        return (self._rng.standard_normal((n, k)) * k**-0.5).astype(np.float32)

    def _scales(self, n: int) -> F32:
        return (1 + 0.2 * self._rng.standard_normal(n)).astype(np.float32)

    def _layer(self, kind: int) -> dict[str, Matrix | F32 | None]:
        s = self.shape
        mixed = s.heads * s.head_dim

        def bias(n: int) -> F32 | None:
            return (0.3 * self._rng.standard_normal(n)).astype(np.float32) if s.bias else None

        normal, i = self._normal, s.intermediate
        gate_up = Matrix(kind, normal(2 * i, s.hidden), self._columns, 2 * s.inner, bias(2 * i))
        return {
            "qkv": Matrix(kind, normal(s.qkv, s.hidden), bias=bias(s.qkv)),
            "o": Matrix(kind, normal(s.hidden, mixed), bias=bias(s.hidden)),
            "gate_up": gate_up,
            "down": Matrix(kind, normal(s.hidden, i), bias=bias(s.hidden)),
            "norm1": self._scales(s.hidden),
            "norm2": self._scales(s.hidden),
            "q_norm": self._scales(s.head_dim) if s.qk_norm else None,
            "k_norm": self._scales(s.head_dim) if s.qk_norm else None,
        }

    def window(self, layer: int) -> int:
        return self.shape.window if layer else 0

    def _struct(self) -> library.Model:
        s = self.shape
        layers = (library.Layer * s.layers)()
        for n, layer in enumerate(self.layers):
            for name, value in layer.items():
                if isinstance(value, Matrix):
                    setattr(layers[n], name, value.struct)
                else:
                    setattr(layers[n], name, None if value is None else value.ctypes.data)
            layers[n].window = self.window(n)
        sizes = (s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.intermediate, s.vocab, s.context)
        embedding = None if self.embedding is None else self.embedding.ctypes.data
        tables = (self.norm.ctypes.data, embedding, self.cos.ctypes.data, self.sin.ctypes.data)
        return library.Model(*sizes, 1e-5, s.head_dim**-0.5, layers, self.head.struct, *tables)

    def slots(self) -> NDArray[np.uint16]:
        """The KV pool as `[layers, 2, kv_heads, capacity, head_dim]` bits of bfloat16."""
        s = self.shape
        planes = (s.layers, 2, s.kv_heads, self.capacity, s.head_dim)
        return self.kv.view(0, self.kv.nbytes).view(np.uint16).reshape(planes)

    def forward(
        self, batch: Batch, *, rows: Sequence[int] | None = None, by: Pool | None = None, grouped: bool = True
    ) -> F32:
        """Logits `[rows, vocab]` of the new tokens `rows`, all of them when not given."""
        wanted = np.arange(len(batch)) if rows is None else np.array(rows)
        logits = np.full((len(wanted), self.shape.vocab), np.nan, np.float32)
        (by or pool()).forward(self.model, self.cache, ragged_of(batch, wanted, grouped=grouped), logits)
        return logits

    def reference(self, tokens: NDArray[np.int32]) -> F64:
        """Logits `[len(tokens), vocab]` of one sequence in float64."""
        head = self.head.value.astype(np.float64)
        table = head if self.embedding is None else from_bf16(self.embedding).astype(np.float64)
        x = table[tokens]
        for n, layer in enumerate(self.layers):
            x = x + _apply(layer["o"], self._attention(n, _norm(x, layer["norm1"])))
            both = _apply(layer["gate_up"], _norm(x, layer["norm2"]))
            gate, up = both[:, : self.shape.intermediate], both[:, self.shape.intermediate :]
            x = x + _apply(layer["down"], gate / (1 + np.exp(-gate)) * up)
        return _norm(x, self.norm) @ head.T

    def _attention(self, n: int, x: F64) -> F64:
        s, layer = self.shape, self.layers[n]
        count = len(x)
        qkv = _apply(layer["qkv"], x).reshape(count, -1, s.head_dim)
        q, k, v = np.split(qkv, [s.heads, s.heads + s.kv_heads], axis=1)
        if s.qk_norm:
            q, k = _norm(q, layer["q_norm"]), _norm(k, layer["k_norm"])
        q, k = self._rotate(q), self._rotate(k)
        k, v = (np.repeat(part, s.heads // s.kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("thd,uhd->htu", q, k) * s.head_dim**-0.5
        age = np.arange(count)[:, None] - np.arange(count)[None]
        hidden = (age < 0) | (age >= (self.window(n) or count))
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("htu,uhd->thd", weights, v).reshape(count, -1)

    def _rotate(self, x: F64) -> F64:
        half = self.shape.head_dim // 2
        cos, sin = (table[: len(x), None].astype(np.float64) for table in (self.cos, self.sin))
        a, b = x[..., :half], x[..., half:]
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def _apply(matrix: Matrix | F32 | None, x: F64) -> F64:
    assert isinstance(matrix, Matrix)
    y: F64 = x @ matrix.value.astype(np.float64).T
    return y if matrix.bias is None else y + matrix.bias


def _norm(x: F64, weight: Matrix | F32 | None) -> F64:
    assert isinstance(weight, np.ndarray)
    y: F64 = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
    return y


def ragged_of(batch: Batch, rows: NDArray[np.integer], *, grouped: bool = True) -> Ragged:
    """The batch as the library takes it, with the groups of `kernels/groups.py`."""
    shared = groups.find(batch, block=library.BLOCK, most=64) if grouped else ()
    members = [group.segments for group in shared]
    arrays = (
        batch.tokens,
        batch.positions,
        batch.slots,
        batch.qo_indptr,
        batch.kv_indptr,
        batch.kv_indices,
        rows,
        np.cumsum([0, *map(len, members)]),
        np.concatenate([np.zeros(0, np.int64), *members]),
        np.array([group.start for group in shared]),
        np.array([group.stop for group in shared]),
    )
    return ragged(len(batch), batch.segments, len(rows), len(shared), arrays)
