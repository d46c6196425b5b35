"""The index tensors of one batch for the CPU's attention.

In: a `Batch`. Out: a `CpuPlan`: which rows of the cache each query reads, in blocks of `BLOCK` positions counted from
position 0 of its sequence, so that a query's sums are formed in the same order however its sequence was cut into
batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ramet.kernels.ops import Angles, Layout
from ramet.runtime.batch import Batch

I64 = NDArray[np.int64]

TILE = 4  # matrix products have a multiple of this many rows (see dense.py)
BLOCK = 128  # positions of one KV block
SHORT = 8  # segments of up to this many new tokens are computed together
LONG = 256  # at most this many new tokens of a longer segment at a time
SCORES = 1 << 24  # at most this many float32 scores at a time for a longer segment


@dataclass(frozen=True, slots=True)
class ShortGroup:
    """Segments with the same number `queries` of new tokens, those with most blocks first, as (segment, block) items:
    the j-th block of every segment that has one, for j = 0, 1, ... Round j is the items `rounds[j]`..`rounds[j + 1]`,
    and its segments are the first ones of the group.

    rows `[S * queries] int64` or None when they are all new tokens in order; item `[W] int64` or None when every
    segment has one block; read `[W * kv_heads * BLOCK] int64`: rows of a layer's `[kv_heads * slots, dim]` keys; mask
    `[W, 1, 1 or M, BLOCK] float32`, 0 or -inf.
    """

    queries: int
    segments: int
    rows: torch.Tensor | None
    item: torch.Tensor | None
    rounds: tuple[int, ...]
    read: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class LongTile:
    """New tokens first..last-1 of one segment. `blocks`: for each KV block the rows to read `[kv_heads * BLOCK] int64`
    and a mask `[M, BLOCK] float32` where some query may not see all of it."""

    first: int
    last: int
    blocks: tuple[tuple[torch.Tensor, torch.Tensor | None], ...]


@dataclass(frozen=True, slots=True)
class Work:
    """The attention work of one window."""

    groups: tuple[ShortGroup, ...]
    tiles: tuple[LongTile, ...]


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """`store` `[2 * kv_heads * T] int64`: rows of a layer's `[2 * kv_heads * slots, dim]` cache that the batch writes,
    keys first; `cos`, `sin` `[T', 1, dim] float32`; `work` by window."""

    tokens: int
    padded: int
    store: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    work: dict[int | None, Work]


@dataclass(frozen=True, slots=True)
class _Segments:
    """The batch's segments as int64 arrays: first new token, number of new tokens, KV start and KV length."""

    first: I64
    count: I64
    start: I64
    length: I64
    slots: I64
    heads: I64  # offset of each KV head in the cache's rows
    group: int

    def blocks(self, window: int | None, s: int) -> tuple[int, int]:
        """First block that segment s reads, and the one after its last."""
        length, oldest = int(self.length[s]), int(self.length[s] - self.count[s])
        low = 0 if window is None else max(0, oldest - window + 1)
        return low // BLOCK, -(-length // BLOCK)

    def read(self, segment: I64, block: I64) -> I64:
        """Cache rows `[W, kv_heads, BLOCK]` of items; lanes past the segment's end read its last slot, and are
        masked."""
        lane = np.minimum(block[:, None] * BLOCK + np.arange(BLOCK), self.length[segment][:, None] - 1)
        slots = self.slots[self.start[segment][:, None] + lane]
        rows: I64 = slots[:, None, :] + self.heads[None, :, None]
        return rows

    def mask(self, block: I64, position: I64, window: int | None) -> NDArray[np.float32]:
        """Additive mask `[W, queries, BLOCK]` for queries at `position` `[W, queries]`."""
        lane = (block[:, None] * BLOCK + np.arange(BLOCK))[:, None, :]
        hidden = lane > position[:, :, None]
        if window is not None:
            hidden |= lane <= position[:, :, None] - window
        return np.where(hidden, np.float32(-np.inf), np.float32(0))


