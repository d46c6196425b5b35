"""The attention kernels against float64 and the reference: shapes, masks, splits, groups, poison, padding, bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ramet.kernels import reference
from ramet.kernels.ops import Angles, Layout
from ramet.kernels.triton import attention as kernel
from ramet.kernels.triton.merge import merge_partials
from ramet.kernels.triton.plan import DeviceWork, PartialBuffers, Room, TritonPlan, buffers, pack, view, word_count
from ramet.kernels.triton.work import SPLIT
from ramet.runtime.batch import Batch

from ..ragged import Part, batch
from .device import DEVICE, DTYPES, close, random, tolerance

pytestmark = [pytest.mark.triton, pytest.mark.gpu]

ANGLES = Angles(torch.zeros(1, 1), torch.zeros(1, 1))  # attention does not read them
SMALL = Layout(heads=4, kv_heads=2, head_dim=16, scale=0.25)
TYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# tiles of 16-bit types are larger: few steps in the interpreter
FAST = pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: str(dtype).removeprefix("torch."))


def placed(*spans: tuple[int, int], capacity: int = 4096, shared: Sequence[int] = ()) -> list[Part]:
    """Sequences (start, stop) on random slots; shared[i] is how many slots sequence i has in common with the first."""
    free = np.random.default_rng(0).permutation(capacity).astype(np.int32)
    parts: list[Part] = []
    for number, (start, stop) in enumerate(spans):
        common = shared[number] if number < len(shared) else 0
        old = parts[0].slots[:common] if common else free[:0]
        own, free = free[: stop - common], free[stop - common :]
        parts.append(Part(np.zeros(stop, np.int32), np.concatenate((old, own)), start, stop))
    return parts


def planned(
    made: Batch,
    layout: Layout,
    capacity: int,
    *,
    deterministic: bool = False,
    grouping: bool = True,
    room: Room | None = None,
) -> TritonPlan:
    """A plan on the device whose buffers, and whatever lies behind its lists, are poisoned."""
    packed = pack(made, layout, capacity, room=room, deterministic=deterministic, grouping=grouping, pays=0)
    assert packed is not None
    words = torch.full((word_count(packed.room, layout),), 1 << 30, dtype=torch.int32)
    words[: len(packed.words)] = torch.from_numpy(packed.words)
    partials = buffers(packed.room, layout, torch.device(DEVICE))
    partials.acc.fill_(torch.nan)
    partials.lse.fill_(torch.nan)
    return view(words.to(DEVICE), packed.room, layout, ANGLES, partials, launches=packed.launches, wide_m=packed.wide_m)


def cached(made: Batch, layout: Layout, capacity: int, dtype: torch.dtype) -> torch.Tensor:
    """A cache `[2, KH, capacity + 1, D]` that holds nan in all slots that `made` does not name."""
    cache = random(2, layout.kv_heads, capacity + 1, layout.head_dim, seed=1, dtype=dtype)
    unused = torch.ones(capacity + 1, dtype=torch.bool)
    unused[torch.from_numpy(made.kv_indices).long()] = False
    cache[:, :, unused.to(DEVICE)] = torch.nan
    return cache


def exact(q: torch.Tensor, made: Batch, layout: Layout, cache: torch.Tensor, window: int | None) -> torch.Tensor:
    """Rows `[T, H D] float64` by the definition."""
    q, cache = q.double().cpu(), cache.double().cpu()
    group = layout.heads // layout.kv_heads
    rows = []
    for s in range(made.segments):
        slots = torch.from_numpy(made.kv_indices[made.kv_indptr[s] : made.kv_indptr[s + 1]]).long()
        mine = q[made.qo_indptr[s] : made.qo_indptr[s + 1]].transpose(0, 1)
        keys, values = (cache[i][:, slots].repeat_interleave(group, 0) for i in (0, 1))
        at = torch.arange(len(slots))
        last = at[len(slots) - mine.shape[1] :, None]
        hidden = (at > last) if window is None else (at > last) | (at <= last - window)
        weights = (mine @ keys.transpose(1, 2) * layout.scale).masked_fill(hidden, -torch.inf).softmax(-1)
        rows.append((weights @ values).transpose(0, 1).flatten(1))
    return torch.cat(rows)


def check(made: Batch, layout: Layout, dtype: torch.dtype, capacity: int = 4096, **options: bool) -> None:
    cache = cached(made, layout, capacity, dtype)
    q = random(len(made), layout.heads, layout.head_dim, seed=2, dtype=dtype)
    plan = planned(made, layout, capacity, **options)
    for window in layout.windows:
        found = kernel.attention(q, layout, plan, cache, window, dtype)
        close(found, exact(q, made, layout, cache, window), tolerance(dtype))


@TYPES
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [(4, 4, 64), (6, 2, 64), (2, 1, 80), (4, 1, 96), (8, 1, 128), (2, 1, 256), (4, 2, 8), (20, 1, 16)],
)
def test_shapes(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    layout = Layout(heads, kv_heads, dim, dim**-0.5, (None, 9))
    check(batch(placed((0, 1), (16, 17), (129, 130), (30, 41), (0, 35))), layout, dtype)


@FAST
@pytest.mark.parametrize("deterministic", [False, True])
def test_long_sequences_are_split_and_merged(dtype: torch.dtype, deterministic: bool) -> None:
    layout = Layout(4, 1, 16, 0.25, (None, 600))
    made = batch(placed((1099, 1100), (505, 520), (3, 4), (1020, 1026)))
    plan = planned(made, layout, 4096, deterministic=deterministic)
    assert all(work.has_merge for work in plan.work.values())
    check(made, layout, dtype, deterministic=deterministic)


@FAST
@pytest.mark.parametrize("deterministic", [False, True])
def test_shared_prefixes_are_read_once_for_all(dtype: torch.dtype, deterministic: bool) -> None:
    layout = Layout(4, 2, 16, 0.25, (None, 700))
    made = batch(placed((1029, 1030), (520, 521), (1039, 1041), (30, 31), shared=(0, 512, 1024)))
    plan = planned(made, layout, 4096, deterministic=deterministic)
    rows = plan.work[None].item_rows
    assert len(rows) > len(made), "stacked rows: the batch has groups"
    check(made, layout, dtype, deterministic=deterministic)


@pytest.mark.parametrize("new", [70, 129])
def test_long_chunks_skip_masks_only_where_all_is_seen(new: int) -> None:
    layout = Layout(2, 1, 16, 0.25, (None, 33))
    check(batch(placed((77, 77 + new), (200, 201))), layout, torch.float32)


@settings(max_examples=10 if DEVICE == "cpu" else 100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 140), st.integers(1, 20), st.integers(0, 140)), min_size=1, max_size=4),
    st.booleans(),
)
def test_ragged_batches(spans: list[tuple[int, int, int]], deterministic: bool) -> None:
    """Paths of a trie: sequences that share slots, new ones of the same batch included, with the first."""
    first = spans[0][0] + spans[0][1]
    shared = [0, *(min(start, common, first) for start, _, common in spans[1:])]
    made = batch(placed(*((start, start + count) for start, count, _ in spans), shared=shared))
    layout = Layout(6, 2, 16, 0.3, (None, 1, 50))
    check(made, layout, torch.float32, deterministic=deterministic)


def test_the_reference_agrees() -> None:
    made = batch(placed((20, 30), (0, 3), (99, 100), capacity=300))
    cache = random(2, 2, 300, 16, seed=1)
    q = random(len(made), 4, 16, seed=2)
    angles = Angles(torch.zeros(100, 1, device=DEVICE), torch.zeros(100, 1, device=DEVICE))
    wanted = reference.attention(q, SMALL, reference.plan(made, SMALL, angles, 300), cache, None, torch.float32)
    found = kernel.attention(q, SMALL, planned(made, SMALL, 300), cache, None, torch.float32)
    close(found, wanted, tolerance(torch.float32))


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_larger_room_gives_the_same_bits_and_zeros_behind(deterministic: bool) -> None:
    made = batch(placed((700, 701), (20, 24), (640, 641), shared=(0, 0, 512)))
    cache = cached(made, SMALL, 4096, torch.float32)
    cache[:, :, 4096] = torch.nan  # the dump slot
    q = random(len(made), 4, 16, seed=2)
    wanted = kernel.attention(
        q, SMALL, planned(made, SMALL, 4096, deterministic=deterministic), cache, None, torch.float32
    )
    room = Room(tokens=13, kv=5000, rows=40, narrow=0 if deterministic else 30, wide=30, partials=60)
    plan = planned(made, SMALL, 4096, deterministic=deterministic, room=room)
    more = torch.cat((q, torch.full((7, 4, 16), torch.nan, device=DEVICE)))
    found = kernel.attention(more, SMALL, plan, cache, None, torch.float32)
    assert torch.equal(found[: len(made)], wanted)
    assert torch.equal(found[len(made) :], torch.zeros(7, 64, device=DEVICE))


def test_a_captured_plan_that_launches_everything_gives_the_same() -> None:
    made = batch(placed((30, 31), (5, 6)))
    packed = pack(made, SMALL, 4096, room=Room(4, 64, 8, 8, 8, 8))
    assert packed is not None and not packed.launches[0].wide and not packed.launches[0].merge
    words = torch.zeros(word_count(packed.room, SMALL), dtype=torch.int32)
    words[: len(packed.words)] = torch.from_numpy(packed.words)
    cache = cached(made, SMALL, 4096, torch.float32)
    q = random(4, 4, 16, seed=2)
    found = [
        kernel.attention(
            q,
            SMALL,
            view(
                words.to(DEVICE),
                packed.room,
                SMALL,
                ANGLES,
                buffers(packed.room, SMALL, torch.device(DEVICE)),
                launches=launches,
            ),
            cache,
            None,
            torch.float32,
        )
        for launches in (packed.launches, None)
    ]
    assert torch.equal(*found)


@FAST
@pytest.mark.parametrize("window", [None, 300])
def test_deterministic_rows_have_the_same_bits_however_computed(dtype: torch.dtype, window: int | None) -> None:
    """The last 3 tokens of a sequence of 1,100: alone, in a chunk that crosses two spans, batched, and grouped."""
    layout = Layout(4, 2, 16, 0.25, (window,))
    sequence, other, long, sibling = placed((1097, 1100), (37, 40), (0, 90), (1050, 1051), shared=(0, 0, 0, 1024))

    def rows(parts: list[Part], start: int, grouping: bool = True) -> torch.Tensor:
        made = batch([Part(p.tokens, p.slots, start, p.stop) if p is sequence else p for p in parts])
        cache = random(2, 2, 4097, 16, seed=1, dtype=dtype)
        at = int(np.flatnonzero(made.positions == 1099)[0]) - 2
        q = random(len(made), 4, 16, seed=3, dtype=dtype)
        q[at : at + 3] = random(3, 4, 16, seed=4, dtype=dtype)
        plan = planned(made, layout, 4096, deterministic=True, grouping=grouping)
        return kernel.attention(q, layout, plan, cache, window, dtype)[at : at + 3]

    alone = rows([sequence], 1097)
    assert torch.equal(alone, rows([sequence], 1010))
    assert torch.equal(alone, rows([other, long, sequence], 1097))
    assert torch.equal(alone, rows([sibling, other, sequence], 1097))
    assert torch.equal(alone, rows([sibling, sequence], 1097, grouping=False))


@TYPES
def test_merge(dtype: torch.dtype) -> None:
    """40 partials in more than two chunks, a single one, none, and ones that saw nothing."""
    heads, dim = 6, 16
    acc, lse = random(60, heads, dim, seed=1), random(60, heads, seed=2) * 5
    lse[0], acc[0] = torch.nan, torch.nan  # listed by none
    lse[5], acc[5] = -torch.inf, 0.0
    lse[6], acc[6] = -torch.inf, 0.0
    lists = [list(range(20, 60)), [3], [], [5, 4, 6], [5]]
    pointer = torch.tensor([0, *np.cumsum([len(entries) for entries in lists])], dtype=torch.int32, device=DEVICE)
    at = torch.tensor(sum(lists, []), dtype=torch.int32, device=DEVICE)  # noqa: RUF017
    out = torch.full((5, heads * dim), 7.0, dtype=dtype, device=DEVICE)
    merge_partials(acc, lse, pointer, at, out, heads)
    weights = torch.exp2(lse[20:].double())
    wanted = (acc[20:].double() * weights[..., None]).sum(0) / weights.sum(0)[:, None]
    close(out[0], wanted.flatten().to(DEVICE), tolerance(dtype))
    assert torch.equal(out[1], acc[3].flatten().to(dtype))
    assert bool((out[2] == 7.0).all())
    assert torch.equal(out[3], acc[4].flatten().to(dtype))
    assert bool((out[4] == 0.0).all())


def test_strided_caches() -> None:
    """One layer of a pool `[2, layers, KH, C, D]`, in a cache of other strides between keys and values."""
    made = batch(placed((40, 41), (3, 9)))
    cache = cached(made, SMALL, 4096, torch.float32)
    pool = torch.full((2, 3, 2, 4097, 16), torch.nan, device=DEVICE)
    pool[:, 1] = cache
    q = random(len(made), 4, 16, seed=2)
    plan = planned(made, SMALL, 4096)
    found = kernel.attention(q, SMALL, plan, pool[:, 1], None, torch.float32)
    assert torch.equal(found, kernel.attention(q, SMALL, plan, cache, None, torch.float32))


def test_tiles_divide_what_spans_are_aligned_to() -> None:
    for rows in (16, 64, 128):
        for dim in (16, 64, 80, 96, 128, 256):
            for itemsize in (2, 4):
                assert 128 % kernel.tile(rows, dim, itemsize)["BLOCK_N"] == 0
    assert SPLIT % 128 == 0


@pytest.mark.parametrize("rows", [16, 64, 128])
@pytest.mark.parametrize("window", [None, 4])
def test_spans_of_any_length_with_rows_that_see_nothing_of_them(rows: int, window: int | None) -> None:
    """Lists by hand. Tokens 0 and 1 see 30 and 11 positions: one item holds the first 20, another the other 10."""
    layout = Layout(4, 2, 16, 0.25, (window,))
    slots = torch.arange(40, dtype=torch.int32).flip(0)
    items = torch.tensor([[0, 2, 3, 0, 20, 0], [0, 2, 23, 20, 10, 2]], dtype=torch.int32, device=DEVICE)
    none = items[:0]
    counts = torch.tensor([2, 0] if rows == 16 else [0, 2], dtype=torch.int32, device=DEVICE)
    one = torch.tensor([0, 1, 29, 10, 0, 2, 4, 0, 2, 1, 3], dtype=torch.int32, device=DEVICE)
    lists = (items, none) if rows == 16 else (none, items)
    work = DeviceWork(one[:2], *lists, counts, one[4:7], one[7:], rows, rows == 16, rows != 16, True)
    partials = PartialBuffers(torch.full((4, 4, 16), torch.nan), torch.full((4, 4), torch.nan))
    partials = PartialBuffers(partials.acc.to(DEVICE), partials.lse.to(DEVICE))
    blank = one[:0]
    plan = TritonPlan(
        2, 2, blank, blank, blank, blank, one[2:4], ANGLES.cos, ANGLES.sin, slots.to(DEVICE), {window: work}, partials
    )
    cache, q = random(2, 2, 41, 16, seed=1), random(2, 4, 16, seed=2)
    found = kernel.attention(q, layout, plan, cache, window, torch.float32)
    for token, limit in enumerate((29, 10)):
        low = 0 if window is None else limit - window + 1
        kv = cache[:, :, slots[3 + low : 3 + limit + 1].long().to(DEVICE)].double().repeat_interleave(2, 1)
        weights = torch.einsum("hd,hnd->hn", q[token].double(), kv[0] * layout.scale).softmax(-1)
        wanted = torch.einsum("hn,hnd->hd", weights, kv[1]).flatten()
        close(found[token], wanted, tolerance(torch.float32))
    assert bool((partials.lse[3] == -torch.inf).all()) and bool((partials.acc[3] == 0).all())
