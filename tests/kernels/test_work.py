"""Work lists: whatever the batch, the window, the grouping, the room and the mode, attention by the list is the
reference's, every visible pair is computed once, and in deterministic mode the spans of a token are its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ModelError
from ramet.kernels import reference
from ramet.kernels.groups import find
from ramet.kernels.ops import Angles, Layout
from ramet.kernels.triton import plan as planning
from ramet.kernels.triton.plan import Launches, Room, TritonPlan, bucket_room, buffers, pack, plan, view, word_count
from ramet.kernels.triton.work import ALIGN, SPLIT, STACKED_PROGRAMS, build
from ramet.runtime.batch import Batch

from .forest import CAPACITY, Tree, forests
from .ragged import Part, batch
from .worklist import attention, items, poisoned, rope_store, spans

WINDOWS = (None, 100, 700)
LAYOUT = Layout(heads=6, kv_heads=2, head_dim=4, scale=0.5, windows=WINDOWS)
ANGLES = Angles(torch.zeros(8192, 2), torch.zeros(8192, 2))
CPU = torch.device("cpu")
LENGTHS = st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 511, 512, 513, 640, 1024, 1100]))
TRUNK = st.sampled_from([512, 513, 640, 1030, 300, 2])
FORESTS = forests(lengths=LENGTHS, trunk=TRUNK, nodes=8)


def plain(
    made: Batch,
    room: Room | None = None,
    *,
    deterministic: bool = False,
    grouping: bool = True,
    layout: Layout = LAYOUT,
) -> TritonPlan | None:
    """A plan on the CPU in which every group pays, with poisoned partials."""
    packed = pack(made, layout, CAPACITY, room=room, deterministic=deterministic, grouping=grouping, pays=0)
    if packed is None:
        return None
    words = torch.full((word_count(packed.room, layout),), 1 << 30, dtype=torch.int32)  # no kernel may read the rest
    words[: len(packed.words)] = torch.from_numpy(packed.words)
    its = buffers(packed.room, layout, CPU)
    return poisoned(view(words, packed.room, layout, ANGLES, its, launches=packed.launches, wide_m=packed.wide_m))


def owners(made: Batch) -> list[tuple[int, int]]:
    """(segment, limit) of every token."""
    qo, kv = made.qo_indptr.tolist(), made.kv_indptr.tolist()
    return [(s, kv[s + 1] - kv[s] - (qo[s + 1] - t)) for s in range(made.segments) for t in range(qo[s], qo[s + 1])]


def covered(made: Batch, its: TritonPlan, window: int | None) -> None:
    """The lists cover what the batch's tokens see: once, in order, with the right slots, and hardly more."""
    owner, work, slots = owners(made), its.work[window], its.kv.numpy()
    assert (its.work[window].merge_ptr.diff() >= 0).all()
    assert its.limit.tolist() == [limit for _, limit in owner] + [-1] * (its.padded - len(made))
    for token, seen in enumerate(spans(its, window)):
        if token < len(made):
            limit = owner[token][1]
            low = 0 if window is None else max(0, limit - window + 1)
            assert seen[0][0] == low and seen[-1][1] == limit
            assert all(first <= last for first, last in seen), "a span that the token does not see is merged"
            assert all(before[1] + 1 == after[0] for before, after in pairwise(seen))
        else:
            assert seen == []
    for _, (_, _, at, start, length, _), tokens in items(work):
        lows, highs = [], []
        for token in tokens.tolist():
            segment, limit = owner[token]
            base = int(made.kv_indptr[segment])
            stop = min(start + length, limit + 1)
            lows.append(0 if window is None else max(0, limit - window + 1))
            highs.append(limit)
            assert np.array_equal(slots[at : at + stop - start], made.kv_indices[base + start : base + stop])
        assert start >= min(lows) // ALIGN * ALIGN and start + length <= max(highs) + 1, "nobody sees a part of it"
        assert start % ALIGN == 0 and length > 0


@settings(max_examples=60, deadline=None)
@given(FORESTS, st.booleans(), st.booleans(), st.integers(0, 3))
def test_every_visible_pair_is_computed_once(tree: Tree, deterministic: bool, grouping: bool, spare: int) -> None:
    made = tree.batch()
    its = plain(made, deterministic=deterministic, grouping=grouping)
    assert its is not None
    room = Room(len(made) + spare, len(made.kv_indices) + 7 * spare, 3 * len(made), 999, 999, 99_999)
    padded = plain(made, room, deterministic=deterministic, grouping=grouping)
    assert padded is not None
    for window in WINDOWS:
        covered(made, its, window)
        covered(made, padded, window)


