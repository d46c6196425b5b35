"""Sampling noise without state. In: a seed and a token's position. Out: one uniform number for a draw on the CPU, one
Gumbel number per token for a draw on the GPU; both are functions of (seed, position) and the token alone, the same in
every batch and every process. The two devices draw from the same distribution, but not the same tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.batch import F32, I64, U32, U64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def mix(z: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014; Stafford's variant 13): a bijection of 64-bit
    integers."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def keys(seeds: U64, positions: I64) -> U64:
    """`[R] uint64`: `mix(mix(seed + G) + position * G)`, G the golden-ratio increment. One key is all noise of a
    draw."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        return mix(mix(seeds.astype(np.uint64) + _GOLDEN) + positions.astype(np.int64).view(np.uint64) * _GOLDEN)


def uniforms(seeds: U64, positions: I64) -> NDArray[np.float64]:
    """`[R] float64` in [0, 1): the upper 52 bits of the draws' keys.

    52 bits and not 53, so that `u * total` rounds to a number below `total` for every positive `total`.
    """
    return (keys(seeds, positions) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def hashes(key: int, tokens: U32) -> U32:
    """`uint32`, one per token: a 32-bit mixer of two multiplications (the constants and shifts that C. Wellons' search
    for low bias, hash-prospector, found), with the key's lower half added before and its upper half xored between.
    For one key it is a bijection of the tokens."""
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^32 is meant
        h = tokens.astype(np.uint32) + low
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x21F0AAAD)
        h = (h ^ (h >> np.uint32(15)) ^ high) * np.uint32(0xD35A2D97)
    return h ^ (h >> np.uint32(15))


def shares(key: int, vocab: int) -> F32:
    """`[V] float32`, one uniform number w per token in `[2^-32, 1 - 2^-24]`: finest near 0, where the largest Gumbel
    numbers come from, and never 0 or 1."""
    odd = hashes(key, np.arange(vocab, dtype=np.uint32)) | np.uint32(1)
    found: F32 = np.minimum(odd.astype(np.float32) * np.float32(2.0**-32), np.float32(1 - 2.0**-24))
    return found


def gumbels(seed: int, position: int, vocab: int) -> NDArray[np.float64]:
    """`[V] float64` standard Gumbel numbers of a draw: `-log(-log(1 - w))` of its `shares`. The token with the largest
    sum of logit / temperature and this is distributed as the softmax (Gumbel-max; Yellott 1977)."""
    key = int(keys(np.array([seed], np.uint64), np.array([position], np.int64))[0])
    found: NDArray[np.float64] = -np.log(-np.log1p(-shares(key, vocab).astype(np.float64)))
    return found
