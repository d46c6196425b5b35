"""Work lists of attention: which rows read which run of KV positions, and which partial results each row merges.

In: a `Batch`, its groups, one window. Out: a `Work` of plain numpy arrays, which `plan.py` sends to the device.
Flattened lists balance the load however ragged the batch is (split-KV: Flash-Decoding, Dao et al. 2023; shared spans
read once for stacked rows: Cascade inference, Ye et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramet.frontend.errors import ModelError
from ramet.kernels.groups import I64, Group
from ramet.kernels.ops import Layout
from ramet.runtime.batch import I32, Batch

SPLIT = 512  # spans are cut at multiples of this many positions; in deterministic mode at all of them
ALIGN = 128  # a windowed span starts at a multiple of this; the kernels' BLOCK_N divides it
NARROW_M = 16  # rows (query tokens x heads of a KV group) of a narrow item: the least height of a tensor-core product
WIDE_M = 64  # rows of a wide item

FIRST, COUNT, KV_AT, START, LENGTH, OUT = range(6)  # columns of an item
COLUMNS = 6

# Programs (item x KV head) into which the work of a class is cut when there is enough of it; an H100 has 132
# multiprocessors. Narrow items are bound by bytes and their partials cost 2 % of them (SPLIT slots, 4 heads a group),
# so many short ones even out the end of a launch; stacked ones have partials anyway. Writing and merging the partial of
# a long tile takes as long as multiplying 400 positions, so these are cut only where multiprocessors would be idle.
NARROW_PROGRAMS, LONG_PROGRAMS, STACKED_PROGRAMS = 16 * 132, 132, 4 * 132

# Grouping adds the wide launch to a batch that would need the narrow one alone: about 3 us a layer. The reads that it
# saves are repeated reads, which the second-level cache serves at about 5.5 TB/s: 3 us are worth 16 MiB of them.
PAYS = 16 << 20


_NARROW, _LONG, _STACKED = range(3)  # kinds of tiles: few new tokens; many; rows of a group


@dataclass(frozen=True, slots=True)
class Work:
    """The attention work of one window.

    limit `[T] int32`: the index of every new token in its segment's slots; it sees these and all before.
    rows `[R] int32`: tokens of the batch; entry t < T is token t, the stacked rows of groups follow.
    narrow, wide `[I, 6] int32`: an item is rows[FIRST : FIRST + COUNT] times kv_indices[KV_AT : KV_AT + LENGTH], which
    stand at positions START.. of every sequence of the item. OUT >= 0: row j writes partial number OUT + j; OUT = -1:
    the item is all that its rows see and writes their final values. COUNT x heads of a group <= the class's M.
    merge_ptr `[T + 1]`, merge_at `[M] int32`: token t is the log-sum-exp merge of partials merge_at[merge_ptr[t] :
    merge_ptr[t + 1]], in order of position; none where a direct item wrote it. Partials of positions that the token
    does not see are not listed.
    """

    limit: I32
    rows: I32
    narrow: I32
    wide: I32
    merge_ptr: I32
    merge_at: I32
    partials: int


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Rows [first, first + count) over positions [begin, end), as int64 arrays; `kv` is where position 0 stands in
    kv_indices. `alone`: no other tile computes a part of what these rows see."""

    first: I64
    count: I64
    kv: I64
    begin: I64
    end: I64
    kind: I64
    alone: NDArray[np.bool_]


