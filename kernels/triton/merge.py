"""Log-sum-exp merge of attention partials. In: partial rows and their lse. Out: the final rows of split tokens.

A token's list holds the partials that it sees anything of, in order of position, and is taken `_CHUNK` at a time: the
same spans give the same bits whatever else the batch holds, and a single partial keeps the bits of a direct item.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ramet.kernels.triton.aot import Variant

_CHUNK = 16  # partials loaded at once; 16 x 512 positions in one round trip
_HEADS = 4  # heads per program


@triton.jit(do_not_specialize_on_alignment=["merge_ptr", "merge_at"])
def merge(
    partial_rows: tl.tensor,
    partial_lse: tl.tensor,
    merge_ptr: tl.tensor,
    merge_at: tl.tensor,
    out: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Program (token, block of heads). partial_rows `[partials, HEADS, DIM] float32`, partial_lse `[partials, HEADS]`
    in powers of 2; token t merges `merge_at[merge_ptr[t] : merge_ptr[t + 1]]` into out `[tokens, HEADS, DIM]`; a token
    without partials is left alone.

    Floor: the partials read once, 4 (D + 1) H bytes each: 1.6 % of the KV bytes they stand for at 4 heads per KV head.
    """
    token = tl.program_id(0)
    begin = tl.load(merge_ptr + token)
    end = tl.load(merge_ptr + token + 1)
    if begin < end:
        head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        s = tl.arange(0, CHUNK)
        d = tl.arange(0, BLOCK_D)
        inside = (head[:, None] < HEADS) & (d[None, :] < DIM)
        peak = tl.full((BLOCK_H,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_H,), tl.float32)
        acc = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
        for at in tl.range(begin, end, CHUNK):
            valid = at + s < end
            partial = tl.load(merge_at + at + s, valid, 0).to(tl.int64)
            place = partial[:, None] * HEADS + head[None, :]
            lse = tl.load(partial_lse + place, valid[:, None] & (head[None, :] < HEADS), -float("inf"))
            rows = tl.load(
                partial_rows + place[:, :, None] * DIM + d[None, None, :],
                valid[:, None, None] & inside[None, :, :],
                0.0,
            )
            fresh = tl.maximum(peak, tl.max(lse, 0))
            shift = tl.where(fresh == -float("inf"), 0.0, fresh)
            weight = tl.exp2(lse - shift[None, :])
            decay = tl.exp2(peak - shift)
            total = tl.fma(total, decay, tl.sum(weight, 0))
            acc = acc * decay[:, None] + tl.sum(rows * weight[:, :, None], 0)
            peak = fresh
        acc = acc * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
        row = token.to(tl.int64) * HEADS + head
        tl.store(out + row[:, None] * DIM + d[None, :], acc.to(out.dtype.element_ty), inside)


def merge_partials(
    acc: torch.Tensor,
    lse: torch.Tensor,
    merge_ptr: torch.Tensor,
    merge_at: torch.Tensor,
    out: torch.Tensor,
    heads: int,
) -> None:
    """Write the rows of `out` `[padded, H D]` that have partials. acc `[partials, H, D] float32`, lse `[partials, H]`,
    merge_ptr `[padded + 1] int32`, merge_at `[...] int32`."""
    dim = out.shape[1] // heads
    merge[(len(out), triton.cdiv(heads, _HEADS))](
        acc,
        lse,
        merge_ptr,
        merge_at,
        out,
        HEADS=heads,
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_H=_HEADS,
        CHUNK=_CHUNK,
        num_warps=4,
        num_stages=1,
    )


def variants() -> tuple[Variant, ...]:
    """Rows of 64, 128 and 256, and heads that are no multiple of a program's."""
    pointers = {
        "partial_rows": "*fp32",
        "partial_lse": "*fp32",
        "merge_ptr": "*i32",
        "merge_at": "*i32",
        "out": "*bf16",
    }
    found = []
    for heads, dim in ((9, 64), (32, 64), (32, 128), (8, 256)):
        constants = {"HEADS": heads, "DIM": dim, "BLOCK_D": dim, "BLOCK_H": _HEADS, "CHUNK": _CHUNK}
        found.append(
            Variant(
                name=f"merge/bf16/h{heads}/d{dim}",
                kernel=merge,
                signature=pointers | dict.fromkeys(constants, "constexpr"),
                constants=constants,
                stages=1,
                aligned=("partial_rows", "partial_lse", "out"),
            )
        )
    return tuple(found)
