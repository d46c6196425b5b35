"""int4 weight-only linear layers. In: a dense weight and activations. Out: `Quantised` and activations.

A scale per 64 inputs and output; `quantise` has the rounding and `skinny` the kernels.
"""

from __future__ import annotations

import torch

from ramet.kernels.triton import skinny
from ramet.kernels.triton.aot import Variant
from ramet.kernels.triton.quantise import Quantised, quantise


def pack(weight: torch.Tensor, bias: torch.Tensor | None, *, tiled: bool = False) -> Quantised:
    """`weight` `[out, in]` in 4 bits; see `quantise`. `tiled` takes the packed kernel for every number of rows, so that
    a row's bits depend on nothing but the row.

    Relative RMS error of a layer's output on normal weights and activations, measured: 0.091.
    """
    return quantise(weight, bias, 4, tiled=tiled)


linear = skinny.linear


def variants() -> tuple[Variant, ...]:
    """See `skinny.variants`."""
    return skinny.variants(4)
