"""Batch-invariant matrix product. In: activations `[rows, in]` and a weight. Out: `[rows, out]`, where the bits of a
row depend on that row alone: not on how many others there are, nor on its place among them.

A row's sum runs over the inputs in one order, without splitting them, through one instruction per layer (He et al.,
"Defeating Nondeterminism in LLM Inference", 2025). The number of rows changes how many such instructions stand side by
side, never which one, nor what it adds up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from ramet.kernels.triton.aot import SHARED_LIMIT, Variant
from ramet.kernels.triton.quantise import MULTIPROCESSORS, check
from ramet.kernels.triton.shapes import PROJECTIONS

FEW = 64  # rows that one warp group takes; from there on two stand side by side, of 64 rows each
_GROUP = 8  # tiles of rows that share a tile of the weight while it is in L2


@dataclass(frozen=True, slots=True)
class Tile:
    """The configuration of one (out, in, dtype): the product is cut into `width` outputs and steps of `depth` inputs;
    `stages` are those in flight for few and for many rows."""

    width: int
    depth: int
    stages: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Invariant:
    """`weight` `[out, in]`, row-major; `bias` `[out]` or None; `programs`: at most so many run at a time."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    tile: Tile
    programs: int

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@triton.jit(do_not_specialize=["rows"])
def matmul(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    BIAS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Persistent programs over tiles of BLOCK_M rows and BLOCK_N outputs; float32 sums, one step of BLOCK_K inputs
    after the other. Floor: the weight's bytes once, or 2 rows in out FLOPs."""
    tall = tl.cdiv(rows, BLOCK_M)
    tiles = tall * tl.cdiv(width, BLOCK_N)
    steps = tl.cdiv(columns, BLOCK_K)
    k = tl.arange(0, BLOCK_K)
    for tile in tl.range(
        tl.program_id(0), tiles, tl.num_programs(0)
    ):  # not flattened: that puts divisions in every step
        group = tile // (GROUP * tl.cdiv(width, BLOCK_N))
        height = tl.minimum(tall - group * GROUP, GROUP)
        inner = tile % (GROUP * tl.cdiv(width, BLOCK_N))
        m = (group * GROUP + inner % height) * BLOCK_M + tl.arange(0, BLOCK_M)
        n = (inner // height) * BLOCK_N + tl.arange(0, BLOCK_N)
        x_at = x + m[:, None].to(tl.int64) * stride
        # outputs beyond the last read the last one's weights: cheaper than a mask, and not stored
        weight_at = weight + tl.minimum(n, width - 1)[:, None].to(tl.int64) * columns
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in tl.range(0, steps, num_stages=STAGES):
            column = step * BLOCK_K + k
            if EVEN:
                a = tl.load(x_at + column[None, :], mask=(m < rows)[:, None], other=0.0)
                b = tl.load(weight_at + column[None, :])
            else:
                inside = (column < columns)[None, :]
                a = tl.load(x_at + column[None, :], mask=(m < rows)[:, None] & inside, other=0.0)
                b = tl.load(weight_at + column[None, :], mask=inside, other=0.0)
            total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
        if BIAS:
            total += tl.load(bias + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
        at = m[:, None].to(tl.int64) * width + n[None, :]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=(m < rows)[:, None] & (n < width)[None, :])


def tile_for(width: int, dtype: torch.dtype) -> Tile:
    """The tile of a layer. Narrow tiles keep many programs reading where the outputs are few; wide ones reuse what they
    read where the outputs alone give every multiprocessor work. float32 has no tensor core that is exact enough."""
    if dtype is torch.float32:
        return Tile(32, 32, (3, 3))
    if width >= 128 * MULTIPROCESSORS:
        return Tile(256, 64, (4, 4))
    if width >= 4096:
        return Tile(128, 64, (6, 4))
    if width >= 2048:
        return Tile(64, 64, (8, 5))
    return Tile(32, 128, (6, 4))


def fitted(tile: Tile, dtype: torch.dtype, shared: int) -> Tile:
    """`tile` with no more stages than `shared` bytes hold: a program has 227 KiB on a Hopper, 99 on an L4 or RTX 4090.
    Stages change when a load is issued and not what is added up, so the bits stay."""
    heights = (_constants(tile, few, dtype)["BLOCK_M"] for few in (True, False))
    most = (shared // ((height + tile.width) * tile.depth * dtype.itemsize) for height in heights)
    few, many = (min(pair) for pair in zip(tile.stages, most, strict=True))
    return replace(tile, stages=(few, many))


def pack(weight: torch.Tensor, bias: torch.Tensor | None, tile: Tile | None = None) -> Invariant:
    """`weight` `[out, in]` as it is (the same memory where it is contiguous). Raises `ModelError` for a shape or dtype
    that is not a linear layer's."""
    check(weight, bias)
    kept = None if bias is None else bias.to(weight.dtype).contiguous()
    chosen, programs, shared = tile or tile_for(weight.shape[0], weight.dtype), 4, SHARED_LIMIT
    if weight.is_cuda:
        device = torch.cuda.get_device_properties(weight.device)
        programs = device.multi_processor_count
        shared = int(getattr(device, "shared_memory_per_block_optin", 99 << 10))  # torch's type stubs lack it
    return Invariant(weight.contiguous(), kept, fitted(chosen, weight.dtype, shared), programs)


def linear(x: torch.Tensor, layer: Invariant) -> torch.Tensor:
    """`x` `[rows, in]` → `[rows, out]` in x's dtype, which is the weight's."""
    rows, (width, columns) = x.shape[0], layer.weight.shape
    out = x.new_empty((rows, width))  # every (row, output) is in a tile, which stores it
    if rows == 0:
        return out
    if x.stride(-1) != 1:
        x = x.contiguous()
    few = rows <= FEW
    constants = _constants(layer.tile, few, x.dtype)
    tiles = triton.cdiv(rows, constants["BLOCK_M"]) * triton.cdiv(width, layer.tile.width)
    matmul[(min(tiles, layer.programs),)](
        x,
        layer.weight,
        layer.weight if layer.bias is None else layer.bias,
        out,
        rows,
        columns,
        width,
        x.stride(0),
        **constants,
        EVEN=columns % layer.tile.depth == 0,
        BIAS=layer.bias is not None,
        num_warps=_warps(few, x.dtype),
    )
    return out


def _constants(tile: Tile, few: bool, dtype: torch.dtype) -> dict[str, Any]:
    block_m = 32 if dtype is torch.float32 else 64 if few else 128
    block = {"BLOCK_M": block_m, "BLOCK_N": tile.width, "BLOCK_K": tile.depth}
    return block | {"GROUP": _GROUP, "STAGES": tile.stages[0 if few else 1]}


def _warps(few: bool, dtype: torch.dtype) -> int:
    return 4 if few or dtype is torch.float32 else 8


def variants(shared: int = SHARED_LIMIT) -> tuple[Variant, ...]:
    """Both row classes of every distinct configuration of `PROJECTIONS` in bfloat16, for devices whose programs have
    `shared` bytes."""
    found: dict[str, Variant] = {}
    for width, columns in PROJECTIONS:
        tile = fitted(tile_for(width, torch.bfloat16), torch.bfloat16, shared)
        even = columns % tile.depth == 0
        for few in (True, False):
            name = f"invariant/{'few' if few else 'many'}/n{tile.width}{'' if even else '/ragged'}"
            constants = _constants(tile, few, torch.bfloat16) | {"EVEN": even, "BIAS": tile.width == 128}
            pointers = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16")
            sizes = dict.fromkeys(("rows", "columns", "width", "stride"), "i32")
            signature = pointers | sizes | dict.fromkeys(constants, "constexpr")
            aligned = (*pointers, "columns", "width", "stride")
            found[name] = Variant(name, matmul, signature, constants, _warps(few, torch.bfloat16), 3, aligned)
    return tuple(found.values())
