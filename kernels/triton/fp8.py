"""fp8 (e4m3) linear layers. In: a dense weight and bfloat16 activations. Out: bfloat16 activations.

Weights are scaled by output channel at load, activations by token in one kernel; the product is `torch._scaled_mm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ramet.frontend.errors import ModelError
from ramet.kernels.triton.aot import Variant
from ramet.kernels.triton.quantise import check
from ramet.kernels.triton.shapes import PROJECTIONS

LARGEST = 448.0  # of e4m3
_ALIGN = 16  # the product wants both dimensions of the weight in multiples of it
_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class Fp8:
    """A layer of `width` outputs and `columns` inputs. `weight` `[out, in] float8_e4m3fn`, both rounded up to 16;
    `scale` `[1, out] float32`; `bias` `[out] bfloat16` or None, rounded up too."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    width: int
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.weight.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)


@triton.jit
def round_rows(
    x: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    stride: tl.tensor,
    columns: tl.tensor,
    padded: tl.tensor,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per row: `scale[row]` is its largest magnitude / LARGEST, `out[row]` the row divided by it, with
    zeros from `columns` to `padded`. The scale of a row that is not finite is inf, and so no product of it is finite.
    Floor: 3 bytes an element; the second reading comes from L1 or L2."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, columns, BLOCK):
        values = tl.load(x + row * stride + begin + at, mask=begin + at < columns, other=0.0)
        sizes = tl.abs(values.to(tl.float32))
        largest = tl.maximum(largest, tl.where(sizes == sizes, sizes, float("inf")))  # the maximum alone drops nan
    step = tl.div_rn(tl.max(largest, 0), LARGEST)  # the plain division is an approximate one
    step = tl.where(step > 0, step, 1.0)
    tl.store(scale + row, step)
    for begin in range(0, padded, BLOCK):
        values = tl.load(x + row * stride + begin + at, mask=begin + at < columns, other=0.0)
        rounded = tl.clamp(tl.div_rn(values.to(tl.float32), step), -LARGEST, LARGEST)
        tl.store(out + row * padded + begin + at, rounded.to(out.dtype.element_ty), mask=begin + at < padded)


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Fp8:
    """`weight` `[out, in] bfloat16` in e4m3 with a float32 scale per output; keeps no reference to it.

    Relative RMS error of a layer's output on normal weights and activations, measured: 0.037. Raises `ModelError` for
    another dtype, a weight that is not finite, and a torch or device without the product.
    """
    check(weight, bias)
    if weight.dtype is not torch.bfloat16:
        raise ModelError(f"weights='fp8': dtype {weight.dtype} has no fp8 product; use dtype bfloat16")
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(
            f"weight {tuple(weight.shape)}: not every value is finite; use weights='dense' to look into it"
        )
    _probe(weight.device)
    width, columns = weight.shape
    rows, inner = width + -width % _ALIGN, columns + -columns % _ALIGN
    scale = torch.ones((1, rows), dtype=torch.float32, device=weight.device)
    largest = weight.abs().amax(1).to(torch.float32)
    scale[0, :width] = torch.where(largest > 0, largest / LARGEST, 1.0)
    packed = torch.zeros((rows, inner), dtype=torch.float8_e4m3fn, device=weight.device)
    step = max(1, (1 << 24) // columns)
    for at in range(0, width, step):
        part = weight[at : at + step].to(torch.float32) / scale[0, at : min(at + step, width), None]
        packed[at : at + part.shape[0], :columns] = part.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    kept = None if bias is None else torch.nn.functional.pad(bias.to(torch.bfloat16), (0, rows - width))
    return Fp8(packed, scale, kept, width, columns)


def _probe(device: torch.device) -> None:
    """Raises `ModelError` unless a product with scales of rows and columns works on `device`."""
    remedy = "use weights='int8' or 'dense'"
    if not hasattr(torch, "_scaled_mm"):
        raise ModelError(f"weights='fp8': torch {torch.__version__} has no fp8 product; {remedy}")
    try:
        tile = torch.zeros((_ALIGN, _ALIGN), dtype=torch.float8_e4m3fn, device=device)
        ones = torch.ones((_ALIGN, 1), dtype=torch.float32, device=device)
        torch._scaled_mm(tile, tile.T, scale_a=ones, scale_b=ones.T, out_dtype=torch.bfloat16)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0][:200]
        raise ModelError(f"weights='fp8': {device} has no fp8 product ({reason}); {remedy}") from error


def round_activations(x: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` `[rows, in]` → `[rows, padded] float8_e4m3fn` and `[rows, 1] float32`, whose product it is."""
    rows, columns = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = x.new_empty((rows, padded), dtype=torch.float8_e4m3fn)  # the kernel writes every element of both
    scale = x.new_empty((rows, 1), dtype=torch.float32)
    block = min(triton.next_power_of_2(padded), _BLOCK)
    round_rows[(rows,)](x, out, scale, x.stride(0), columns, padded, LARGEST, block, num_warps=_warps(block))
    return out, scale


def _warps(block: int) -> int:
    return min(8, max(1, block // 512))


def linear(x: torch.Tensor, layer: Fp8) -> torch.Tensor:
    """`x` `[rows, in] bfloat16` → `[rows, out]`. The product picks its tiles by the number of rows, so a row's bits may
    depend on that."""
    if x.shape[0] == 0:
        return x.new_empty((0, layer.width))
    rounded, scale = round_activations(x, layer.weight.shape[1])
    y = torch._scaled_mm(
        rounded, layer.weight.T, scale_a=scale, scale_b=layer.scale, bias=layer.bias, out_dtype=torch.bfloat16
    )
    return y[:, : layer.width]


def variants() -> tuple[Variant, ...]:
    """The rounding of activations for the widths of `PROJECTIONS` in bfloat16."""
    found = {}
    for columns in sorted({columns for _, columns in PROJECTIONS}):
        block = min(triton.next_power_of_2(columns), _BLOCK)
        signature = {"x": "*bf16", "out": "*fp8e4nv", "scale": "*fp32", "stride": "i32", "columns": "i32"}
        signature |= {"padded": "i32", "LARGEST": "constexpr", "BLOCK": "constexpr"}
        constants = {"LARGEST": LARGEST, "BLOCK": block}
        aligned = ("x", "out", "scale", "stride", "columns", "padded")
        name = f"fp8/round{block}"
        found[name] = Variant(name, round_rows, signature, constants, _warps(block), 2, aligned)
    return tuple(found.values())
