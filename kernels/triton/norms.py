"""RMS norm with the residual addition before it, one pass. In: the float32 residual stream and a layer's output. Out:
the sum in place of the residual, and its norm in the dtype of the next linear layer."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ramet.kernels.ops import Norm
from ramet.kernels.triton.aot import Variant

_ROW = 8192  # elements of a row that are held in registers; longer rows are read twice,
_PART = 4096  # this many at a time


@triton.jit
def add_rmsnorm(
    residual: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    out: tl.tensor,
    residual_stride: tl.tensor,
    delta_stride: tl.tensor,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """One program per row of E elements, which stays in registers; sums in float32.

    Floor: residual read and written (8 E bytes), delta read and norm written (2 E itemsize); without `ADD` 4 E + E
    itemsize. The weight stays in L2.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < E
    w = tl.load(weight + at, inside, 0.0)
    x = tl.load(residual + row * residual_stride + at, inside, 0.0)
    if ADD:
        x += tl.load(delta + row * delta_stride + at, inside, 0.0).to(tl.float32)
        tl.store(residual + row * residual_stride + at, x, inside)
    scale = tl.rsqrt(tl.sum(x * x, 0) / E + tl.load(eps))
    tl.store(out + row * E + at, (x * scale * w).to(out.dtype.element_ty), inside)


@triton.jit
def add_rmsnorm_long(
    residual: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    out: tl.tensor,
    residual_stride: tl.tensor,
    delta_stride: tl.tensor,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """`add_rmsnorm` for rows that do not fit the registers: the second reading of the row comes from L2. Floor: the
    same."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, E, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        x = tl.load(residual + row * residual_stride + at, at < E, 0.0)
        if ADD:
            x += tl.load(delta + row * delta_stride + at, at < E, 0.0).to(tl.float32)
            tl.store(residual + row * residual_stride + at, x, at < E)
        squares += x * x
    scale = tl.rsqrt(tl.sum(squares, 0) / E + tl.load(eps))
    if ADD:
        tl.debug_barrier()  # a thread may read what another one of the program stored
    for begin in range(0, E, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        x = tl.load(residual + row * residual_stride + at, at < E, 0.0)
        w = tl.load(weight + at, at < E, 0.0)
        tl.store(out + row * E + at, (x * scale * w).to(out.dtype.element_ty), at < E)


def rmsnorm(residual: torch.Tensor, delta: torch.Tensor | None, norm: Norm, dtype: torch.dtype) -> torch.Tensor:
    """See `Ops.rmsnorm`: `residual` `[rows, E] float32` and `delta` `[rows, E]` may have any row stride."""
    rows, width = residual.shape
    assert residual.stride(1) == 1 and (delta is None or delta.stride(1) == 1), "rows are contiguous"
    out = torch.empty(rows, width, dtype=dtype, device=residual.device)  # every element is written below
    if rows == 0:
        return out
    block, warps = _launch(width)
    kernel = add_rmsnorm if width <= block else add_rmsnorm_long
    kernel[(rows,)](
        residual,
        residual if delta is None else delta,
        norm.weight,
        norm.eps,
        out,
        residual.stride(0),
        0 if delta is None else delta.stride(0),
        E=width,
        BLOCK=block,
        ADD=delta is not None,
        num_warps=warps,
    )
    return out


def _launch(width: int) -> tuple[int, int]:
    """BLOCK and warps: up to 32 elements a thread, and at least 8 so that accesses have 16 bytes."""
    block = 1 << (width - 1).bit_length() if width <= _ROW else _PART
    return block, max(1, min(8, block // 256))


def variants() -> tuple[Variant, ...]:
    """Hidden sizes of SmolLM2-135M, Qwen3-0.6B, Llama 3.2 1B, Llama 3.1 8B, Qwen2.5-14B and beyond the registers."""
    return tuple(
        _variant(width, "bf16", add) for width in (576, 1024, 2048, 4096, 5120, 12288) for add in (True, False)
    )


def _variant(width: int, dtype: str, add: bool) -> Variant:
    block, warps = _launch(width)
    pointers = {"residual": "*fp32", "delta": f"*{dtype}" if add else "*fp32", "weight": "*fp32", "eps": "*fp32"}
    constants: dict[str, Any] = {"E": width, "BLOCK": block, "ADD": add}
    return Variant(
        name=f"rmsnorm/{'add/' if add else ''}{dtype}/e{width}",
        kernel=add_rmsnorm if width <= block else add_rmsnorm_long,
        signature=pointers
        | {"out": f"*{dtype}", "residual_stride": "i32", "delta_stride": "i32"}
        | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        warps=warps,
        aligned=("residual", "delta", "weight", "eps", "out", "residual_stride", "delta_stride"),
    )
