"""The logits that a draw is made from. In: logits `[U, V] float32`, packed draws. Out: edited copies of the rows that
have penalties or bias; all other rows are read where they are, and bitmasks are applied as a row is read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ramet.kernels.triton import draws as fields
from ramet.kernels.triton.aot import Variant
from ramet.kernels.triton.draws import DrawView

AT: tl.constexpr = tl.constexpr(fields.AT)
MASK: tl.constexpr = tl.constexpr(fields.MASK)
COPY: tl.constexpr = tl.constexpr(fields.COPY)
FIRST_EDIT: tl.constexpr = tl.constexpr(fields.FIRST_EDIT)
LAST_EDIT: tl.constexpr = tl.constexpr(fields.LAST_EDIT)

_BLOCK = 4096
_EDITS = 256
_WARPS = 8


@triton.jit
def integer(table: tl.tensor, columns: tl.tensor, draw: tl.tensor, FIELD: tl.constexpr) -> tl.tensor:
    """An int32 field of a draw."""
    return tl.load(table + FIELD * columns + draw)


@triton.jit
def real(table: tl.tensor, columns: tl.tensor, draw: tl.tensor, FIELD: tl.constexpr) -> tl.tensor:
    """A float32 field of a draw."""
    return tl.load(table + FIELD * columns + draw).to(tl.float32, bitcast=True)


@triton.jit
def row_of(
    logits: tl.tensor,
    stride: tl.tensor,
    copies: tl.tensor,
    vocab: tl.tensor,
    table: tl.tensor,
    columns: tl.tensor,
    draw: tl.tensor,
) -> tl.tensor:
    """Where draw's logits begin: its edited copy if it has one, else the model's row."""
    at = integer(table, columns, draw, AT).to(tl.int64)
    copy = integer(table, columns, draw, COPY).to(tl.int64)
    return tl.where(copy < 0, logits + at * stride, copies + copy * vocab)


@triton.jit
def read(
    row: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    mask: tl.tensor,
    at: tl.tensor,
    count: tl.tensor,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Logits at `at` int32, -inf beyond `count` and, if MASKED, where bitmask number `mask` (-1: none) forbids. (No
    branch on `mask`: the compiler would move the tile through shared memory to cross it.)"""
    x = tl.load(row + at, at < count, other=-float("inf"))
    if MASKED:
        word = tl.load(masks + mask.to(tl.int64) * words + (at >> 5), (at < count) & (mask >= 0), other=-1)
        x = tl.where(((word >> (at & 31)) & 1) != 0, x, -float("inf"))
    return x


@triton.jit
def allowed(
    masks: tl.tensor, words: tl.tensor, mask: tl.tensor, span: tl.tensor, SPANS: tl.constexpr, SPAN: tl.constexpr
) -> tl.tensor:
    """What bitmask number `mask` (-1: none) says of the SPAN logits of each `span` [SPANS], `[SPANS, SPAN]`. Each word
    is loaded once for its 32 logits: a load of the whole tile's shape would have a layout of its own, for which the
    compiler moves the logits through shared memory, and their sums would have another order than without a mask."""
    at = span[:, None] * (SPAN // 32) + tl.arange(0, SPAN // 32)[None, :]
    word = tl.load(masks + mask.to(tl.int64) * words + at, (at < words) & (mask >= 0), other=-1)
    bits = (word[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    return tl.reshape(bits, [SPANS, SPAN]) != 0


@triton.jit(do_not_specialize=["columns", "edit_columns"])
def edit_rows(
    logits: tl.tensor,
    stride: tl.tensor,
    copies: tl.tensor,
    vocab: tl.tensor,
    table: tl.tensor,
    columns: tl.tensor,
    edits: tl.tensor,
    edit_columns: tl.tensor,
    BLOCK: tl.constexpr,
    EDITS: tl.constexpr,
) -> None:
    """Program (b, r): copy block b of draw r's row and write the edited logits over it; nothing for a draw without
    edits. Floor: 8 bytes per logit of an edited row; each block walks its row's edits (16 bytes each, from L2)."""
    draw = tl.program_id(1)
    copy = integer(table, columns, draw, COPY).to(tl.int64)
    if copy < 0:
        return
    row = logits + integer(table, columns, draw, AT).to(tl.int64) * stride
    out = copies + copy * vocab
    begin = tl.program_id(0) * BLOCK
    at = begin + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(row + at, at < vocab), at < vocab)
    tl.debug_barrier()  # an edit may overwrite what another thread of the program copied
    last = integer(table, columns, draw, LAST_EDIT)
    for first in range(integer(table, columns, draw, FIRST_EDIT), last, EDITS):
        edit = first + tl.arange(0, EDITS)
        token = tl.load(edits + edit, edit < last, other=-1)
        mine = (token >= begin) & (token < begin + BLOCK)
        x = tl.load(row + token, mine, other=0.0)
        scale, less, more = _change(edits + edit_columns + edit, edit_columns, mine)
        x = tl.where(scale == 1.0, x, tl.where(x > 0, tl.math.div_rn(x, scale), x * scale))
        tl.store(out + token, x - less + more, mine)


@triton.jit
def _change(edit: tl.tensor, edit_columns: tl.tensor, mine: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    scale = tl.load(edit, mine, other=0).to(tl.float32, bitcast=True)
    less = tl.load(edit + edit_columns, mine, other=0).to(tl.float32, bitcast=True)
    more = tl.load(edit + 2 * edit_columns, mine, other=0).to(tl.float32, bitcast=True)
    return scale, less, more


def adjust(logits: torch.Tensor, view: DrawView, copies: torch.Tensor) -> None:
    """Fill `copies` `[view.room.copies, V] float32` with the edited rows, in order of their draws."""
    room, vocab = view.room, logits.shape[1]
    if room.copies == 0:
        return
    edit_rows[(triton.cdiv(vocab, _BLOCK), room.draws)](
        logits,
        logits.stride(0),
        copies,
        vocab,
        view.table,
        room.columns,
        view.edits,
        room.edit_columns,
        BLOCK=_BLOCK,
        EDITS=_EDITS,
        num_warps=_WARPS,
    )


def variants() -> tuple[Variant, ...]:
    """One: the vocabulary is an argument."""
    signature = {
        "logits": "*fp32",
        "stride": "i32",
        "copies": "*fp32",
        "vocab": "i32",
        "table": "*i32",
        "columns": "i32",
        "edits": "*i32",
        "edit_columns": "i32",
        "BLOCK": "constexpr",
        "EDITS": "constexpr",
    }
    constants = {"BLOCK": _BLOCK, "EDITS": _EDITS}
    return (Variant("adjust", edit_rows, signature, constants, _WARPS, 2, ("logits", "stride", "copies", "vocab")),)
