"""Linear layers over quantised weights. In: activations and a `Quantised` layer. Out: activations.

Few rows: a matrix product that reads the packed weights once, `[outputs, inputs] x [inputs, rows]`, so that outputs are
the 64 rows of a Hopper matrix instruction and the codes go from registers into the tensor core. Many rows: the weight
is expanded a piece at a time for cuBLAS. Sums are split along the inputs by shape alone and added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ramet.frontend.errors import ModelError
from ramet.kernels.triton.aot import Variant
from ramet.kernels.triton.quantise import MULTIPROCESSORS, Form, Quantised, form
from ramet.kernels.triton.shapes import PROJECTIONS

# By its disassembly the loop issues 35 (int8) and 21 (int4) bytes of weights a clock and multiprocessor, with 64-long
# slices; memory delivers 13 on an H100 and 19 on an H200.
ROWS = 32  # rows of one program, for every number of rows: a row's bits do not depend on the others
FEW = 64  # up to here the packed kernel; a second tile of rows reads the weights from L2, the expanded path from memory
STAGES = 4
_EXPANDED = 64 << 20  # bytes of expanded weights that exist at a time
_TILED = 256  # rows of one launch in tiled mode, to bound the partial sums

# Two codes of neighbouring inputs share a register. 0x4300 is the bfloat16 128, whose last place is 1: OR-ing a code
# into its mantissa gives 128 + code exactly, and one packed subtraction removes the offset. (lop3 0xEA: a & b | c.)
_UNPACK4 = tl.constexpr("""{
.reg .b32 shifted<3>, biased<4>, offset;
mov.b32 offset, 0x43084308;
shr.u32 shifted0, $4, 4;
shr.u32 shifted1, $4, 8;
shr.u32 shifted2, $4, 12;
lop3.b32 biased0, $4, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 biased1, shifted0, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 biased2, shifted1, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 biased3, shifted2, 0x000F000F, 0x43004300, 0xEA;
sub.rn.bf16x2 $0, biased0, offset;
sub.rn.bf16x2 $1, biased1, offset;
sub.rn.bf16x2 $2, biased2, offset;
sub.rn.bf16x2 $3, biased3, offset;
}""")
# A signed byte is its low 7 bits less its top bit: (128 + low) - (128 + top), and 128 + 128 is the next exponent.
_UNPACK8 = tl.constexpr("""{
.reg .b32 shifted, low<2>, top<2>;
shr.u32 shifted, $2, 8;
lop3.b32 low0, $2, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 top0, $2, 0x00800080, 0x43004300, 0xEA;
lop3.b32 low1, shifted, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 top1, shifted, 0x00800080, 0x43004300, 0xEA;
sub.rn.bf16x2 $0, low0, top0;
sub.rn.bf16x2 $1, low1, top1;
}""")
_TWO, _FOUR = tl.constexpr((tl.bfloat16,) * 2), tl.constexpr((tl.bfloat16,) * 4)


# The branches below are expressions, because Triton goes on after a return in a branch.
@triton.jit
def _unpack8(words: tl.tensor, FAST: tl.constexpr, DTYPE: tl.constexpr) -> Any:
    """The two slices of `words` `int16` as exact integers in DTYPE."""
    return (
        tl.inline_asm_elementwise(_UNPACK8, "=r,=r,r", [words], dtype=_TWO, is_pure=True, pack=2)
        if FAST
        else (((words << 8) >> 8).to(DTYPE), (words >> 8).to(DTYPE))
    )


@triton.jit
def _unpack4(words: tl.tensor, FAST: tl.constexpr, DTYPE: tl.constexpr) -> Any:
    """The four slices of `words` `int16` as exact integers in DTYPE."""
    return (
        tl.inline_asm_elementwise(_UNPACK4, "=r,=r,=r,=r,r", [words], dtype=_FOUR, is_pure=True, pack=2)
        if FAST
        else (
            ((words & 15) - 8).to(DTYPE),
            (((words >> 4) & 15) - 8).to(DTYPE),
            (((words >> 8) & 15) - 8).to(DTYPE),
            (((words >> 12) & 15) - 8).to(DTYPE),
        )
    )


@triton.jit
def _scale(at: tl.tensor) -> Any:
    return tl.load(at).to(tl.float32)


@triton.jit
def _scales(at: tl.tensor, GROUPS: tl.constexpr, PANEL: tl.constexpr) -> Any:
    """The scales of one block, a tuple of GROUPS vectors `[PANEL] float32`."""
    return (
        (_scale(at),)
        if GROUPS == 1
        else (_scale(at), _scale(at + PANEL))
        if GROUPS == 2
        else (_scale(at), _scale(at + PANEL), _scale(at + 2 * PANEL), _scale(at + 3 * PANEL))
    )


@triton.jit
def _write(
    total: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    row: tl.tensor,
    live: tl.tensor,
    column: tl.tensor,
    width: tl.tensor,
    BIAS: tl.constexpr,
) -> None:
    """Store `total` `[columns, rows]` to the row-major `out`."""
    inside = column < width
    if BIAS:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[:, None]
    tl.store(out + row * width + column[:, None], total.to(out.dtype.element_ty), mask=live & inside[:, None])


@triton.jit(do_not_specialize=["rows", "blocks", "share"])
def multiply(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    blocks: tl.tensor,
    share: tl.tensor,
    BITS: tl.constexpr,
    SLICE: tl.constexpr,
    PANEL: tl.constexpr,
    CHAIN: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    BIAS: tl.constexpr,
    FAST: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """One program per (ROWS rows, panel, `share` blocks of inputs): `out[split, row, output]`, partial sums in float32
    or, where one program sees all inputs, the result. Codes enter the product as exact integers, and a group's sum is
    scaled in float32: the only errors are those of the codes and of float32 sums. Floor: words and scales once."""
    CODES: tl.constexpr = 16 // BITS
    GROUPS: tl.constexpr = CODES // CHAIN
    first = tl.program_id(2) * share
    panel = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n, k = tl.arange(0, PANEL), tl.arange(0, SLICE)
    live = m[None, :] < rows
    words_at = words + (panel * blocks + first) * (PANEL * SLICE) + n[:, None] * SLICE + k[None, :]
    scales_at = scales + (panel * blocks + first) * (GROUPS * PANEL) + n
    x_at = x + m[None, :].to(tl.int64) * stride + (first * (CODES * SLICE) + k)[:, None]
    total = tl.zeros((PANEL, ROWS), tl.float32)
    scale = _scales(scales_at, GROUPS, PANEL)
    for block in tl.range(first, tl.minimum(first + share, blocks), num_stages=STAGES):
        packed = tl.load(words_at)
        scales_at += GROUPS * PANEL
        following = _scales(scales_at, GROUPS, PANEL)  # too narrow for an asynchronous copy: one block ahead by hand
        codes = _unpack8(packed, FAST, x.dtype.element_ty) if BITS == 8 else _unpack4(packed, FAST, x.dtype.element_ty)
        for i in tl.static_range(CODES):
            column = block * (CODES * SLICE) + i * SLICE + k
            mask = live if EVEN else live & (column[:, None] < columns)
            values = tl.load(x_at + i * SLICE, mask=mask, other=0.0)
            if i % CHAIN == 0:
                part = tl.dot(codes[i], values, input_precision="ieee")
            else:
                part = tl.dot(codes[i], values, part, input_precision="ieee")
            if i % CHAIN == CHAIN - 1:
                total += part * scale[i // CHAIN][:, None]
        scale = following
        words_at += PANEL * SLICE
        x_at += CODES * SLICE
    row = tl.program_id(2).to(tl.int64) * rows + m[None, :]
    _write(total, bias, out, row, live, panel * PANEL + n, width, BIAS)


@triton.jit(do_not_specialize=["rows"])
def add_splits(
    parts: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
) -> None:
    """One program per (row, BLOCK outputs): the SPLITS partial sums in their order, then the bias. Floor: 4 SPLITS + 2
    bytes an output, which come from L2."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + (split * rows.to(tl.int64) + row) * width + at, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["panel0", "blocks"])
