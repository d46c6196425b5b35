"""The whole forward against float64 and torch; the same bits for every batch, chunk, group and number of threads."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.kernels.cpu.library import BF16, INT4, INT8

from ..forest import CAPACITY, Tree, forests
from ..ragged import Part, batch
from .nativemodel import NativeModel, Shape, levels, pool, ragged_of

RNG = np.random.default_rng(5)
TOKENS = RNG.integers(0, 150, 400).astype(np.int32)
SLOTS = RNG.permutation(2048).astype(np.int32)
SHAPES = {
    "plain": Shape(),
    "wide": Shape(heads=6, kv_heads=2, head_dim=64, hidden=192, intermediate=130, vocab=161),
    "qwen2": Shape(bias=True, heads=3, kv_heads=3, head_dim=16),
    "qwen3": Shape(qk_norm=True, tied=False, head_dim=128, hidden=64),
    "windowed": Shape(window=70, head_dim=48, layers=3),
    "narrow": Shape(window=1, heads=8, kv_heads=1, head_dim=80),
    "large head": Shape(head_dim=256, heads=2, kv_heads=1, layers=1),
}
NOISE = {BF16: 0.02, INT8: 0.09, INT4: 0.09}  # rms of logits of order 1; activations are rounded in every layer


def part(start: int, stop: int, offset: int = 0) -> Part:
    return Part(TOKENS, SLOTS[offset : offset + stop], start, stop)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("level", [levels()[-1], "portable"])
def test_against_float64(name: str, level: str) -> None:
    model = NativeModel(SHAPES[name])
    for length in (1, 130, 200):
        expected = model.reference(TOKENS[:length])
        logits = model.forward(batch([part(0, length)]), by=pool(2, level))
        assert np.sqrt(((logits - expected) ** 2).mean()) <= NOISE[BF16] * expected.std()


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("kind", [BF16, INT8, INT4])
@pytest.mark.parametrize("tied", [True, False])
def test_kinds_and_levels(level: str, kind: int, tied: bool) -> None:
    model = NativeModel(Shape(hidden=128, intermediate=256, tied=tied), kind)
    expected = model.reference(TOKENS[:100])
    logits = model.forward(batch([part(0, 100)]), by=pool(1, level))
    assert np.sqrt(((logits - expected) ** 2).mean()) <= NOISE[kind] * expected.std()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_shapes(data: st.DataObject) -> None:
    """Any shape that the kernels take."""
    kv_heads = data.draw(st.sampled_from([1, 2, 3]))
    shape = Shape(
        layers=data.draw(st.integers(1, 2)),
        hidden=16 * data.draw(st.integers(1, 9)),
        heads=kv_heads * data.draw(st.sampled_from([1, 2, 5, 7])),
        kv_heads=kv_heads,
        head_dim=16 * data.draw(st.integers(1, 9)),
        intermediate=data.draw(st.integers(1, 200)),
        vocab=data.draw(st.integers(2, 100)),
        bias=data.draw(st.booleans()),
        qk_norm=data.draw(st.booleans()),
        window=data.draw(st.sampled_from([0, 1, 5, 64, 65])),
        tied=data.draw(st.booleans()),
    )
    model = NativeModel(shape, seed=data.draw(st.integers(0, 5)), capacity=200)
    length = data.draw(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129]))
    tokens = TOKENS[:length] % shape.vocab
    expected = model.reference(tokens)
    whole = Part(tokens, RNG.permutation(200)[:length].astype(np.int32), 0, length)
    logits = model.forward(batch([whole]), by=pool(2))
    assert np.sqrt(((logits - expected) ** 2).mean()) <= 0.05 * np.sqrt((expected**2).mean()) + 1e-3


@pytest.fixture(scope="module", params=[(kind, name) for kind in (BF16, INT8) for name in ("plain", "windowed")])
def model(request: pytest.FixtureRequest) -> NativeModel:
    kind, name = request.param
    return NativeModel(SHAPES[name], kind, capacity=CAPACITY)


@pytest.mark.parametrize("cuts", [(1,), (63,), (64,), (65,), (127, 128, 129), (1, 2, 3, 199), tuple(range(40, 200))])
def test_chunks(model: NativeModel, cuts: tuple[int, ...]) -> None:
    whole = model.forward(batch([part(0, 200)]))
    bounds = (0, *cuts, 200)
    parts = [model.forward(batch([part(a, b)])) for a, b in pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_company(model: NativeModel) -> None:
    """Sequences of all lengths around a block, alone and together, in any order, at other slots."""
    lengths = [1, 2, 63, 64, 65, 96, 127, 128, 129, 300]
    alone = []
    for n in lengths:
        model.forward(batch([part(0, n)]), rows=[])
        alone.append(model.forward(batch([part(n - 1 if n % 2 else 0, n)])))
    for order in (range(10), range(9, -1, -1)):
        parts = []
        for i in order:
            n, at = lengths[i], 1000 * (i + 1)
            own = Part(TOKENS, np.arange(at, at + n, dtype=np.int32)[::-1].copy(), 0, n)
            model.forward(batch([own]))
            parts.append(replace(own, start=n - 1 if n % 2 else 0))
        logits = np.split(model.forward(batch(parts), by=pool(2)), np.cumsum([p.stop - p.start for p in parts])[:-1])
        for i, mine in zip(order, logits, strict=True):
            assert np.array_equal(mine, alone[i])


@pytest.mark.parametrize("threads", range(2, 9))
def test_threads(model: NativeModel, threads: int) -> None:
    parts = [part(0, 150), part(0, 1, 500), part(0, 70, 600), part(0, 66, 700)]
    assert np.array_equal(model.forward(batch(parts), by=pool(threads)), model.forward(batch(parts)))


@settings(max_examples=40, deadline=None)
@given(forests(lengths=st.integers(1, 90), trunk=st.sampled_from([5, 64, 65, 100, 128, 200]), nodes=7))
def test_groups_change_no_bit(tree: Tree) -> None:
    model = grouped()
    parts = tree.parts()
    parts = [replace(one, tokens=one.slots % 150) for one in parts]  # a token's id follows from its slot
    for one in parts:  # history first, as it would be in the cache
        model.forward(batch([replace(one, start=0)]), rows=[])
    fresh = batch(parts)
    together = model.forward(fresh, by=pool(2))
    assert np.array_equal(together, model.forward(fresh, grouped=False))
    ends = np.cumsum([one.stop - one.start for one in parts])
    for one, end in zip(parts, ends, strict=True):
        count = one.stop - one.start
        assert np.array_equal(model.forward(batch([one])), together[end - count : end])


def test_nested_groups(model: NativeModel) -> None:
    """Eight branches over 128 positions, four of which share 64 more; two levels, and rows for several items."""
    trunk, limb = SLOTS[:128], SLOTS[128:192]
    parts = []
    for i in range(8):
        own = SLOTS[200 + 70 * i :][: 1 + 9 * i]
        path = np.concatenate((trunk, limb, own) if i % 2 else (trunk, own))
        model.forward(batch([Part(path % 150, path, 0, len(path))]), rows=[])
        parts.append(Part(path % 150, path, len(path) - 1 - i, len(path)) if i else Part(path % 150, path, 128, 129))
    fresh = batch(parts)
    assert ragged_of(fresh, np.arange(1)).groups == 2
    for threads in (1, 2, 5):
        together = model.forward(fresh, by=pool(threads))
        assert np.array_equal(together, model.forward(fresh, grouped=False))


@functools.cache
def grouped() -> NativeModel:
    return NativeModel(Shape(heads=3, kv_heads=1, window=150), capacity=CAPACITY)


def test_only_wanted_rows(model: NativeModel) -> None:
    fresh = batch([part(0, 40), part(0, 9, 300)])
    every = model.forward(fresh)
    assert np.array_equal(model.forward(fresh, rows=[48, 0, 7, 7]), every[[48, 0, 7, 7]])
    assert model.forward(fresh, rows=[]).shape == (0, model.shape.vocab)


def test_slots_of_others_are_left_alone(model: NativeModel) -> None:
    model.forward(batch([part(0, 100)]))
    before = model.slots().copy()
    mine = SLOTS[100:130]
    model.forward(batch([Part(TOKENS, mine, 0, 30)]))
    changed = (model.slots() != before).any(axis=(0, 1, 2, 4))
    assert set(np.flatnonzero(changed)) <= set(mine.tolist())


def test_an_empty_batch(model: NativeModel) -> None:
    assert model.forward(batch([])).shape == (0, model.shape.vocab)
