"""A batch as one int32 array: packed on the host in numpy, copied once, read on the device through views.

In: a `Batch`. Out: a `Packed`, and from its copy on the device a `TritonPlan`. Where a section lies depends on the
`Room` alone, so that one CUDA graph serves every batch that fits its room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ramet.kernels import groups
from ramet.kernels.ops import Angles, Layout
from ramet.kernels.triton.work import (
    COLUMNS,
    LONG_PROGRAMS,
    NARROW_M,
    NARROW_PROGRAMS,
    PAYS,
    SPLIT,
    STACKED_PROGRAMS,
    WIDE_M,
    Work,
    build,
    most_grouped,
    paying,
)
from ramet.runtime.batch import I32, Batch

TALL_M = 128  # rows of a wide item where a segment is long enough to fill several of them
_ALIGN = 32  # sections begin at multiples of this many words (128 bytes)
_TOKEN_FIELDS = 5  # ids, feed, positions, slots, limit
_COUNTS = 4  # words of the header per window: narrow items, wide items, partials, merged partials
_BUCKET_KV = 4 << 20  # slot ids of a bucket: 16 MiB
_BUCKET_PARTIALS = 256 << 20  # bytes of a bucket's partials


@dataclass(frozen=True, slots=True)
class Room:
    """Capacities of a packed batch: new tokens, KV slot ids; and for each window entries of `Work.rows`, narrow and
    wide items, partials (and as many merge entries)."""

    tokens: int
    kv: int
    rows: int
    narrow: int
    wide: int
    partials: int


class Launches(NamedTuple):
    """Which kernels one window of a batch needs; a launch with an empty list is right, only a waste."""

    narrow: bool = True
    wide: bool = True
    merge: bool = True


@dataclass(frozen=True, slots=True)
class Packed:
    """`parts`, int32: one behind the other they are n <= `word_count(room, layout)` words; those behind n need not be
    copied. The slot ids are the batch's own array. `launches` (one per window of the layout, hashable: a part of a
    graph's key) and `wide_m` are what the host must know to launch."""

    parts: tuple[I32, I32]
    room: Room
    launches: tuple[Launches, ...]
    wide_m: int

    @property
    def words(self) -> I32:
        """The parts as one array `[n]`."""
        return np.concatenate(self.parts)


@dataclass(frozen=True, slots=True)
class PartialBuffers:
    """Partial results, written before they are read: `acc` `[partials, H, D]`, `lse` `[partials, H]`, float32."""

    acc: torch.Tensor
    lse: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """A `Work` on the device; lists have their room's length, `counts` `[2] int32` says how many narrow and wide items
    there are. The flags are those of `Launches`."""

    item_rows: torch.Tensor
    narrow: torch.Tensor
    wide: torch.Tensor
    counts: torch.Tensor
    merge_ptr: torch.Tensor
    merge_at: torch.Tensor
    wide_m: int
    has_narrow: bool
    has_wide: bool
    has_merge: bool


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """See `ops.Plan`; P = `padded`. ids, feed, positions, slots, limit `[P] int32`: feed[i] is the row of the token
    table whose last token is token i, or -1; limit[i] the last index of its segment's slots that token i sees. Padding
    has id 0, feed -1, position 0, the dump slot (number `capacity`) and limit -1. cos, sin: the whole angle tables. kv
    `[N] int32`: the segments' slots. `tokens` is P too: the host does not know how many a captured graph will get."""

    tokens: int
    padded: int
    ids: torch.Tensor
    feed: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    limit: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    kv: torch.Tensor
    work: dict[int | None, DeviceWork]
    partials: PartialBuffers


@dataclass(frozen=True, slots=True)
class _Map:
    """Where the sections of a room begin, in words; per window: rows, narrow, wide, merge_ptr, merge_at. The KV slot
    ids are the last section, so that a copy ends where the batch ends."""

    tokens: tuple[int, ...]
    windows: tuple[tuple[int, int, int, int, int], ...]
    kv: int


