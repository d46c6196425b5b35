"""The token table, where a sampled token waits for the next batch, and the embedding. In: ids, or rows of the table.
Out: token ids, rows written, or the residual stream; the host is not on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ramet.kernels.triton.aot import Variant

_TOKENS = 256  # tokens a program, two a thread
_COLUMNS = 1024  # columns of an embedding a program, 8 a thread


@triton.jit(do_not_specialize=["count"])
def gather_tokens(
    ids: tl.tensor, feed: tl.tensor, last: tl.tensor, out: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """`out[i] = ids[i] if feed[i] < 0 else last[feed[i]]`. Floor: a launch."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(feed + at, at < count, -1)
    given = tl.load(ids + at, at < count, 0).to(tl.int64)
    fed = tl.load(last + tl.maximum(row, 0), (at < count) & (row >= 0), 0)
    tl.store(out + at, tl.where(row < 0, given, fed), at < count)


@triton.jit(do_not_specialize=["count"])
def scatter_tokens(tokens: tl.tensor, into: tl.tensor, last: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
    """`last[into[r]] = max(tokens[r], 0)`. Floor: a launch."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + at, at < count, 0)
    row = tl.load(into + at, at < count, 0)
    tl.store(last + row, tl.maximum(token, 0), at < count)


@triton.jit
def embed_rows(
    tokens: tl.tensor, table: tl.tensor, out: tl.tensor, E: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """One program per BLOCK columns of a token. Floor: T E (itemsize + 4) bytes."""
    program = tl.program_id(0)
    row = (program // BLOCKS).to(tl.int64)
    at = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + row).to(tl.int64)
    values = tl.load(table + token * E + at, at < E, 0.0)
    tl.store(out + row * E + at, values.to(tl.float32), at < E)


def gather(ids: torch.Tensor, feed: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Token ids `[P] int64` of a batch: `ids` `[P] int32` where `feed` `[P] int32` is -1, else the token that row
    `feed[i]` of the token table `last` `[rows] int64` holds."""
    out = torch.empty(len(ids), dtype=torch.int64, device=ids.device)  # every element is written below
    if len(ids):
        gather_tokens[(triton.cdiv(len(ids), _TOKENS),)](ids, feed, last, out, len(ids), BLOCK=_TOKENS, num_warps=4)
    return out


def scatter(tokens: torch.Tensor, into: torch.Tensor, last: torch.Tensor) -> None:
    """Write `tokens` `[R] int64` to rows `into` `[R] int32` of the token table `last` `[rows] int64`, in place.

    A draw that failed (-1) is written as 0: it must not break the next batch, which is launched before the failure is
    read. Padded draws name a row of their own, which is never fed from.
    """
    count = len(tokens)
    if count:
        scatter_tokens[(triton.cdiv(count, _TOKENS),)](tokens, into, last, count, BLOCK=_TOKENS, num_warps=4)


def embedding(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `Ops.embedding`: `tokens` `[P]` of any integer dtype, `table` `[V, E]` contiguous → `[P, E] float32`."""
    assert table.is_contiguous(), "rows are read by token * E"
    rows, width = len(tokens), table.shape[1]
    out = torch.empty(rows, width, dtype=torch.float32, device=table.device)  # every element is written below
    if rows:
        blocks = triton.cdiv(width, _COLUMNS)
        embed_rows[(rows * blocks,)](tokens, table, out, E=width, BLOCKS=blocks, BLOCK=_COLUMNS, num_warps=4)
    return out


def variants() -> tuple[Variant, ...]:
    """The token table, and embeddings of SmolLM2-135M and Llama 3.1 8B."""
    block = {"BLOCK": _TOKENS}
    gathered = {"ids": "*i32", "feed": "*i32", "last": "*i64", "out": "*i64", "count": "i32", "BLOCK": "constexpr"}
    scattered = {"tokens": "*i64", "into": "*i32", "last": "*i64", "count": "i32", "BLOCK": "constexpr"}
    return (
        Variant("table/gather", gather_tokens, gathered, block, aligned=("ids", "feed", "last", "out")),
        Variant("table/scatter", scatter_tokens, scattered, block, aligned=("tokens", "into", "last")),
        *(_embedding(width) for width in (576, 4096)),
    )


def _embedding(width: int) -> Variant:
    constants = {"E": width, "BLOCKS": triton.cdiv(width, _COLUMNS), "BLOCK": _COLUMNS}
    signature = {"tokens": "*i64", "table": "*bf16", "out": "*fp32"} | dict.fromkeys(constants, "constexpr")
    return Variant(f"embedding/bf16/e{width}", embed_rows, signature, constants, aligned=("tokens", "table", "out"))