def padded(rows: int) -> int:
    """`rows` rounded up to a multiple of `TILE`."""
    return -(-rows // TILE) * TILE


def plan(batch: Batch, layout: Layout, angles: Angles, capacity: int) -> CpuPlan:
    """See `Ops.plan`."""
    heads = np.arange(2 * layout.kv_heads, dtype=np.int64) * capacity
    store = (heads[:, None] + batch.slots.astype(np.int64)).reshape(-1)
    positions = np.zeros(padded(len(batch)), np.int64)
    positions[: len(batch)] = batch.positions
    at = torch.from_numpy(positions)
    cos, sin = angles.cos.index_select(0, at), angles.sin.index_select(0, at)
    cos, sin = torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)
    qo, kv = batch.qo_indptr.astype(np.int64), batch.kv_indptr.astype(np.int64)
    group = layout.heads // layout.kv_heads
    slots, heads = batch.kv_indices.astype(np.int64), heads[: layout.kv_heads]
    segments = _Segments(qo[:-1], np.diff(qo), kv[:-1], np.diff(kv), slots, heads, group)
    work = {window: _work(segments, len(batch), layout, window) for window in layout.windows}
    return CpuPlan(len(batch), len(positions), torch.from_numpy(store), cos, sin, work)


def _work(segments: _Segments, tokens: int, layout: Layout, window: int | None) -> Work:
    groups = []
    for queries in np.unique(segments.count[(segments.count > 0) & (segments.count <= SHORT)]).tolist():
        groups.append(_short(segments, np.flatnonzero(segments.count == queries), queries, tokens, window))
    tiles: list[LongTile] = []
    for s in np.flatnonzero(segments.count > SHORT).tolist():
        most = max(16, SCORES // (layout.heads * int(segments.length[s])))
        step = min(LONG, most)
        for begin in range(0, int(segments.count[s]), step):
            tiles.append(_long(segments, s, begin, min(begin + step, int(segments.count[s])), window))
    return Work(tuple(groups), tuple(tiles))


def _short(segments: _Segments, chosen: I64, queries: int, tokens: int, window: int | None) -> ShortGroup:
    bounds = np.array([segments.blocks(window, s) for s in chosen.tolist()], np.int64).reshape(-1, 2)
    counts = bounds[:, 1] - bounds[:, 0]
    order = np.argsort(-counts, kind="stable")
    chosen, low, counts = chosen[order], bounds[order, 0], counts[order]
    sizes = [int(np.count_nonzero(counts > j)) for j in range(int(counts[0]))]
    item = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
    block = low[item] + np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    rows = (segments.first[chosen][:, None] + np.arange(queries)).reshape(-1)
    # a KV head's rows are ordered by new token, then by query head of its group; padding rows see what the last sees
    height = 1 if queries == 1 else padded(queries * segments.group)
    row = np.minimum(np.arange(height) // segments.group, queries - 1)
    position = (segments.length[chosen] - queries)[item][:, None] + row
    mask = segments.mask(block, position, window)[:, None]
    return ShortGroup(
        queries,
        len(chosen),
        None if np.array_equal(rows, np.arange(tokens)) else torch.from_numpy(rows),
        None if len(sizes) == 1 else torch.from_numpy(item),
        (0, *np.cumsum(sizes).tolist()),
        torch.from_numpy(segments.read(chosen[item], block).reshape(-1)),
        torch.from_numpy(mask),
    )


def _long(segments: _Segments, s: int, begin: int, end: int, window: int | None) -> LongTile:
    """New tokens begin..end-1 of segment s; blocks that none of them sees are left out."""
    oldest = int(segments.length[s] - segments.count[s])
    first, last = oldest + begin, oldest + end - 1
    low = 0 if window is None else max(0, first - window + 1)
    row = np.minimum(np.arange(padded((end - begin) * segments.group)) // segments.group, end - begin - 1)
    blocks = []
    for block in range(low // BLOCK, last // BLOCK + 1):
        which = np.array([block], np.int64)
        read = torch.from_numpy(segments.read(np.array([s], np.int64), which).reshape(-1))
        whole = (block + 1) * BLOCK - 1 <= first and (window is None or block * BLOCK > last - window)
        mask = None if whole else torch.from_numpy(segments.mask(which, first + row[None], window)[0])
        blocks.append((read, mask))
    base = int(segments.first[s])
    return LongTile(base + begin, base + end, tuple(blocks))