def most_grouped(layout: Layout) -> int:
    """New tokens up to which a segment takes part in a group: those of a narrow item. Longer ones fill wide items by
    themselves."""
    return max(1, NARROW_M // _per_group(layout))


def paying(
    groups: tuple[Group, ...],
    batch: Batch,
    layout: Layout,
    window: int | None,
    *,
    deterministic: bool,
    pays: int = PAYS,
) -> tuple[Group, ...]:
    """`groups`, or none where they save fewer than `pays` bytes of reads a layer (a 16-bit cache is assumed). In
    deterministic mode, and beside long segments, the wide launch is there anyway and every group pays."""
    count = batch.qo_indptr[1:] - batch.qo_indptr[:-1]
    if not groups or deterministic or int(count.max()) > most_grouped(layout):
        return groups
    members, edges, start, stop = _flat(groups)
    oldest = batch.kv_indptr[1:] - batch.kv_indptr[:-1] - count
    if window is not None:
        start = np.maximum(start, np.minimum.reduceat(oldest[members], edges) - window + 1)
    per = max(1, WIDE_M // _per_group(layout))
    reads = -(-np.add.reduceat(count[members], edges) // per)
    spared = _sizes(members, edges) - reads
    saved = int((np.maximum(stop - start, 0) * spared).sum()) * 4 * layout.kv_heads * layout.head_dim
    return groups if saved >= pays else ()


def build(
    batch: Batch,
    layout: Layout,
    window: int | None,
    *,
    groups: Sequence[Group] = (),
    deterministic: bool = False,
    wide_m: int = WIDE_M,
) -> Work:
    """The work of one window.

    Every visible (token, position) pair is in exactly one item that the token's result is made of. By default a span is
    as long as leaves its kind of tile `NARROW_PROGRAMS`, `LONG_PROGRAMS` or `STACKED_PROGRAMS` programs, at least
    `SPLIT`: so the number of partials is bounded by the device and not by the context. In deterministic mode all items
    are wide and every span ends at the next multiple of `SPLIT`: then a row's partials depend on its own position
    alone, up to leading or trailing positions that it does not see. (The kernels must treat those as no-ops, and merge
    a single partial to the same bits as a direct item gives.) Raises `ModelError` when a KV head has more than `wide_m`
    query heads.
    """
    per_group = _per_group(layout)
    per = wide_m // per_group
    if per == 0:
        raise ModelError(
            f"heads={layout.heads}, kv_heads={layout.kv_heads}: the GPU kernels take up to {wide_m} query heads per KV "
            "head; use device='cpu'"
        )
    limit = _limits(batch)
    rows = np.arange(len(batch), dtype=np.int32)
    covered = np.zeros(batch.segments, np.int64)
    narrow = 0 if deterministic else NARROW_M // per_group
    if groups:
        members, edges, start, stop = _flat(groups)
        np.maximum.at(covered, members, np.repeat(stop, _sizes(members, edges)))
        stacked, edges = _stacked(batch, members, edges)
        kv = batch.kv_indptr[[group.segments[0] for group in groups]].astype(np.int64)
        tiles = _stacked_tiles(limit, stacked, edges, (kv, start, stop), len(batch), window, per)
        tiles = _joined(_segment_tiles(batch, window, covered, narrow, per), tiles)
        rows = np.concatenate((rows, stacked))
    else:
        tiles = _segment_tiles(batch, window, covered, narrow, per)
    items, partials = _cut(tiles, SPLIT if deterministic else _spans(tiles, layout))
    wide = items[:, COLUMNS] != _NARROW
    items = items[:, :COLUMNS]
    ptr, at = _merges(items, rows, limit, window)
    return Work(limit, rows, _longest_first(items[~wide]), _longest_first(items[wide]), ptr, at, partials)


def _flat(groups: Sequence[Group]) -> tuple[I64, I64, I64, I64]:
    """Members of all groups, where each group's begin, and the groups' first and last positions."""
    sizes = np.array([len(group.segments) for group in groups], np.int64)
    start, stop = (np.array([getattr(group, name) for group in groups], np.int64) for name in ("start", "stop"))
    return np.concatenate([group.segments for group in groups]), np.cumsum(sizes) - sizes, start, stop


def _sizes(members: I64 | I32, edges: I64) -> I64:
    sizes = np.empty_like(edges)  # covered by the two lines below
    sizes[:-1] = edges[1:] - edges[:-1]
    sizes[-1] = len(members) - edges[-1]
    return sizes


def _limits(batch: Batch) -> I32:
    """`Work.limit`."""
    qo, kv = batch.qo_indptr, batch.kv_indptr
    limit: I32 = np.arange(len(batch), dtype=np.int32)
    limit += np.repeat(kv[1:] - kv[:-1] - qo[1:], qo[1:] - qo[:-1])
    return limit


def _per_group(layout: Layout) -> int:
    return layout.heads // layout.kv_heads


def _stacked(batch: Batch, members: I64, edges: I64) -> tuple[I32, I64]:
    """The new tokens of `members`, one after the other, and where those of each group begin."""
    first = batch.qo_indptr[members]
    count = batch.qo_indptr[members + 1] - first
    if int(count.max()) == 1:
        return first, edges
    before = np.cumsum(count) - count
    tokens: I32 = np.repeat(first - before, count).astype(np.int32)
    tokens += np.arange(len(tokens), dtype=np.int32)
    return tokens, before[edges]


def _low(oldest: I64, window: int | None) -> I64:
    """Where a span begins for rows whose oldest stands at `oldest`."""
    return np.zeros_like(oldest) if window is None else np.maximum(oldest - window + 1, 0) // ALIGN * ALIGN


def _segment_tiles(batch: Batch, window: int | None, covered: I64, narrow: int, per: int) -> _Tiles:
    """New tokens of every segment in tiles of `per`; a tile of up to `narrow` tokens is narrow."""
    qo, kv = batch.qo_indptr.astype(np.int64), batch.kv_indptr.astype(np.int64)
    total, first, start = qo[1:] - qo[:-1], qo[:-1], kv[:-1]
    oldest = kv[1:] - start - total
    tiles = np.where(total <= narrow, np.minimum(total, 1), -(-total // per))
    if len(tiles) and tiles.min() == tiles.max() == 1:
        count = total
    else:
        segment, number = _expanded(tiles)
        skip = number * per
        count = np.minimum(total[segment] - skip, per)
        first, start, covered, oldest = first[segment] + skip, start[segment], covered[segment], oldest[segment] + skip
    low = _low(oldest, window)
    kind = np.where(count <= narrow, _NARROW, _LONG)
    return _Tiles(first, count, start, np.maximum(low, covered), oldest + count, kind, covered <= low)


def _stacked_tiles(
    limit: I32, stacked: I32, edges: I64, group: tuple[I64, I64, I64], base: int, window: int | None, per: int
) -> _Tiles:
    """The rows of each group in tiles of `per`, over what the group (where its first member's slots begin, its first
    and last position) shares and some row of the tile sees."""
    total = _sizes(stacked, edges)
    which, number = _expanded(-(-total // per))
    skip = number * per
    first, count = edges[which] + skip, np.minimum(total[which] - skip, per)
    kv, begin, end = (of[which] for of in group)
    if window is not None:
        begin = np.maximum(begin, _low(np.minimum.reduceat(limit[stacked], first).astype(np.int64), window))
    kind, alone = np.full(len(first), _STACKED), np.zeros(len(first), bool)
    tiles = _Tiles(base + first, count, kv, begin, end, kind, alone)
    seen = begin < end
    return tiles if seen.all() else _Tiles(*(getattr(tiles, name)[seen] for name in _Tiles.__slots__))


def _expanded(counts: I64) -> tuple[I64, I64]:
    """For each of counts[i] pieces of each i: i, and the piece's number."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)


def _joined(one: _Tiles, other: _Tiles) -> _Tiles:
    return _Tiles(*(np.concatenate((getattr(one, name), getattr(other, name))) for name in _Tiles.__slots__))


def _spans(tiles: _Tiles, layout: Layout) -> I64:
    """Positions of each tile's spans: its kind's total over the kind's programs, in multiples of `SPLIT`."""
    total = np.bincount(tiles.kind, tiles.end - tiles.begin, minlength=3).tolist()
    programs = (NARROW_PROGRAMS, LONG_PROGRAMS, STACKED_PROGRAMS)
    spans = [
        SPLIT * max(1, -(-int(length) * layout.kv_heads // (most * SPLIT)))
        for length, most in zip(total, programs, strict=True)
    ]
    return np.array(spans, np.int64)[tiles.kind]


def _cut(tiles: _Tiles, span: I64 | int) -> tuple[I32, int]:
    """Items `[I, 7]` (the last column is the kind), cut at multiples of their tile's span; how many partials they
    write."""
    head = tiles.begin // span
    pieces = (tiles.end - 1) // span - head + 1
    tile, number = _expanded(pieces)
    wide = span if isinstance(span, int) else span[tile]
    base, count = tiles.begin[tile], tiles.count[tile]
    at = (head[tile] + number) * wide
    begin, end = np.maximum(at, base), np.minimum(at + wide, tiles.end[tile])
    writes = np.where((tiles.alone & (pieces == 1))[tile], 0, count)
    after = np.cumsum(writes)
    items = np.empty((len(tile), COLUMNS + 1), np.int32)  # every column is written below
    items[:, FIRST], items[:, COUNT], items[:, KV_AT] = tiles.first[tile], count, tiles.kv[tile] + begin
    items[:, START], items[:, LENGTH] = begin, end - begin
    items[:, OUT] = np.where(writes == 0, -1, after - writes)
    items[:, COLUMNS] = tiles.kind[tile]
    return items, int(after[-1]) if len(after) else 0


def _merges(items: I32, rows: I32, limit: I32, window: int | None) -> tuple[I32, I32]:
    """`merge_ptr`, `merge_at` of `Work`."""
    pointer = np.zeros(len(limit) + 1, np.int32)
    writing = items[items[:, OUT] >= 0]
    if not len(writing):
        return pointer, np.zeros(0, np.int32)
    single = int(writing[:, COUNT].max()) == 1
    ordered = single and len(rows) == len(limit)  # one row to an item and no groups: items come token by token
    if not ordered:
        writing = writing[np.argsort(writing[:, START], kind="stable")]
    first, out, start = writing[:, FIRST], writing[:, OUT], writing[:, START]
    end = start + writing[:, LENGTH]
    if single:
        token, partial = rows[first], out
    else:
        item, row = _expanded(writing[:, COUNT].astype(np.int64))
        token, partial, start, end = rows[first[item] + row], out[item] + row, start[item], end[item]
    seen = start <= limit[token]
    if window is not None:
        seen &= end > limit[token] - window + 1
    if not seen.all():
        token, partial = token[seen], partial[seen]
    np.cumsum(np.bincount(token, minlength=len(limit)), out=pointer[1:])
    if not ordered:
        # stable, and entries are in order of position: so each token's partials are; 16-bit keys are sorted by radix
        key = token.astype(np.uint16) if len(limit) <= 1 << 16 else token
        partial = partial[np.argsort(key, kind="stable")]
    return pointer, partial.astype(np.int32, copy=False)


def _longest_first(items: I32) -> I32:
    """Programs take items in this order: the long ones must not be left for the end (Graham 1969)."""
    length = items[:, LENGTH]
    if len(items) < 2 or length.min() == length.max():
        return items
    return items[np.argsort(-length, kind="stable")]