def expand(
    words: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    panel0: tl.tensor,
    blocks: tl.tensor,
    columns: tl.tensor,
    BITS: tl.constexpr,
    SLICE: tl.constexpr,
    PANEL: tl.constexpr,
    CHAIN: tl.constexpr,
    FAST: tl.constexpr,
) -> None:
    """One program per (block, panel from `panel0` on): the dense weights, row-major, in `out`'s dtype. Floor: bits / 8
    bytes read and 2 written per weight."""
    CODES: tl.constexpr = 16 // BITS
    block = tl.program_id(0)
    tile = (panel0 + tl.program_id(1)).to(tl.int64) * blocks + block
    n = tl.arange(0, PANEL)
    k = tl.arange(0, SLICE)
    scale = _scales(scales + tile * (CODES // CHAIN * PANEL) + n, CODES // CHAIN, PANEL)
    packed = tl.load(words + tile * (PANEL * SLICE) + n[:, None] * SLICE + k[None, :])
    codes = _unpack8(packed, FAST, tl.float32) if BITS == 8 else _unpack4(packed, FAST, tl.float32)
    row = tl.program_id(1).to(tl.int64) * PANEL + n
    for i in tl.static_range(CODES):
        column = block * (CODES * SLICE) + i * SLICE + k
        value = codes[i].to(tl.float32) * scale[i // CHAIN][:, None]
        at = row[:, None] * columns + column[None, :]
        tl.store(out + at, value.to(out.dtype.element_ty), mask=column[None, :] < columns)


def splits(panels: int, blocks: int) -> tuple[int, int]:
    """(splits, blocks of each): enough programs for two on every multiprocessor, at least two blocks in each, one split
    where the panels alone fill the chip. A function of the weight's shape alone."""
    if panels >= MULTIPROCESSORS:
        return 1, blocks
    wanted = min(-(-2 * MULTIPROCESSORS // panels), max(1, blocks // 2), 16)
    share = -(-blocks // wanted)
    return -(-blocks // share), share


def linear(x: torch.Tensor, layer: Quantised) -> torch.Tensor:
    """`x` `[rows, in]` → `[rows, out]` in x's dtype, which is the weight's. Up to `FEW` rows, and for a tiled layer
    always, a row's bits depend neither on the number of rows nor on its place. Raises `ModelError` for another
    dtype."""
    if x.dtype is not layer.dtype:
        raise ModelError(f"x: dtype {x.dtype} does not fit a layer packed from {layer.dtype}; convert one of them")
    rows = x.shape[0]
    out = x.new_empty((rows, layer.width))  # every element is written by the kernel or by cuBLAS
    if x.stride(-1) != 1:
        x = x.contiguous()
    if layer.tiled:
        for begin in range(0, rows, _TILED):
            _multiply(x[begin : begin + _TILED], layer, out[begin : begin + _TILED])
    elif 0 < rows <= FEW:
        _multiply(x, layer, out)
    elif rows:
        _expanded(x, layer, out)
    return out


def _multiply(x: torch.Tensor, layer: Quantised, out: torch.Tensor) -> None:
    shape, rows, width = layer.form, x.shape[0], layer.width
    panels, blocks = layer.words.shape[:2]
    count, share = splits(panels, blocks)
    biased = layer.bias is not None
    # partial sums: the programs of one split write every (row, output) of it
    target = out if count == 1 else torch.empty((count, rows, width), dtype=torch.float32, device=x.device)
    multiply[(triton.cdiv(rows, ROWS), panels, count)](
        x,
        layer.words,
        layer.scales,
        layer.bias if biased else layer.scales,
        target,
        rows,
        layer.columns,
        width,
        x.stride(0),
        blocks,
        share,
        **_constants(shape, layer.columns % shape.block == 0, biased and count == 1, layer.fast),
        num_warps=_warps(shape),
    )
    if count > 1:
        bias = layer.bias if biased else layer.scales
        add_splits[(triton.cdiv(width, 512), rows)](
            target, bias, out, rows, width, SPLITS=count, BLOCK=512, BIAS=biased, num_warps=4
        )


def _constants(shape: Form, even: bool, bias: bool, fast: bool) -> dict[str, Any]:
    layout = {"BITS": shape.bits, "SLICE": shape.slice, "PANEL": shape.panel, "CHAIN": shape.chain}
    return layout | {"ROWS": ROWS, "EVEN": even, "BIAS": bias, "FAST": fast, "STAGES": STAGES}


def _warps(shape: Form) -> int:
    return shape.panel // 16  # a warp group has 64 outputs


def _expanded(x: torch.Tensor, layer: Quantised, out: torch.Tensor) -> None:
    """Expand some panels, multiply, and go on: the pieces are written and read within L2 or close to it."""
    shape, columns = layer.form, layer.columns
    panels, blocks = layer.words.shape[:2]
    piece = min(panels, max(1, _EXPANDED // (shape.panel * columns * x.element_size())))
    dense = x.new_empty((piece * shape.panel, columns))  # `expand` writes every row that is multiplied
    for at in range(0, panels, piece):
        count = min(piece, panels - at)
        expand[(blocks, count)](
            layer.words,
            layer.scales,
            dense,
            at,
            blocks,
            columns,
            BITS=shape.bits,
            SLICE=shape.slice,
            PANEL=shape.panel,
            CHAIN=shape.chain,
            FAST=layer.fast,
            num_warps=_warps(shape),
        )
        begin, end = at * shape.panel, min((at + count) * shape.panel, layer.width)
        weight, target = dense[: end - begin].T, out[:, begin:end]
        if layer.bias is None:
            torch.mm(x, weight, out=target)
        else:
            torch.addmm(layer.bias[begin:end], x, weight, out=target)


def variants(bits: int) -> tuple[Variant, ...]:
    """What the projections of `PROJECTIONS` launch in bfloat16, each distinct compilation once."""
    found: dict[str, Variant] = {}
    for width, columns in PROJECTIONS:
        shape = form(bits, width, columns)
        panels, blocks = -(-width // shape.panel), -(-columns // shape.block)
        count, even = splits(panels, blocks)[0], columns % shape.block == 0
        name = f"int{bits}/slice{shape.slice}/panel{shape.panel}{'' if even else '/ragged'}"
        for bias in (False, True) if count == 1 else (False,):
            full = f"{name}/{'direct' if count == 1 else 'split'}{'/bias' if bias else ''}"
            found[full] = _variant(full, shape, even, bias, "*bf16" if count == 1 else "*fp32")
        found[f"{name}/expand"] = _expand_variant(f"{name}/expand", shape)
    return tuple(found.values())


def _variant(name: str, shape: Form, even: bool, bias: bool, out: str) -> Variant:
    constants = _constants(shape, even, bias, True)
    pointers = {"x": "*bf16", "words": "*i16", "scales": "*bf16", "bias": "*bf16", "out": out}
    sizes = dict.fromkeys(("rows", "columns", "width", "stride", "blocks", "share"), "i32")
    signature = pointers | sizes | dict.fromkeys(constants, "constexpr")
    return Variant(name, multiply, signature, constants, _warps(shape), 3, (*pointers, "columns", "width", "stride"))


def _expand_variant(name: str, shape: Form) -> Variant:
    constants = {"BITS": shape.bits, "SLICE": shape.slice, "PANEL": shape.panel, "CHAIN": shape.chain, "FAST": True}
    pointers = {"words": "*i16", "scales": "*bf16", "out": "*bf16"}
    sizes = dict.fromkeys(("panel0", "blocks", "columns"), "i32")
    signature = pointers | sizes | dict.fromkeys(constants, "constexpr")
    return Variant(name, expand, signature, constants, _warps(shape), 3, (*pointers, "columns"))


def add_variants() -> tuple[Variant, ...]:
    """The sums of partial sums that the shapes of `PROJECTIONS` launch, without and with a bias."""
    counts = set()
    for width, columns in PROJECTIONS:
        for bits in (8, 4):
            shape = form(bits, width, columns)
            counts.add(splits(-(-width // shape.panel), -(-columns // shape.block))[0])
    signature = {"parts": "*fp32", "bias": "*bf16", "out": "*bf16", "rows": "i32", "width": "i32"}
    signature |= dict.fromkeys(("SPLITS", "BLOCK", "BIAS"), "constexpr")
    return tuple(
        Variant(
            f"linear/add{count}{'/bias' if bias else ''}",
            add_splits,
            signature,
            {"SPLITS": count, "BLOCK": 512, "BIAS": bias},
            aligned=("parts", "bias", "out", "width"),
        )
        for count in sorted(counts - {1})
        for bias in (False, True)
    )