def room_of(its: TritonPlan) -> Room:
    work = its.work[None]
    sizes = len(work.item_rows), len(work.narrow), len(work.wide), len(work.merge_at)
    return Room(its.padded, len(its.kv), *sizes)


def test_spans_longer_than_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with few programs spans are several `SPLIT`s long, and cover as well."""
    made = Tree((-1, 0, 0, 0, -1), (1500, 30, 1700, 800, 2900), ((1, 1), (2, 1), (3, 700), (4, 1)), 0).batch()
    longest = []
    for programs in (1, 16, 2000):
        for name in ("NARROW_PROGRAMS", "LONG_PROGRAMS", "STACKED_PROGRAMS"):
            monkeypatch.setattr(f"ramet.kernels.triton.work.{name}", programs)
        its = plain(made)
        assert its is not None
        for window in WINDOWS:
            covered(made, its, window)
        longest.append(max(columns[4] for _, columns, _ in items(its.work[None])))
        fixed = plain(made, deterministic=True)
        assert fixed is not None and max(columns[4] for _, columns, _ in items(fixed.work[None])) == SPLIT
    assert longest[0] > longest[1] > longest[2] == SPLIT


@settings(max_examples=15, deadline=None)
@given(FORESTS, st.booleans(), st.booleans(), st.sampled_from([(6, 2), (2, 2), (4, 1), (20, 1)]))
def test_attention_by_the_lists_is_the_reference(
    tree: Tree, deterministic: bool, grouping: bool, heads: tuple[int, int]
) -> None:
    made = tree.batch()
    layout = replace(LAYOUT, heads=heads[0], kv_heads=heads[1])
    generator = torch.Generator().manual_seed(tree.seed)
    cache = torch.full((2, layout.kv_heads, CAPACITY + 1, 4), torch.nan)
    cache[:, :, made.kv_indices] = torch.randn(2, layout.kv_heads, len(made.kv_indices), 4, generator=generator)
    room = bucket_room(len(made) + 2, context=4096, windows=3, layout=layout, deterministic=deterministic)
    for where in (None, room):
        its = plain(made, where, deterministic=deterministic, grouping=grouping, layout=layout)
        assert its is not None
        q = torch.randn(its.padded, layout.heads, 4, generator=generator)
        for window in WINDOWS:
            simple = reference.plan(made, layout, ANGLES, CAPACITY + 1)
            wanted = reference.attention(q[: len(made)], layout, simple, cache, window, torch.float32)
            found = attention(q, layout, poisoned(its), cache, window, torch.float32)
            assert (found[: len(made)] - wanted).abs().max() < 2e-5
            assert not found[len(made) :].any()


def seen_spans(made: Batch, *, grouping: bool) -> dict[tuple[int, ...], list[tuple[tuple[int, int], ...]]]:
    """For each token, named by its slots, its spans in deterministic mode by window."""
    its = plain(made, deterministic=True, grouping=grouping)
    assert its is not None
    by_window = [spans(its, window) for window in WINDOWS]
    names = [
        tuple(made.kv_indices[made.kv_indptr[s] : made.kv_indptr[s] + limit + 1].tolist()) for s, limit in owners(made)
    ]
    return {name: [tuple(seen[t]) for seen in by_window] for t, name in enumerate(names)}


@settings(max_examples=15, deadline=None)
@given(FORESTS, st.data())
def test_deterministic_spans_are_the_tokens_own(tree: Tree, data: st.DataObject) -> None:
    """Alone, in a batch, grouped or not, in one chunk or in two: the same boundaries."""
    whole = seen_spans(tree.batch(), grouping=True)
    assert seen_spans(tree.batch(), grouping=False) == whole
    part = data.draw(st.sampled_from(tree.parts()))
    cut = data.draw(st.integers(part.start, part.stop - 1))
    for chunk in (replace(part, stop=cut), replace(part, start=cut)):
        if chunk.start < chunk.stop:
            for name, seen in seen_spans(batch([chunk]), grouping=True).items():
                assert whole[name] == seen
    for seen in whole.values():
        assert all(last % SPLIT == SPLIT - 1 for spans_ in seen for _, last in spans_[:-1])


def decode(lengths: list[int], shared: int = 0) -> Batch:
    """Single new tokens after contexts that share their first `shared` slots."""
    ends = shared + np.cumsum(lengths)
    slots = [np.r_[:shared, end - n : end].astype(np.int32) for n, end in zip(lengths, ends, strict=True)]
    return batch([Part(np.zeros(len(s), np.int32), s, len(s) - 1, len(s)) for s in slots])


def test_what_does_not_fit_is_refused() -> None:
    made = decode([700] * 6, shared=1024)
    layout = replace(LAYOUT, windows=(None,))
    exact = pack(made, layout, CAPACITY, pays=0)
    assert exact is not None and exact.launches == (Launches(),)
    room = exact.room
    assert pack(made, layout, CAPACITY, room=room, pays=0) is not None
    for field in Room.__dataclass_fields__:
        smaller = replace(room, **{field: getattr(room, field) - 1})
        assert pack(made, layout, CAPACITY, room=smaller, pays=0) is None, field


def test_a_room_is_one_map_for_every_batch() -> None:
    """Two batches in one room: the second overwrites the first in place, longer tails of the first do not matter."""
    room = bucket_room(8, context=4096, windows=3, layout=LAYOUT)
    words = torch.zeros(word_count(room, LAYOUT), dtype=torch.int32)
    its = view(words, room, LAYOUT, ANGLES, buffers(room, LAYOUT, CPU))
    generator = torch.Generator().manual_seed(0)
    for made in (decode([900, 30, 1400, 2, 600], shared=1024), decode([1, 513])):
        packed = pack(made, LAYOUT, CAPACITY, room=room, pays=0)
        assert packed is not None and len(packed.words) <= len(words)
        words[: len(packed.words)] = torch.from_numpy(packed.words)
        for window in WINDOWS:
            covered(made, its, window)
        cache = torch.randn(2, 2, CAPACITY + 1, 4, generator=generator)
        q = torch.randn(8, 6, 4, generator=generator)
        simple = reference.plan(made, LAYOUT, ANGLES, CAPACITY + 1)
        wanted = reference.attention(q[: len(made)], LAYOUT, simple, cache, None, torch.float32)
        found = attention(q, LAYOUT, poisoned(its), cache, None, torch.float32)
        assert (found[: len(made)] - wanted).abs().max() < 2e-5
    with pytest.raises(ValueError, match="this room takes"):
        view(words[:-1], room, LAYOUT, ANGLES, buffers(room, LAYOUT, CPU))


def test_token_sections() -> None:
    """Ids, feeds, positions and slots of the batch; padding writes the dump slot and draws from no row."""
    parts = [Part(np.arange(5, dtype=np.int32) + 50, np.arange(5, dtype=np.int32) + 7, 2, 5)]
    made = batch(parts, feeds={1: 4})
    its = plain(made, replace(room_of(plan(made, LAYOUT, ANGLES, CAPACITY)), tokens=5))
    assert its is not None
    assert its.ids.tolist() == [52, -1, 54, 0, 0]
    assert its.feed.tolist() == [-1, 4, -1, -1, -1]
    assert its.positions.tolist() == [2, 3, 4, 0, 0]
    assert its.slots.tolist() == [9, 10, 11, CAPACITY, CAPACITY]
    assert its.limit.tolist() == [2, 3, 4, -1, -1]
    assert (its.tokens, its.padded, its.kv.tolist()) == (5, 5, [7, 8, 9, 10, 11])
    qkv = torch.randn(5, 10 * 4, generator=torch.Generator().manual_seed(0))
    cache = torch.full((2, 2, CAPACITY + 1, 4), torch.nan)
    q = rope_store(qkv, None, LAYOUT, its, cache)
    simple, other = reference.plan(made, LAYOUT, ANGLES, CAPACITY), torch.full((2, 2, CAPACITY, 4), torch.nan)
    assert torch.equal(reference.rope_store(qkv[:3], None, LAYOUT, simple, other), q[:3])
    assert torch.equal(cache[:, :, :CAPACITY].nan_to_num(9.0), other.nan_to_num(9.0))


def test_grouping_pays_or_is_left_out() -> None:
    """16 MiB of repeated reads a layer justify a wide launch; a batch that has one anyway is always grouped."""
    wide = replace(LAYOUT, heads=32, kv_heads=8, head_dim=128, windows=(None, 200))
    few, many = decode([9, 9], shared=1024), decode([9] * 16, shared=1024)
    launches = [pack(made, wide, CAPACITY).launches for made in (few, many)]  # type: ignore[union-attr]
    assert [each[0].wide for each in launches] == [False, True]
    assert [each[1].wide for each in launches] == [False, False]  # the window hides most of what they share
    chunk = Part(np.zeros(40, np.int32), np.arange(5000, 5040, dtype=np.int32), 0, 40)
    mixed = batch([*(Part(np.zeros(1033, np.int32), s, 1032, 1033) for s in heads(few)), chunk])
    packed = pack(mixed, wide, CAPACITY)
    assert packed is not None and packed.room.rows == 42 + 2
    assert pack(mixed, wide, CAPACITY, grouping=False).room.rows == 42  # type: ignore[union-attr]
    assert pack(few, wide, CAPACITY, deterministic=True).room.rows == 4  # type: ignore[union-attr]


def heads(made: Batch) -> list[np.ndarray]:
    return [made.kv_indices[a:b] for a, b in pairwise(made.kv_indptr)]


def test_a_shared_span_is_read_once() -> None:
    """64 branches over 8,192 shared slots: the lists name each shared position 4 times (16 rows of 4 heads to an item),
    not 64 times."""
    layout = replace(LAYOUT, heads=32, kv_heads=8, head_dim=128, windows=(None,))
    made = decode([20] * 64, shared=8192)
    work = build(made, layout, None, groups=find(made, block=SPLIT, most=4))
    assert int(work.wide[:, 4].sum()) == 4 * 8192
    assert int(work.narrow[:, 4].sum()) == 64 * 20
    assert len(work.wide) * 8 <= STACKED_PROGRAMS + 4 * 8


def test_long_chunks_are_direct_and_tall() -> None:
    layout = replace(LAYOUT, heads=32, kv_heads=8, head_dim=128, windows=(None,))
    slots = np.arange(4096, dtype=np.int32)
    chunk = batch([Part(np.zeros(4096, np.int32), slots, 2048, 4096)])
    packed = pack(chunk, layout, CAPACITY)
    assert packed is not None
    assert packed.wide_m == planning.TALL_M
    assert packed.launches == (Launches(narrow=False, wide=True, merge=False),)
    assert packed.room == Room(2048, 4096, 2048, 0, 2048 * 4 // 128, 0)
    # few rows over a long context are cut, so that no multiprocessor is idle
    few = pack(batch([Part(np.zeros(4096, np.int32), slots, 4032, 4096)]), layout, CAPACITY)
    assert few is not None and few.launches[0].merge and few.room.wide * 8 >= 64


@pytest.mark.parametrize("context", [600, 4096])
@pytest.mark.parametrize("sizes", [(8, 8), (32, 8), (9, 3), (8, 1), (64, 2)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_decode_batches_fit_their_bucket(sizes: tuple[int, int], context: int, deterministic: bool) -> None:
    layout = Layout(*sizes, head_dim=64, scale=1.0)
    rng = np.random.default_rng(context)
    for tokens in (1, 8, 64):
        room = bucket_room(tokens, context=context, windows=1, layout=layout, deterministic=deterministic)
        lengths = rng.integers(1, context + 1, tokens)
        for made in (decode(lengths.tolist()), decode((lengths % 80 + 1).tolist(), shared=context - 80)):
            assert pack(made, layout, CAPACITY, room=room, deterministic=deterministic, pays=0) is not None
        assert word_count(room, layout) * 4 <= (16 << 20) + (1 << 20)
        assert planning.partial_bytes(room, layout) <= 256 << 20


def test_too_many_heads_per_group_are_refused() -> None:
    with pytest.raises(ModelError, match="up to 64 query heads"):
        pack(decode([3]), replace(LAYOUT, heads=80, kv_heads=1), CAPACITY)


def test_a_batch_without_tokens() -> None:
    empty = np.zeros(0, np.int32)
    zero = np.zeros(1, np.int32)
    made = replace(
        decode([3]), tokens=empty, positions=empty, slots=empty, qo_indptr=zero, kv_indptr=zero, kv_indices=empty
    )
    for deterministic in (False, True):
        its = plain(made, bucket_room(2, context=64, windows=3, layout=LAYOUT), deterministic=deterministic)
        assert its is not None
        q = torch.zeros(2, 6, 4)
        assert not attention(q, LAYOUT, its, torch.zeros(2, 2, 4, 4), None, torch.float32).any()


def test_a_segment_without_new_tokens_is_skipped() -> None:
    made = decode([600, 700])
    lone = replace(
        made,
        qo_indptr=np.array([0, 1, 1, 2], np.int32),
        kv_indptr=np.array([0, 600, 900, 1600], np.int32),
        kv_indices=np.concatenate((made.kv_indices[:600], np.arange(300), made.kv_indices[600:])).astype(np.int32),
    )
    its = plain(lone)
    assert its is not None
    for window in WINDOWS:
        covered(lone, its, window)
