"""Draws on the host: the packed words, what they do to logits, and the noise that comes from their keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.kernels import reference
from ramet.kernels.noise import gumbels, hashes, keys, shares
from ramet.kernels.triton import draws as fields
from ramet.kernels.triton.draws import DrawRoom, DrawView, mask_words, pack_draws, view_draws
from ramet.runtime.batch import Draws, Masks

from .ragged import draws

VOCAB = 70


def real(view: DrawView, field: int) -> np.ndarray:
    return view.table[field].contiguous().view(torch.float32).numpy()


def packed(drawn: Draws, masks: Masks | None = None, room: DrawRoom | None = None) -> DrawView:
    found = pack_draws(drawn, np.arange(len(drawn), dtype=np.int32), masks or Masks(), VOCAB, room)
    assert found is not None
    assert found.words.dtype == np.int32 and len(found.words) == found.room.words(VOCAB)
    return view_draws(torch.from_numpy(found.words), found.room)


def changed(view: DrawView, r: int, logits: np.ndarray) -> np.ndarray:
    """What the device makes of a row: edits, then the bitmask."""
    x = logits.copy()
    first, last = view.table[fields.FIRST_EDIT, r], view.table[fields.LAST_EDIT, r]
    assert (view.table[fields.COPY, r] < 0) == (first == last)
    ids = view.edits[0, first:last].numpy()
    assert (np.diff(ids) > 0).all()
    scale, less, more = view.edits[1:, first:last].contiguous().view(torch.float32).numpy()
    x[ids] = np.where(scale == 1, x[ids], np.where(x[ids] > 0, x[ids] / scale, x[ids] * scale)) - less + more
    if view.table[fields.MASK, r] >= 0:
        words = view.masks[view.table[fields.MASK, r]].numpy().view(np.uint32)
        x[~reference.unpacked(words, len(x))] = -np.inf
    return x


def test_options() -> None:
    drawn = draws(
        [0] * 5,
        temperature=[0, 0.5, 1, 1, 1e-40],
        top_k=[9, 0, 1, VOCAB, 69],
        top_p=[0.5, 0.5, 0.5, 1, 1],
        min_p=[0.1, 0, 0.1, 0.1, 0],
        into=[4, 3, 2, 1, 0],
    )
    view = packed(drawn)
    assert real(view, fields.SCALE)[:5] == pytest.approx([0, 2 / np.log(2), 0, 1 / np.log(2), 1e30])
    assert view.table[fields.TOP_K, :5].tolist() == [0, 0, 0, 0, 69]
    assert real(view, fields.TOP_P)[:5].tolist() == [1, 0.5, 1, 1, 1]
    assert real(view, fields.MIN_P)[:5] == pytest.approx([0, 0, 0, 0.1, 0])
    assert view.table[fields.CUT, :5].tolist() == [0, 1, 0, 1, 1]
    assert view.into.tolist() == [4, 3, 2, 1, 0]
    assert view.room == DrawRoom(5, 0, 0, True)


def test_keys_are_of_seed_and_position() -> None:
    drawn = draws([0, 0, 0], seeds=[2**64 - 1, 5, 5], positions=[0, 7, 8])
    view = packed(drawn)
    wanted = keys(drawn.seeds, drawn.positions)
    assert view.table[fields.KEY_LOW, :3].numpy().view(np.uint32).tolist() == [int(k) & 0xFFFFFFFF for k in wanted]
    assert view.table[fields.KEY_HIGH, :3].numpy().view(np.uint32).tolist() == [int(k) >> 32 for k in wanted]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_edits_are_those_of_the_reference(data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = data.draw(st.integers(1, 4))
    options = {
        "repetition": data.draw(st.lists(st.sampled_from([1, 1.3, 0.5]), min_size=count, max_size=count)),
        "frequency": data.draw(st.lists(st.sampled_from([0, 0.25, -1]), min_size=count, max_size=count)),
        "presence": data.draw(st.lists(st.sampled_from([0, 0.5]), min_size=count, max_size=count)),
    }
    history, bias, allowed = [], [], []
    for r in range(count):
        if data.draw(st.booleans()):
            tokens = rng.integers(0, VOCAB, rng.integers(0, 30)).astype(np.int32)
            history.append((r, tokens, int(rng.integers(0, len(tokens) + 1))))
        if data.draw(st.booleans()):
            tokens = rng.choice(VOCAB, 5, replace=False).astype(np.int32)
            values = np.array([1, -2, -np.inf, 0.25, 50], np.float32)
            bias += [(r, tokens, values), (r, tokens[:2], values[:2])]
        if data.draw(st.booleans()):
            allowed.append((r, rng.integers(0, 2**32, mask_words(VOCAB), dtype=np.uint64).astype(np.uint32)))
    drawn = draws([0] * count, bias=tuple(bias), **options)
    masks = Masks(tuple(history), tuple(allowed))
    view = packed(drawn, masks)
    logits = (rng.normal(size=VOCAB) * 4).astype(np.float32)
    for r in range(count):
        wanted = reference.adjusted(torch.from_numpy(logits), r, drawn, masks).numpy()
        assert np.allclose(changed(view, r, logits), wanted, rtol=0, atol=2e-6)


def test_a_room_has_one_layout_and_marks_what_is_unused() -> None:
    room = DrawRoom(draws=6, edits=9, masks=2)
    bias = ((1, np.array([3], np.int32), np.array([2], np.float32)),)
    masks = Masks(allowed=((0, np.array([1, 2, 3], np.uint32)),))
    full = packed(draws([0, 1, 2], bias=bias), masks, room)
    empty = packed(draws([]), None, room)
    for view in (full, empty):
        assert view.table.shape == (fields.FIELDS, 8) and view.edits.shape == (4, 12) and view.masks.shape == (2, 3)
    assert full.table[fields.AT].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert full.table[fields.COPY].tolist() == [-1, 0, -1, -1, -1, -1, -1, -1]
    assert full.table[fields.MASK].tolist() == [0, -1, -1, -1, -1, -1, -1, -1]
    assert full.into.tolist() == [0, 1, 2, -1, -1, -1]
    assert full.masks.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert set(empty.table[fields.AT].tolist()) == {-1}


def test_several_masks_of_one_draw_allow_what_all_allow() -> None:
    masks = Masks(allowed=((0, np.array([3, 1, 0], np.uint32)), (0, np.array([6, 1, 1], np.uint32))))
    assert packed(draws([0]), masks).masks.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("room", [DrawRoom(1, 8, 1), DrawRoom(2, 1, 1), DrawRoom(2, 8, 0), DrawRoom(2, 8, 1, False)])
def test_what_does_not_fit_is_refused(room: DrawRoom) -> None:
    bias = ((1, np.array([3, 5], np.int32), np.array([2, 1], np.float32)),)
    drawn = draws([0, 1], bias=bias, temperature=1, top_k=[0, 5])
    masks = Masks(allowed=((0, np.ones(3, np.uint32)),))
    at = np.zeros(2, np.int32)
    assert pack_draws(drawn, at, masks, VOCAB, room) is None
    assert pack_draws(drawn, at, masks, VOCAB, DrawRoom(2, 2, 1)) is not None


# -- noise


def test_hashes_of_a_key_are_a_bijection_and_of_two_keys_unlike() -> None:
    tokens = np.arange(1 << 16, dtype=np.uint32)
    near = keys(np.array([5, 6, 5], np.uint64), np.array([7, 7, 8])).tolist()
    for first, second in [(1 << 32, 0), (7, (1 << 63) + 7), (near[0], near[1]), (near[0], near[2])]:
        a, b = hashes(first, tokens), hashes(second, tokens)
        assert len(np.unique(a)) == len(tokens)
        assert (a == b).sum() < 4  # next to none expected
        assert len(np.intersect1d(a, b)) < 9  # 1 expected


def test_every_bit_of_a_hash_is_fair_and_changes_with_the_token() -> None:
    rng = np.random.default_rng(0)
    tokens = np.arange(1 << 16, dtype=np.uint32)
    for key in rng.integers(0, 2**64, 4, dtype=np.uint64).tolist():
        bits = np.unpackbits(hashes(key, tokens).view(np.uint8)).reshape(len(tokens), 32)
        assert np.abs(bits.mean(0) - 0.5).max() < 0.01  # 5 standard deviations
        flipped = np.unpackbits((hashes(key, tokens) ^ hashes(key, tokens ^ np.uint32(1))).view(np.uint8))
        assert np.abs(flipped.reshape(len(tokens), 32).mean(0) - 0.5).max() < 0.02


def test_shares_are_uniform_and_never_0_or_1() -> None:
    made = keys(np.arange(40, dtype=np.uint64), np.arange(40, dtype=np.int64)).tolist()
    w = np.concatenate([shares(key, 5000) for key in made])
    assert w.dtype == np.float32 and w.min() > 0 and w.max() < 1
    counts = np.bincount((w * 100).astype(int), minlength=100)
    assert ((counts - 2000) ** 2 / 2000).sum() < 149  # chi-square, 99 degrees of freedom, p = 0.001; seeds are fixed
    assert (w < 1e-4).sum() == pytest.approx(20, abs=14)  # the end that decides


def test_gumbels_have_their_mean_and_variance_and_do_not_repeat() -> None:
    rows = np.stack([gumbels(seed, position, 3000) for seed in range(8) for position in range(8)])
    assert np.isfinite(rows).all()
    assert rows.mean() == pytest.approx(0.57722, abs=0.012)  # 4 standard deviations
    assert rows.var() == pytest.approx(np.pi**2 / 6, abs=0.03)
    together = np.corrcoef(rows)
    assert np.abs(together - np.eye(len(rows))).max() < 0.09  # 5 standard deviations of 3000 pairs
    assert abs(np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1]) < 0.01
    assert (gumbels(3, 4, 3000) == rows[3 * 8 + 4]).all()