def _map(room: Room, windows: int) -> _Map:
    each = room.rows, COLUMNS * room.narrow, COLUMNS * room.wide, room.tokens + 1, room.partials
    at, starts = 0, []
    for size in (_COUNTS * windows, *[room.tokens] * _TOKEN_FIELDS, *each * windows):
        starts.append(at)
        at += -(-size // _ALIGN) * _ALIGN
    first = 1 + _TOKEN_FIELDS
    sections = tuple(
        (starts[w], starts[w + 1], starts[w + 2], starts[w + 3], starts[w + 4])
        for w in range(first, len(starts), len(each))
    )
    return _Map(tuple(starts[1:first]), sections, at)


def word_count(room: Room, layout: Layout) -> int:
    """Words of a room's array (4 bytes each)."""
    return _map(room, len(layout.windows)).kv + room.kv


def partial_bytes(room: Room, layout: Layout) -> int:
    """Bytes of a room's `PartialBuffers`; all windows, layers and buckets may use the same ones."""
    return max(1, room.partials) * layout.heads * (layout.head_dim + 1) * 4


def exact_room(batch: Batch, works: tuple[Work, ...], tokens: int | None = None) -> Room:
    """The least room of a batch, padded to `tokens` tokens."""
    return Room(
        tokens=len(batch) if tokens is None else tokens,
        kv=len(batch.kv_indices),
        rows=max(len(work.rows) for work in works),
        narrow=max(len(work.narrow) for work in works),
        wide=max(len(work.wide) for work in works),
        partials=max(max(work.partials, len(work.merge_at)) for work in works),
    )


def bucket_room(tokens: int, *, context: int, windows: int, layout: Layout, deterministic: bool = False) -> Room:
    """A room for decode batches of `tokens` tokens (tries and shared prefixes included) of up to `context` positions,
    for a captured graph; what does not fit runs eagerly. `windows` is the number of windows, each with its own lists.

    Slot ids: tokens x context, at most 16 MiB. `work.build` bounds spans by programs and not by context: narrow items,
    and their partials, by NARROW_PROGRAMS / KH + 2 a token; wide ones by (LONG_PROGRAMS + STACKED_PROGRAMS) / KH + 6 a
    token (both ends of its own tile and of those of two levels), their partials by a tile's height times the former + 6
    a token; and all by a span per `SPLIT` and level. At 256 tokens, 32 heads over 8 of 128: 3,624 partials of 16.5 kB,
    60 MB, and 60 kB of items. In deterministic mode a token has a partial per `SPLIT`, at most 256 MiB of them in all.
    """
    per_group = layout.heads // layout.kv_heads
    spans = tokens * (-(-context // SPLIT) + 2)
    kv = min(tokens * context, _BUCKET_KV)
    if deterministic:
        most = _BUCKET_PARTIALS // (layout.heads * (layout.head_dim + 1) * 4)
        return Room(tokens, kv, 3 * tokens, 0, min(spans, most), min(spans, most))
    narrow = NARROW_PROGRAMS // layout.kv_heads
    wide = (LONG_PROGRAMS + STACKED_PROGRAMS) // layout.kv_heads
    stacked = max(1, WIDE_M // per_group) * wide
    return Room(
        tokens=tokens,
        kv=kv,
        rows=3 * tokens,
        narrow=min(spans, narrow + 2 * tokens) if per_group <= NARROW_M else 0,
        wide=min(3 * spans, wide + 6 * tokens),
        partials=min(3 * spans, narrow + stacked + 8 * tokens),
    )


def pack(
    batch: Batch,
    layout: Layout,
    capacity: int,
    *,
    room: Room | None = None,
    deterministic: bool = False,
    grouping: bool = True,
    pays: int = PAYS,
) -> Packed | None:
    """The batch in `room` (None: in the least room), for a cache of `capacity` slots and a dump slot behind them. None
    when it does not fit. `pays`: see `work.paying`."""
    if room is not None and (len(batch) > room.tokens or len(batch.kv_indices) > room.kv):
        return None
    most = most_grouped(layout)
    found = groups.find(batch, block=SPLIT, most=most) if grouping else ()
    wide_m = WIDE_M
    if room is None and not deterministic and _longest(batch) * layout.heads >= 2 * TALL_M * layout.kv_heads:
        wide_m = TALL_M
    works = []
    for window in layout.windows:
        used = paying(found, batch, layout, window, deterministic=deterministic, pays=pays)
        works.append(build(batch, layout, window, groups=used, deterministic=deterministic, wide_m=wide_m))
    least = exact_room(batch, tuple(works), None if room is None else room.tokens)
    if room is None:
        room = least
    elif not _fits(least, room):
        return None
    launches = tuple(Launches(len(w.narrow) > 0, len(w.wide) > 0, len(w.merge_at) > 0) for w in works)
    return Packed((_sections(batch, works, room, capacity), batch.kv_indices), room, launches, wide_m)


def _longest(batch: Batch) -> int:
    return int((batch.qo_indptr[1:] - batch.qo_indptr[:-1]).max(initial=0))


def _fits(least: Room, room: Room) -> bool:
    return (
        least.rows <= room.rows
        and least.narrow <= room.narrow
        and least.wide <= room.wide
        and least.partials <= room.partials
    )


def _sections(batch: Batch, works: list[Work], room: Room, capacity: int) -> I32:
    """All but the last section."""
    where = _map(room, len(works))
    words = np.zeros(where.kv, np.int32)
    tokens, ids, feed = len(batch), *where.tokens[:2]
    words[ids : ids + tokens] = batch.tokens
    words[feed : feed + room.tokens] = -1
    words[feed + batch.feed] = batch.feed_rows
    for at, values, blank in zip(
        where.tokens[2:], (batch.positions, batch.slots, works[0].limit), (0, capacity, -1), strict=True
    ):
        words[at : at + tokens] = values
        words[at + tokens : at + room.tokens] = blank
    for number, (work, (rows, narrow, wide, ptr, merge)) in enumerate(zip(works, where.windows, strict=True)):
        words[number * _COUNTS : (number + 1) * _COUNTS] = (
            len(work.narrow),
            len(work.wide),
            work.partials,
            len(work.merge_at),
        )
        words[rows : rows + len(work.rows)] = work.rows
        words[narrow : narrow + work.narrow.size] = work.narrow.reshape(-1)
        words[wide : wide + work.wide.size] = work.wide.reshape(-1)
        words[ptr : ptr + tokens + 1] = work.merge_ptr
        words[ptr + tokens + 1 : ptr + room.tokens + 1] = work.merge_ptr[-1]
        words[merge : merge + len(work.merge_at)] = work.merge_at
    return words


def buffers(room: Room, layout: Layout, device: torch.device) -> PartialBuffers:
    """Partial buffers of a room. Not initialised: a partial that a merge lists was written by the item that has its
    number, in the same batch."""
    count = max(1, room.partials)
    acc = torch.empty(count, layout.heads, layout.head_dim, dtype=torch.float32, device=device)
    return PartialBuffers(acc, torch.empty(count, layout.heads, dtype=torch.float32, device=device))


def view(
    words: torch.Tensor,
    room: Room,
    layout: Layout,
    angles: Angles,
    buffers: PartialBuffers,
    *,
    launches: tuple[Launches, ...] | None = None,
    wide_m: int = WIDE_M,
) -> TritonPlan:
    """The plan whose arrays lie in `words` `[>= word_count(room, layout)] int32`, on any device. `launches` as in
    `Packed`; None launches everything, which is right for every batch."""
    where = _map(room, len(layout.windows))
    if len(words) < where.kv + room.kv:
        raise ValueError(f"words has {len(words)} entries, this room takes {where.kv + room.kv}")
    flags = launches or (Launches(),) * len(layout.windows)
    ids, feed, positions, slots, limit = (words[at : at + room.tokens] for at in where.tokens)
    work = {}
    for number, window in enumerate(layout.windows):
        rows, narrow, wide, ptr, merge = where.windows[number]
        work[window] = DeviceWork(
            words[rows : rows + room.rows],
            words[narrow : narrow + COLUMNS * room.narrow].view(-1, COLUMNS),
            words[wide : wide + COLUMNS * room.wide].view(-1, COLUMNS),
            words[number * _COUNTS : number * _COUNTS + 2],
            words[ptr : ptr + room.tokens + 1],
            words[merge : merge + room.partials],
            wide_m,
            *flags[number],
        )
    kv = words[where.kv : where.kv + room.kv]
    count = room.tokens
    return TritonPlan(count, count, ids, feed, positions, slots, limit, angles.cos, angles.sin, kv, work, buffers)


def plan(
    batch: Batch,
    layout: Layout,
    angles: Angles,
    capacity: int,
    *,
    deterministic: bool = False,
    grouping: bool = True,
) -> TritonPlan:
    """See `Ops.plan`: the least room, one copy to the device of `angles`, partial buffers of its own."""
    packed = pack(batch, layout, capacity, deterministic=deterministic, grouping=grouping)
    assert packed is not None, "a batch fits its own room"
    device = angles.cos.device
    words = torch.from_numpy(packed.words)
    if device.type == "cuda":  # the caching allocator keeps the pinned block until the copy is done
        words = words.pin_memory().to(device, non_blocking=True)
    room = packed.room
    return view(
        words,
        room,
        layout,
        angles,
        buffers(room, layout, device),
        launches=packed.launches,
        wide_m=packed.wide_m,
    )
