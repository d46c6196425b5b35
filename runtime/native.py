"""Batches to tokens by the native kernels: numpy and one C call per forward, no torch.

In: `Batch`es in launch order. Out: `Samples`. Owns the KV pool, and the table of last sampled tokens from which the
next batch is fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels import groups
from ramet.kernels.cpu import library
from ramet.kernels.cpu.draw import draw
from ramet.kernels.cpu.library import Library, Pool
from ramet.kernels.cpu.ragged import Packer, Ragged
from ramet.runtime import packed_file
from ramet.runtime.batch import F32, I32, Batch, Flight, Masks, Samples, wanted
from ramet.runtime.config import Config
from ramet.runtime.kvpool import KvPool
from ramet.runtime.models import rope
from ramet.runtime.models.fetch import cache_directory
from ramet.runtime.models.hub import ModelSource, header_of
from ramet.runtime.models.spec import Spec
from ramet.runtime.models.stored import stored
from ramet.runtime.packed import DTYPES, Packed, layout, pack
from ramet.runtime.sizing import (
    check_room,
    checked_context,
    cores,
    default_capacity,
    free_memory,
    kv_bytes_per_token,
)

_KV = np.dtype(np.uint16)  # bfloat16, whatever the weights are
_SHARED = 64  # new tokens of the longest segment whose prefix is read together with its siblings'
# Block reads (64 positions of a layer and KV head) that grouping must save for each thread: threads share the reads,
# and what grouping costs is planning, by one of them, once a batch. Measured by `benchmarks/cpu.py --only grouped`, on
# whole forwards of SmolLM2-135M in int4 and bfloat16 on Zen 4: up to 4 lose 1 to 7 %, from 6 on none loses 2 %.
PAYS = 6
_ALONE: tuple[I32, ...] = (np.zeros(1, np.int32), *(np.zeros(0, np.int32) for _ in range(3)))  # no groups
_STORED = {"Q4_0": "int4", "Q4_1": "int4", "Q4_K": "int4", "Q8_0": "int8"}
_FEW = 4  # draws up to which a loop is faster than operations of numpy
_KEPT = 64 << 20  # bytes of logits that are kept for later batches; larger ones are rare


@dataclass(slots=True)
class NativeFlight:
    """A batch in the air: `logits` `[U, V]` of the rows that are drawn from or scored, at the beginning of `room`
    `[>= U, V]`, and later what was drawn. `at` and `target_at` map draws and targets to rows of `logits`."""

    batch: Batch
    room: F32 | None
    count: int
    at: I32
    target_at: I32
    drawn: Samples | None = None

    @property
    def logits(self) -> F32 | None:
        """None once they have been drawn from, or when there are none."""
        return None if self.room is None else self.room[: self.count]


class NativeRunner:
    """A `Runner` on the CPU. `capacity` KV slots, `rows` rows of the token table, `context` tokens of the longest
    sequence; `dtype_name` is that of the weights, KV is bfloat16.

    `pays`: block reads that reading shared prefixes once must save for it to be done, None: never; the results are
    the same bits. Computes on `pool`, which it closes with itself. Raises `EngineError` for sizes that make no sense,
    `ModelError` for a model that the kernels do not have, or when there is no memory for the KV pool.
    """

    def __init__(self, weights: Packed, pool: Pool, *, capacity: int, rows: int, context: int) -> None:
        spec = weights.spec
        for field, value in (("capacity", capacity), ("rows", rows), ("context", context)):
            if value < 1:
                raise EngineError(f"{field}={value}: must be at least 1")
        if context > spec.context:
            raise EngineError(f"context={context}: the model {spec.name!r} has {spec.context}; ask for less")
        self.capacity, self.rows, self.context, self.vocab = capacity, rows, context, spec.vocab
        self.threads, self.dtype_name = pool.threads, weights.dtype
        self.kernels = f"native ({pool.level})"
        self.pays: int | None = PAYS * pool.threads
        self._pool, self._weights = pool, weights
        self._kv = KvPool(capacity * kv_bytes_per_token(spec, _KV))
        self._cache = library.Cache(self._kv.address, capacity)
        self._last = np.zeros(rows, np.int32)
        self._angles = rope.tables(spec.rope, spec.head_dim, context)
        self._model = _structure(weights, *self._angles)
        self._packer = Packer()
        self._asked: tuple[I32, tuple[I32, I32, I32]] | None = (
            None  # the last draws' rows, and what is `wanted` of them
        )
        self._spare: list[F32] = []  # logits that no flight needs any more: fresh memory costs a page fault per 4 KiB
        pool.check(self._model, self._cache)

    def forward(self, batch: Batch) -> NativeFlight:
        """Compute the batch's tokens; logits only for the rows that are drawn from or scored."""
        rows, at, target_at = self._wanted(batch)
        if len(batch) == 0:
            return NativeFlight(batch, None, 0, at, target_at)
        tokens = batch.tokens
        if len(batch.feed) == len(tokens):
            tokens = self._last.take(batch.feed_rows)
        elif len(batch.feed):
            tokens = tokens.copy()
            tokens[batch.feed] = self._last[batch.feed_rows]
        room = self._room_for(len(rows))
        self._pool.forward(self._model, self._cache, self._packed(batch, tokens, rows), room)
        return NativeFlight(batch, room if len(rows) else None, len(rows), at, target_at)

    def _wanted(self, batch: Batch) -> tuple[I32, I32, I32]:
        """As `wanted`; what it was for the last draws where these are the same, as in steady decoding."""
        rows = batch.draws.rows
        if len(batch.targets):
            return wanted(batch)
        if self._asked is None or self._asked[0] is not rows:
            self._asked = (rows, wanted(batch))
        return self._asked[1]

    def sample(self, flight: Flight, masks: Masks) -> None:
        """Draw the batch's tokens and write them to the token table."""
        assert isinstance(flight, NativeFlight), "a runner samples its own flights"
        if flight.room is None:
            return
        draws, targets = flight.batch.draws, flight.batch.targets
        flight.drawn = draw(flight.room, draws, flight.at, targets, flight.target_at, masks, self._pool)
        # a draw that failed (-1) must not break the next batch, which is launched before the failure is read
        if len(draws) > _FEW:
            self._last[draws.into] = np.maximum(flight.drawn.tokens, 0)
        else:
            for row, token in zip(draws.into.tolist(), flight.drawn.tokens.tolist(), strict=True):
                self._last[row] = max(token, 0)
        self._keep(flight.room)
        flight.room = None

    def read(self, flight: Flight) -> Samples:
        """The results of a flight."""
        assert isinstance(flight, NativeFlight), "a runner reads its own flights"
        drawn, flight.drawn = flight.drawn, None
        return Samples() if drawn is None else drawn

    def close(self) -> None:
        """End the threads; nothing is computed after this."""
        self._pool.close()

    def _packed(self, batch: Batch, tokens: I32, rows: I32) -> Ragged:
        """The batch as the kernels take it."""
        flat = (tokens, batch.positions, batch.slots, batch.qo_indptr, batch.kv_indptr, batch.kv_indices, rows)
        shared = _shared(batch, self.pays)
        grouped = _arrays(shared) if shared else _ALONE
        return self._packer.pack(len(tokens), batch.segments, len(rows), len(shared), (*flat, *grouped))

    def _room_for(self, rows: int) -> F32:
        """Memory for logits `[>= rows, V]`."""
        spare = self._spare.pop() if self._spare else np.zeros((0, self.vocab), np.float32)
        if len(spare) < rows:
            spare = np.empty((-(-rows // 8) * 8, self.vocab), np.float32)  # covered: a forward writes all of its rows
        return spare

    def _keep(self, room: F32) -> None:
        if room.nbytes <= _KEPT:
            self._spare.append(room)


def _structure(weights: Packed, cos: F32, sin: F32) -> library.Model:
    """What the kernels know of a model. The arrays must live as long as it is used."""
    spec = weights.spec
    layers = (library.Layer * spec.layers)()
    for number, layer in enumerate(layers):
        prefix = f"layers.{number}."
        for name in ("qkv", "o", "gate_up", "down"):
            setattr(layer, name, _weight(weights, prefix + name))
        for name in ("norm1", "norm2", "q_norm", "k_norm"):
            setattr(layer, name, weights.address(prefix + name) or None)
        layer.window = spec.window if spec.window is not None and spec.windowed[number] else 0
    embedding = weights.layout.embedding
    return library.Model(
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate=spec.intermediate,
        vocab=spec.vocab,
        context=len(cos),
        eps=spec.eps,
        scale=spec.head_dim**-0.5,
        layer=layers,
        head=_weight(weights, "head"),
        norm=weights.address("norm"),
        embedding=None if embedding is None else weights.memory.address + embedding,
        cos=cos.ctypes.data,
        sin=sin.ctypes.data,
    )


def _weight(weights: Packed, name: str) -> library.Weight:
    at = weights.layout.matrices[name]
    return library.Weight(at.kind, at.n, at.k, weights.address(name), weights.address(f"{name}_bias") or None)


def _shared(batch: Batch, pays: int | None) -> tuple[groups.Group, ...]:
    """Groups of segments whose prefix is read once."""
    if batch.segments < 2 or pays is None:
        return ()
    return groups.find(batch, block=library.BLOCK, most=_SHARED, pays=pays)


def _arrays(shared: tuple[groups.Group, ...]) -> tuple[NDArray[Any], ...]:
    """group_indptr, group_segments, group_start and group_stop of `RametBatch`."""
    members = [group.segments for group in shared]
    return (
        np.cumsum([0, *map(len, members)]),
        np.concatenate(members),
        np.array([group.start for group in shared]),
        np.array([group.stop for group in shared]),
    )


def available() -> str:
    """Why the native kernels cannot serve here; empty when they can."""
    try:
        library.load()
    except ModelError as error:
        return str(error)
    return ""


def build(config: Config, spec: Spec, source: ModelSource, *, dtype: str = "") -> NativeRunner:
    """The native runner that `config` asks for. `dtype` (of `packed.DTYPES`) overrides `config.dtype`, whose "auto" is
    `best_dtype`. Raises `EngineError` or `ModelError` before weights are read when they, or the KV pool, cannot fit."""
    config.check_cpu()
    dtype = dtype or (best_dtype(source) if config.dtype == "auto" else config.dtype)
    if dtype not in DTYPES:
        raise EngineError(f"dtype={dtype!r}: the native kernels have {', '.join(DTYPES)}")
    lib = library.load()
    weights, context, memory = layout(lib, spec, dtype).nbytes, checked_context(config, spec), free_memory()
    check_room(spec, _KV, kv_tokens=config.kv_tokens, memory=memory, weights=weights)
    share = config.kv_share
    sized = config.kv_tokens or default_capacity(
        spec, _KV, context=context, memory=memory, share=share, weights=weights
    )
    pool = Pool(lib, config.threads or cores())
    packed = weights_of(lib, pool, spec, source, dtype)
    return NativeRunner(packed, pool, capacity=sized, rows=config.max_running, context=context)


def best_dtype(source: ModelSource) -> str:
    """What the most bytes of a GGUF file's layers are stored in: int4 for 4-bit blocks, which are packed as they are;
    int8 for Q8_0; else bfloat16, which loses nothing that shows (benchmarks/quality.py)."""
    if source.kind != "gguf":
        return "bfloat16"
    bytes_of = dict.fromkeys(DTYPES, 0)
    for info in header_of(source).tensors.values():
        if info.name.startswith("blk."):
            bytes_of[_STORED.get(info.type, "bfloat16")] += info.nbytes
    return max(DTYPES, key=bytes_of.__getitem__)


def weights_of(lib: Library, pool: Pool, spec: Spec, source: ModelSource, dtype: str) -> Packed:
    """The packed weights of a model: from the cache file, or packed now and written there. Random weights are not
    kept. Raises `ModelError`."""
    if source.kind == "random":
        return pack(lib, pool, spec, dtype, stored(source, spec))
    place = layout(lib, spec, dtype)
    file, key = packed_file.cache_file(cache_directory(), source, dtype), packed_file.key(lib, source, spec, dtype)
    memory = packed_file.read(file, key, lib, place.nbytes, pool.threads)
    if memory is not None:
        return Packed(spec, dtype, place, memory, cached=True)
    packed = pack(lib, pool, spec, dtype, stored(source, spec))
    packed_file.write(file, key, packed.memory.view(0, place.nbytes))
    return packed
