"""Sampling noise without state. In: a seed and a token's position. Out: one uniform number; the same on every device,
in every batch, in every process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.batch import I64, U64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def mix(z: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014; Stafford's variant 13): a bijection of 64-bit
    integers."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def uniforms(seeds: U64, positions: I64) -> NDArray[np.float64]:
    """`[R] float64` in [0, 1): the upper 52 bits of `mix(mix(seed + G) + position * G)`, G the golden-ratio increment.

    52 bits and not 53, so that `u * total` rounds to a number below `total` for every positive `total`.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        hashed = mix(mix(seeds.astype(np.uint64) + _GOLDEN) + positions.astype(np.int64).view(np.uint64) * _GOLDEN)
    return (hashed >> np.uint64(12)).astype(np.float64) * 2.0**-52
