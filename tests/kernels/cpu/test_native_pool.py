"""Threads, and what the library refuses: nothing that a batch, a model or a number can hold may crash it."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.cpu import library
from ramet.kernels.cpu.library import BF16, LEVELS, Pool

from ..ragged import Part, batch
from .nativemodel import NativeModel, Shape, levels, lib, pool, ragged_of

TOKENS = np.arange(200, dtype=np.int32) % 150


@pytest.fixture(scope="module")
def model() -> NativeModel:
    return NativeModel(Shape(), capacity=300)


def two_segments() -> library.Ragged:
    """Two sequences that share two blocks, as a batch with one group."""
    shared = np.arange(128, dtype=np.int32)
    parts = [Part(TOKENS, np.concatenate((shared, [200 + i, 210 + i])).astype(np.int32), 129, 130) for i in range(2)]
    made = batch(parts)
    ragged = ragged_of(made, np.arange(2))
    assert ragged.groups == 1
    return ragged


@pytest.mark.parametrize("threads", [-1, 0, 257, 1000])
def test_numbers_of_threads(threads: int) -> None:
    with pytest.raises(EngineError, match="between 1 and 256"):
        Pool(lib(), threads)


def test_many_threads_start_and_end(model: NativeModel) -> None:
    expected = model.forward(batch([Part(TOKENS, TOKENS, 0, 20)]))
    many = Pool(lib(), 64)
    assert np.array_equal(model.forward(batch([Part(TOKENS, TOKENS, 0, 20)]), by=many), expected)
    many.close()
    many.close()


def test_levels_of_other_machines() -> None:
    with pytest.raises(ModelError, match="choose portable"):
        Pool(lib(), 1, "neon")
    for level in LEVELS[len(levels()) :]:
        with pytest.raises(ModelError, match="lacks the instructions"):
            Pool(lib(), 1, level)


def test_one_forward_at_a_time(model: NativeModel) -> None:
    """Whoever comes second is told so, and whoever is first is not disturbed."""
    busy, other = Pool(lib(), 1), NativeModel(Shape(layers=8), capacity=300)
    work = batch([Part(TOKENS, np.arange(200, dtype=np.int32), 0, 200)])
    expected = other.forward(work)
    refused, results = [], []

    def run(which: NativeModel) -> None:
        for _ in range(8):
            try:
                results.append((which, which.forward(work, by=busy)))
            except EngineError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=run, args=(m,)) for m in (other, NativeModel(Shape(layers=8), capacity=300))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("computing something else" in text for text in refused)
    assert len(refused) + len(results) == 16
    assert all(np.array_equal(logits, expected) for _, logits in results)


FIELDS = (
    "token", "position", "slot", "qo_indptr", "kv_indptr", "kv_indices", "row", "group_indptr", "group_segments",
    "group_start", "group_stop",
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10), st.integers(0, 300), st.sampled_from([-(2**31), -1, 0, 1, 2, 63, 64, 129, 300, 2**31 - 1]))
def test_a_batch_with_any_number_wrong(field: int, at: int, value: int) -> None:
    """Either it is refused, or what it says is a batch."""
    model, ragged = shared_model(), two_segments()
    array = ragged.arrays[field]
    array[at % len(array)] = value
    logits = np.zeros((2, model.shape.vocab), np.float32)
    refusal = ""
    try:
        pool().forward(model.model, model.cache, ragged, logits)
    except EngineError as error:
        refusal = str(error)
    assert "out of range" in refusal or (not refusal and np.isfinite(logits).all())


@functools.cache
def shared_model() -> NativeModel:
    return NativeModel(Shape(), capacity=300)


@pytest.mark.parametrize(("field", "value"), [("token", 150), ("slot", 300), ("position", 1024), ("row", 2)])
def test_the_first_index_out_of_range(model: NativeModel, field: str, value: int) -> None:
    ragged = two_segments()
    ragged.arrays[FIELDS.index(field)][0] = value
    with pytest.raises(EngineError, match="out of range"):
        pool().forward(model.model, model.cache, ragged, np.zeros((2, 150), np.float32))


def test_a_group_whose_members_do_not_share(model: NativeModel) -> None:
    ragged = two_segments()
    ragged.arrays[FIELDS.index("kv_indices")][3] = 7
    with pytest.raises(EngineError, match="out of range"):
        pool().forward(model.model, model.cache, ragged, np.zeros((2, 150), np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("hidden", 40), ("heads", 3), ("kv_heads", 0), ("head_dim", 512), ("vocab", 151), ("context", 0)],
)
def test_models_that_do_not_fit_together(field: str, value: int) -> None:
    model = NativeModel(Shape(), capacity=10)
    setattr(model.model, field, value)
    with pytest.raises(ModelError, match=r"out of range"):
        pool().check(model.model, model.cache)


@pytest.mark.parametrize("field", ["norm", "cos", "sin"])
def test_models_with_a_part_missing(field: str) -> None:
    model = NativeModel(Shape(), capacity=10)
    setattr(model.model, field, None)
    with pytest.raises(EngineError, match="null"):
        pool().check(model.model, model.cache)


def test_logits_that_are_too_small(model: NativeModel) -> None:
    with pytest.raises(ModelError, match="logits"):
        pool().forward(model.model, model.cache, two_segments(), np.zeros((1, 150), np.float32))


def test_weights_of_an_unknown_kind() -> None:
    model = NativeModel(Shape(), BF16, capacity=10)
    model.model.head.kind = 9
    with pytest.raises(ModelError, match="unknown kind"):
        pool().check(model.model, model.cache)
