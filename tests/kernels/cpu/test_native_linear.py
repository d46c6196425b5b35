"""Products of packed weights against float64, against torch at the same dtype, and their bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ModelError
from ramet.kernels.cpu import dense
from ramet.kernels.cpu.library import BF16, INT4, INT8

from .nativemodel import Matrix, levels, lib, pool

KINDS = pytest.mark.parametrize("kind", [BF16, INT8, INT4], ids=["bf16", "int8", "int4"])
LEVELS = pytest.mark.parametrize("level", levels())


def draw(m: int, n: int, k: int, kind: int, seed: int = 0, *, bias: bool = False) -> tuple[np.ndarray, Matrix]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(m, k)).astype(np.float32)
    added = rng.normal(size=n).astype(np.float32) if bias else None
    return x, Matrix(kind, rng.normal(size=(n, k)).astype(np.float32), bias=added)


def rounded(x: np.ndarray, kind: int) -> np.ndarray:
    """The activations that the kernels multiply, by the definition of the formats."""
    if kind == BF16:
        bits = x.view(np.uint32)
        return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).view(np.float32).astype(np.float64)
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % 64))).reshape(len(x), -1, 64)
    peak = np.abs(groups).max(-1, keepdims=True)
    q = np.round(groups * (np.float32(127) / np.maximum(peak, np.float32(1e-30))))
    return (q.astype(np.float64) * (peak / np.float32(127))).reshape(len(x), -1)[:, : x.shape[1]]


@LEVELS
@KINDS
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 130), st.integers(1, 14), st.booleans(), st.integers(0, 99))
def test_against_float64(level: str, kind: int, m: int, n: int, units: int, bias: bool, seed: int) -> None:
    """What is left beside the rounding of inputs is float32 accumulation."""
    x, w = draw(m, n, 16 * units, kind, seed, bias=bias)
    y = pool(2, level).linear(w.struct, x)
    a, b = rounded(x, kind), w.value.astype(np.float64)
    expected = a @ b.T + (0 if w.bias is None else w.bias)
    size = np.abs(a) @ np.abs(b).T + 1
    assert (np.abs(y - expected) <= size * 16 * units * 2**-24 + 1e-6).all()


@LEVELS
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 576), (13, 96, 1536), (64, 576, 64)])
def test_bf16_errs_at_most_twice_as_much_as_torch(level: str, m: int, n: int, k: int) -> None:
    x, w = draw(m, n, k, BF16)
    exact = x.astype(np.float64) @ w.value.astype(np.float64).T
    packed = dense.pack(torch.from_numpy(w.value).bfloat16(), None)
    theirs = dense.linear(torch.from_numpy(x).bfloat16(), packed).float().numpy()
    ours = pool(2, level).linear(w.struct, x)
    assert np.abs(ours - exact).max() <= 2 * np.abs(theirs - exact).max()
    assert ((ours - exact) ** 2).mean() <= 2 * ((theirs - exact) ** 2).mean()


@LEVELS
@KINDS
def test_a_rows_bits_depend_on_that_row_alone(level: str, kind: int) -> None:
    x, w = draw(37, 100, 208, kind, bias=True)
    one = pool(1, level)
    whole = one.linear(w.struct, x)
    for count in (1, 2, 3, 5, 6, 7, 11, 12, 13, 24, 25):
        for first in range(0, 37 - count, 9):
            assert np.array_equal(one.linear(w.struct, x[first : first + count]), whole[first : first + count])


@KINDS
@pytest.mark.parametrize("threads", [2, 3, 5, 8])
def test_the_same_bits_for_every_number_of_threads(kind: int, threads: int) -> None:
    x, w = draw(29, 333, 320, kind)
    for _ in range(5):
        assert np.array_equal(pool(threads).linear(w.struct, x), pool().linear(w.struct, x))


@LEVELS
@KINDS
def test_zeros_denormals_and_huge_values(level: str, kind: int) -> None:
    x, w = draw(4, 40, 128, kind)
    x[0], x[1], x[2, :64] = 0, 1e-40, 1e30
    y = pool(1, level).linear(w.struct, x)
    assert not y[0].any()
    assert np.abs(y[1]).max() < 1e-36
    expected = rounded(x, kind)[2] @ w.value.astype(np.float64).T
    assert np.allclose(y[2], expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


@LEVELS
@KINDS
def test_a_row_that_is_not_finite_spoils_no_other(level: str, kind: int) -> None:
    x, w = draw(9, 40, 128, kind)
    clean = pool(1, level).linear(w.struct, x)
    x[4] = np.nan
    y = pool(1, level).linear(w.struct, x)
    assert np.isnan(y[4]).all()
    assert np.array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))


def test_int8_levels_differ_by_rounding_alone() -> None:
    x, w = draw(20, 70, 576, INT8)
    results = [pool(1, level).linear(w.struct, x) for level in levels()]
    for other in results[1:]:
        assert np.allclose(other, results[0], rtol=0, atol=1e-5 * np.abs(results[0]).max())


def test_shapes_that_do_not_fit() -> None:
    x, w = draw(2, 8, 64, BF16)
    with pytest.raises(ModelError, match="takes 64 inputs"):
        pool().linear(w.struct, x[:, :32])
    with pytest.raises(ModelError, match="out of range"):
        pool().linear(Matrix(BF16, np.ones((2, 24), np.float32)).struct, np.ones((1, 24), np.float32))


def test_the_level_of_a_pool() -> None:
    assert pool().level == lib().level
    assert [pool(1, level).level for level in levels()] == list(levels())
