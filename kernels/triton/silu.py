"""The gated activation of the MLP. In: gate and up halves side by side, one token a row. Out: their product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ramet.kernels.triton.aot import Variant

_BLOCK = 1024  # elements a program: 8 a thread, 16 bytes of bfloat16


@triton.jit
def silu_rows(
    x: tl.tensor, out: tl.tensor, stride: tl.tensor, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """One program per BLOCK columns of a row, in float32.

    Floor: 3 rows x WIDTH x itemsize bytes (gate and up read, product written).
    """
    program = tl.program_id(0)
    row = (program // BLOCKS).to(tl.int64)
    at = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    gate = tl.load(x + row * stride + at, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * stride + WIDTH + at, inside, 0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + at, product.to(out.dtype.element_ty), inside)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `Ops.silu_mul`: `x` `[rows, 2 I]` of any row stride → `[rows, I]` in its dtype."""
    rows, width = x.shape[0], x.shape[1] // 2
    assert x.stride(1) == 1 and x.shape[1] % 2 == 0, "contiguous rows of two halves"
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)  # every element is written below
    if rows:
        blocks = triton.cdiv(width, _BLOCK)
        silu_rows[(rows * blocks,)](x, out, x.stride(0), WIDTH=width, BLOCKS=blocks, BLOCK=_BLOCK, num_warps=4)
    return out


def variants() -> tuple[Variant, ...]:
    """Intermediate sizes of SmolLM2-135M, Qwen3-0.6B, Llama 3.2 1B and Llama 3.1 8B."""
    return tuple(_variant(width) for width in (1536, 3072, 8192, 14336))


def _variant(width: int) -> Variant:
    constants = {"WIDTH": width, "BLOCKS": triton.cdiv(width, _BLOCK), "BLOCK": _BLOCK}
    signature = {"x": "*bf16", "out": "*bf16", "stride": "i32"} | dict.fromkeys(constants, "constexpr")
    return Variant(f"silu/bf16/i{width}", silu_rows, signature, constants, aligned=("x", "out", "stride"))
