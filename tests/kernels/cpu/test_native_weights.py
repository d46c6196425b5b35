"""Packed weights: every source type, exactly what the formats can hold, columns, padding, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.cpu.library import BF16, INT4, INT8, SOURCES, Pool

from .nativemodel import bf16, from_bf16, lib, pool

BLOCKS = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
HALVES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def packed(kind: int, rows: np.ndarray, k: int, source: str, columns: np.ndarray, n: int = 0, by: Pool | None = None):
    n = n or len(columns)
    memory = lib().map(lib().weight_bytes(kind, n, k))
    view = memory.view(0, memory.nbytes)
    (by or pool()).pack(kind, n, k, view, source, rows, columns)
    return view


def there_and_back(kind: int, rows: np.ndarray, k: int, source: str = "F32") -> np.ndarray:
    columns = np.random.default_rng(1).permutation(len(rows)).astype(np.int32)
    view = packed(kind, np.ascontiguousarray(rows), k, source, columns)
    return lib().unpack(kind, len(rows), k, view, columns)


def random_blocks(source: str, rows: int, k: int, seed: int = 0) -> np.ndarray:
    """Random bytes with scales that are finite float16 numbers of order 1."""
    rng = np.random.default_rng(seed)
    size, values = BLOCKS[source], 256 if source.endswith("K") else 32
    raw = rng.integers(0, 256, (rows, k // values, size), dtype=np.uint8)
    for at in HALVES[source]:
        raw[:, :, at : at + 2] = rng.normal(size=(rows, k // values, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("k", [1, 2, 63, 64, 65, 200])
def test_bf16_is_rounded_to_nearest_even(k: int) -> None:
    w = np.random.default_rng(k).normal(size=(37, k)).astype(np.float32)
    assert np.array_equal(there_and_back(BF16, w, k), from_bf16(bf16(w)))


def test_bf16_takes_its_own_bits_and_denormals() -> None:
    bits = np.concatenate((np.arange(0, 256), np.arange(0x8000, 0x8100), [0x7F7F, 0xFF7F])).astype(np.uint16)[None]
    assert np.array_equal(bf16(there_and_back(BF16, bits, bits.shape[1], "BF16")), bits)


def test_f16_is_read_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[(bits & 0x7C00) != 0x7C00]
    half = bits.view(np.float16)[None]
    assert np.array_equal(there_and_back(BF16, half, half.shape[1], "F16"), from_bf16(bf16(half.astype(np.float32))))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 200), st.sampled_from([1e-20, 1e-3, 1.0, 1e4]), st.integers(0, 9))
def test_int8_is_within_half_a_step(n: int, k: int, size: float, seed: int) -> None:
    w = (np.random.default_rng(seed).normal(size=(n, k)) * size).astype(np.float32)
    back = there_and_back(INT8, w, k)
    for g in range(0, k, 64):
        step = np.abs(w[:, g : g + 64]).max(1, keepdims=True) / 127 * (1 + 2**-7)
        assert (np.abs(back - w)[:, g : g + 64] <= step * 0.501).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 200), st.sampled_from([1e-2, 1.0, 1e3]), st.integers(0, 9))
def test_int4_is_within_half_a_step(n: int, k: int, size: float, seed: int) -> None:
    w = (np.random.default_rng(seed).normal(size=(n, k)) * size).astype(np.float32)
    back = there_and_back(INT4, w, k)
    padded = np.pad(w, ((0, 0), (0, -k % 32)))
    for g in range(0, k, 32):
        part = padded[:, g : g + 32]
        width = part.max(1, keepdims=True) - part.min(1, keepdims=True)
        allowed = 0.5 * width / 15 + 2**-10 * np.abs(part).max(1, keepdims=True) + 1e-6
        assert (np.abs(back - w)[:, g : g + 32] <= allowed).all()


@pytest.mark.parametrize("source", sorted(BLOCKS))
def test_blocks_mean_what_gguf_says(source: str) -> None:
    raw = random_blocks(source, 9, 512)
    expected = quants.dequantize(raw, GGMLQuantizationType[source]).astype(np.float32)
    assert np.array_equal(there_and_back(BF16, raw, 512, source), from_bf16(bf16(expected)))


@pytest.mark.parametrize(("source", "exact"), [("Q4_0", True), ("Q4_1", True), ("Q4_K", False)])
def test_int4_keeps_a_files_nibbles(source: str, exact: bool) -> None:
    raw = random_blocks(source, 9, 512)
    expected = quants.dequantize(raw, GGMLQuantizationType[source]).astype(np.float32)
    back = there_and_back(INT4, raw, 512, source)
    if exact:
        assert np.array_equal(back, expected)
    else:  # scale times sub-scale is rounded to float16
        assert np.abs(back - expected).max() <= 2**-10 * np.abs(expected).max() * 2


@pytest.mark.parametrize("kind", [BF16, INT8, INT4])
def test_rows_in_pieces_by_many_threads_are_the_same_bytes(kind: int) -> None:
    w = np.random.default_rng(0).normal(size=(150, 96)).astype(np.float32)
    columns = np.random.default_rng(1).permutation(160)[:150].astype(np.int32)
    whole = packed(kind, w, 96, "F32", columns, 160)
    memory = lib().map(len(whole))
    parts, threads = memory.view(0, len(whole)), Pool(lib(), 4)
    for some in (slice(100, 150), slice(0, 100)):
        threads.pack(kind, 160, 96, parts, "F32", np.ascontiguousarray(w[some]), columns[some])
    threads.close()
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("kind", [BF16, INT8])
def test_columns_that_nobody_packed_are_zero(kind: int) -> None:
    view = packed(kind, np.ones((2, 64), np.float32), 64, "F32", np.array([5, 40], np.int32), 60)
    rest = np.setdiff1d(np.arange(60), [5, 40]).astype(np.int32)
    assert not lib().unpack(kind, 60, 64, view, rest).any()


def test_what_does_not_fit_is_refused() -> None:
    w, columns = np.ones((2, 64), np.float32), np.array([0, 1], np.int32)
    room = np.zeros(lib().weight_bytes(BF16, 2, 64), np.uint8)
    with pytest.raises(ModelError, match="packed"):
        pool().pack(BF16, 2, 64, room[:-1], "F32", w, columns)
    with pytest.raises(ModelError, match="values"):
        pool().pack(BF16, 2, 64, room, "F32", w[:1], columns)
    for wrong in ([0, 2], [-1, 0]):
        with pytest.raises(ModelError, match="size is out of range"):
            pool().pack(BF16, 2, 64, room, "F32", w, np.array(wrong, np.int32))
    with pytest.raises(ModelError, match="out of range"):
        pool().pack(BF16, 2, 40, room, "Q8_0", w, columns)
    assert lib().weight_bytes(3, 2, 64) == lib().weight_bytes(BF16, 0, 64) == lib().weight_bytes(BF16, 2, -1) == 0
    assert {name: lib().row_bytes(name, 256) for name in SOURCES if name in BLOCKS} == {
        name: size * (1 if name.endswith("K") else 8) for name, size in BLOCKS.items()
    }


def test_more_memory_than_there_is() -> None:
    with pytest.raises(ModelError, match="no memory for"):
        lib().map(1 << 60)


def test_a_closed_pool() -> None:
    closed = Pool(lib(), 3)
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.pack(BF16, 1, 1, np.zeros(4096, np.uint8), "F32", np.ones((1, 1), np.float32), np.zeros(1, np.int32))
