"""Ragged batches for kernels. In: how many tokens sequences have and how many are new. Out: `Batch`, `Draws`, plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpu_parts.place import Place
from ramet.kernels.ops import Angles, Layout
from ramet.kernels.triton.plan import TritonPlan, buffers, pack, view, word_count
from ramet.kernels.triton.work import PAYS
from ramet.runtime.batch import I32, Batch, Draws, Targets

EMPTY: I32 = np.zeros(0, np.int32)
NO_TARGETS = Targets(EMPTY, EMPTY)


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens start..stop-1 of a sequence whose first `shared` slots are those of the batch's first sequence."""

    start: int
    stop: int
    shared: int = 0


def draws(count: int, *, seed: int = 0, position: int = 9, **fields: float) -> Draws:
    """Draws from rows 0..count-1; greedy, and without any option unless `fields` says otherwise."""
    index, seeds = np.arange(count, dtype=np.int32), np.arange(seed, seed + count, dtype=np.uint64)
    return Draws.of(index, index, np.full(count, position, np.int64), seeds=seeds, **fields)


def batch(spans: Sequence[Span], *, seed: int = 0) -> tuple[Batch, int]:
    """A batch whose slots are scattered over a cache of (returned) `capacity` slots, half of which it does not use."""
    own = sum(span.stop - span.shared for span in spans)
    capacity = 2 * own
    free = np.random.default_rng(seed).permutation(capacity).astype(np.int32)
    lists: list[I32] = []
    for span in spans:
        mine, free = free[: span.stop - span.shared], free[span.stop - span.shared :]
        lists.append(np.concatenate((lists[0][: span.shared], mine)) if span.shared else mine)
    counts = [span.stop - span.start for span in spans]
    made = Batch(
        step=0,
        tokens=np.zeros(sum(counts), np.int32),
        positions=np.concatenate([np.arange(span.start, span.stop, dtype=np.int32) for span in spans]),
        slots=np.concatenate([slots[span.start :] for slots, span in zip(lists, spans, strict=True)]),
        qo_indptr=np.array([0, *np.cumsum(counts)], np.int32),
        kv_indptr=np.array([0, *np.cumsum([span.stop for span in spans])], np.int32),
        kv_indices=np.concatenate(lists),
        feed=EMPTY,
        feed_rows=EMPTY,
        draws=draws(0),
        targets=NO_TARGETS,
    )
    return made, capacity


def planned(
    made: Batch,
    layout: Layout,
    angles: Angles,
    capacity: int,
    place: Place,
    *,
    grouping: bool = True,
    deterministic: bool = False,
    pays: int = PAYS,
) -> TritonPlan:
    """The batch's plan on the device; what lies behind its lists, and its partial buffers, are poisoned. `pays`: see
    `work.paying`."""
    packed = pack(made, layout, capacity, deterministic=deterministic, grouping=grouping, pays=pays)
    assert packed is not None, "a batch fits its own room"
    words = torch.full((word_count(packed.room, layout),), 1 << 30, dtype=torch.int32)
    words[: len(packed.words)] = torch.from_numpy(packed.words)
    partials = buffers(packed.room, layout, place.device)
    partials.acc.fill_(torch.nan)
    partials.lse.fill_(torch.nan)
    moved = words.to(place.device)
    return view(moved, packed.room, layout, angles, partials, launches=packed.launches, wide_m=packed.wide_m)


def cached(made: Batch, layout: Layout, capacity: int, place: Place) -> torch.Tensor:
    """A layer's cache `[2, KH, capacity + 1, D]` of random numbers, nan in every slot that the batch does not name."""
    cache = place.random(2, layout.kv_heads, capacity + 1, layout.head_dim)
    unused = torch.ones(capacity + 1, dtype=torch.bool)
    unused[torch.from_numpy(made.kv_indices).long()] = False
    cache[:, :, unused.to(place.device)] = torch.nan
    return cache
