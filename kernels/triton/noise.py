"""The Gumbel noise of `ramet.kernels.noise` on the device. In: the two halves of a draw's key, and tokens. Out: one
number per token, in units of log 2, so that a score needs base-2 functions only."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

# the interpreter has no libdevice; there log2 is numpy's
_INTERPRETED: tl.constexpr = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def _log2(x: tl.tensor) -> tl.tensor:
    """The hardware's logarithm of a normal x > 0, one instruction: absolute error 2^-22 in (0.5, 2), relative
    elsewhere. (The accurate one takes about twenty, and sampling takes two per token of the vocabulary.)"""
    return tl.log2(x) if _INTERPRETED else libdevice.fast_log2f(x)


@triton.jit
def shares(low: tl.tensor, high: tl.tensor, token: tl.tensor) -> tl.tensor:
    """`ramet.kernels.noise.shares` of `token` int32, bit for bit: float32 in [2^-32, 1 - 2^-24]. low, high: the key's
    halves, int32 scalars."""
    h = token.to(tl.uint32) + low.to(tl.uint32, bitcast=True)
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15) ^ high.to(tl.uint32, bitcast=True)) * 0xD35A2D97
    h = (h ^ (h >> 15)) | 1
    return tl.minimum(h.to(tl.float32) * 2.3283064365386963e-10, 0.999999940395355224609375)  # 2^-32, 1 - 2^-24


@triton.jit
def gumbel2(low: tl.tensor, high: tl.tensor, token: tl.tensor) -> tl.tensor:
    """Gumbel numbers of `token` divided by log 2, up to one constant that all tokens share.

    -log2(E) with E = -log2(1 - w); below w = 2^-5, where 1 - w has lost w's precision, E is a series. Relative error of
    E below 2^-17, which is the error of a probability. About 25 instructions.
    """
    w = shares(low, high, token)
    series = w * (1.4426950408889634 + w * (0.7213475204444817 + w * (0.4808983469629878 + w * 0.36067376022224085)))
    return -_log2(tl.where(w < 0.03125, series, -_log2(1.0 - w)))
