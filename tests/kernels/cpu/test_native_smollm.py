"""The default model on the native kernels: as near to float32 as torch's bfloat16 is, and the same bits in company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ramet.kernels.cpu.library import Pool
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import load_spec, resolve
from ramet.runtime.models.load import load_weights
from ramet.runtime.models.stored import stored
from ramet.runtime.native import NativeRunner
from ramet.runtime.packed import pack
from ramet.runtime.runner import TorchRunner

from ..ragged import Part, batch
from .nativemodel import lib

pytestmark = pytest.mark.model
TOKENS = np.random.default_rng(1).integers(5, 49000, 200).astype(np.int32)
SLOTS = np.random.default_rng(2).permutation(1024).astype(np.int32)
WHOLE = batch([Part(TOKENS, SLOTS, 0, 130)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of next-token distributions."""
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def by_torch(dtype: torch.dtype) -> np.ndarray:
    source = resolve("default")
    spec = load_spec(source)
    decoder = Decoder(spec, load_weights(source, spec, dtype), "cpu", dtype)
    flight = TorchRunner(decoder, capacity=1024, rows=4, context=512, threads=2).forward(WHOLE)
    assert flight.logits is not None
    return log_softmax(flight.logits.numpy())


def native(dtype: str) -> NativeRunner:
    source = resolve("default")
    spec, pool = load_spec(source), Pool(lib(), 2)
    return NativeRunner(pack(lib(), pool, spec, dtype, stored(source, spec)), pool, capacity=1024, rows=4, context=512)


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return by_torch(torch.float32)


def test_bfloat16_is_as_near_to_float32_as_torch(exact: np.ndarray) -> None:
    runner = native("bfloat16")
    ours, theirs = log_softmax(runner.forward(WHOLE).logits), by_torch(torch.bfloat16)
    assert divergence(exact, ours) <= 2 * divergence(exact, theirs)
    assert np.abs(ours - exact).max() <= 2 * np.abs(theirs - exact).max()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_fewer_bits_on_random_tokens(exact: np.ndarray, dtype: str) -> None:
    """Random tokens are several times harder on 8-bit activations than text is; the file has 4-bit weights."""
    assert divergence(exact, log_softmax(native(dtype).forward(WHOLE).logits)) <= 0.04


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_same_bits_in_chunks_and_company(dtype: str) -> None:
    runner = native(dtype)
    whole = runner.forward(WHOLE).logits.copy()
    pieces = []
    other = Part(TOKENS[::-1].copy(), SLOTS[300:], 0, 66)
    for start, stop in ((0, 1), (1, 63), (63, 65), (65, 129), (129, 130)):
        fresh = batch([other, Part(TOKENS, SLOTS, start, stop)])
        pieces.append(runner.forward(fresh).logits[66:].copy())
    assert np.array_equal(np.concatenate(pieces), whole)
