"""Rotary frequencies and tables. In: a model's `Rope`. Out: float32 arrays, by numpy alone.

Half-split rotary embedding (Su et al. 2021) with the scalings of Llama 3.1 and of YaRN (Peng et al. 2023).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.models.spec import Rope

F32 = NDArray[np.float32]


def tables(rope: Rope, dim: int, context: int) -> tuple[F32, F32]:
    """`cos`, `sin` `[context, dim / 2] float32`, times the attention factor; angles in float32 as the models were
    trained."""
    angles = np.arange(context, dtype=np.float32)[:, None] * inverse_frequencies(rope, dim)
    factor = np.float32(attention_factor(rope))
    return np.cos(angles) * factor, np.sin(angles) * factor


def attention_factor(rope: Rope) -> float:
    """YaRN's temperature on cos and sin (Peng et al. 2023, section 3.4), with DeepSeek's mscale; 1 for other kinds."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def inverse_frequencies(rope: Rope, dim: int) -> F32:
    """`[dim / 2] float32`: radians per position of each pair of dimensions, after the scaling of `rope.kind`."""
    exponents = (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)).astype(np.float64)
    base: F32 = np.float32(1) / (rope.theta**exponents).astype(np.float32)  # float32 steps, each rounded correctly
    if rope.kind == "none":
        return base
    if rope.kind == "linear":
        return base / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(rope, base)
    return _yarn(rope, base, dim)


def _llama3(rope: Rope, base: F32) -> F32:
    """Llama 3.1: keep short wavelengths, divide long ones by the factor, blend linearly in turns per context
    between."""
    turns = rope.original_context * base / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clip(0, 1)
    scaled: F32 = (1 - blend) * base / rope.factor + blend * base
    return scaled


def _yarn(rope: Rope, base: F32, dim: int) -> F32:
    """YaRN's NTK-by-parts: interpolate dimensions with few turns over the original context, keep those with many."""

    def dimension(turns: float) -> float:
        return dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - low) / (high - low if high != low else 0.001)
    keep = 1 - ramp.clip(0, 1)
    scaled: F32 = base / rope.factor * (1 - keep) + base * keep
    return scaled
