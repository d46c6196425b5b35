"""Log-probabilities of the model's distribution on the GPU. In: logits `[U, V] float32`, drawn tokens, targets. Out:
the drawn tokens' log-probabilities, the k most likely alternatives, the targets' log-probabilities.

One read of each row that is asked for gives its normaliser and, by block, its k best; the k best are merged before the
normaliser is subtracted.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from ramet.kernels.ops import Drawn
from ramet.kernels.triton.aot import Variant
from ramet.kernels.triton.draws import upload
from ramet.runtime.batch import I32

_BLOCK = 4096
_WIDTHS = (0, 1, 5, 20)  # of lists: a kernel is compiled for each, and not for every k
# parts of two buffers, which begin wherever the one before ends
_PARTS = ["rows", "asks", "drawn", "peaks", "sums", "best", "best_at", "scores", "top_ids", "tops"]
_LAST: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _next(x: tl.tensor, at: tl.tensor, value: tl.tensor, token: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The most likely of `x` after (value, token), of equals the lower token; token 2^31 - 1 when none is left."""
    left = ((x < value) | ((x == value) & (at > token))) & (at < _LAST)
    best = tl.max(tl.where(left, x, -float("inf")), 0)
    return best, tl.min(tl.where(left & (x == best), at, _LAST), 0)


@triton.jit(do_not_specialize=["rows_count"], do_not_specialize_on_alignment=_PARTS)
def score_blocks(
    logits: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    rows: tl.tensor,
    rows_count: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    best: tl.tensor,
    best_at: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (b, q), block b of row rows[q]: its maximum (+inf for nan), the sum of exp(x - maximum), and its
    rows[rows_count + q] best. peaks, sums `[Q, blocks] float32`; best, best_at `[Q, blocks, WIDTH]`. Floor: 4 V bytes a
    row."""
    block, q = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + q).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + at, at < vocab, other=-float("inf"))
    x = tl.where(x == x, x, float("inf"))
    peak = tl.max(x, 0)
    base = tl.where(peak == -float("inf"), 0.0, peak)
    out = q * tl.num_programs(0) + block
    tl.store(peaks + out, peak)
    tl.store(sums + out, tl.sum(tl.exp(x - base), 0))
    at = tl.where(at < vocab, at, _LAST)
    value = tl.full((), float("inf"), tl.float32)
    token = tl.full((), -1, tl.int32)
    for i in range(tl.load(rows + rows_count + q)):
        value, token = _next(x, at, value, token)
        tl.store(best + out * WIDTH + i, value)
        tl.store(best_at + out * WIDTH + i, token)


@triton.jit(do_not_specialize=["asked", "blocks"], do_not_specialize_on_alignment=_PARTS)
def score_tokens(
    logits: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    asks: tl.tensor,
    asked: tl.tensor,
    drawn: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    best: tl.tensor,
    best_at: tl.tensor,
    scores: tl.tensor,
    top_ids: tl.tensor,
    tops: tl.tensor,
    blocks: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    LIST: tl.constexpr,
) -> None:
    """Program n, one of `asks` `[6, N] int32`: q, row, draw (-1: the token is given), token, k, and where in `scores`
    the result goes; the k best go to that row of `top_ids` and `tops`. Nothing is written for a draw that failed.
    Floor: a launch."""
    n = tl.program_id(0)
    q = tl.load(asks + n)
    row = tl.load(asks + asked + n).to(tl.int64)
    draw = tl.load(asks + 2 * asked + n)
    token = tl.load(asks + 3 * asked + n)
    if draw >= 0:
        token = tl.load(drawn + draw).to(tl.int32)
    if token < 0:
        return
    block = tl.arange(0, BLOCKS)
    peak = tl.load(peaks + q * blocks + block, block < blocks, other=-float("inf"))
    total = tl.load(sums + q * blocks + block, block < blocks, other=0.0)
    top = tl.max(peak, 0)
    finite = (top > -float("inf")) & (top < float("inf"))
    norm = tl.log(tl.sum(total * tl.exp(peak - tl.where(finite, top, 0.0)), 0))
    norm = tl.where(finite, norm, float("nan"))
    x = tl.load(logits + row * stride + token)
    out = tl.load(asks + 5 * asked + n)
    tl.store(scores + out, x - top - norm)
    k = tl.load(asks + 4 * asked + n)
    if k > 0:
        place = tl.arange(0, LIST)
        here = (place < blocks * WIDTH) & (place % WIDTH < k)
        likely = tl.load(best + q * blocks * WIDTH + place, here, other=-float("inf"))
        at = tl.load(best_at + q * blocks * WIDTH + place, here, other=_LAST)
        value = tl.full((), float("inf"), tl.float32)
        last = tl.full((), -1, tl.int32)
        for i in range(tl.minimum(k, vocab)):
            value, last = _next(likely, at, value, last)
            tl.store(top_ids + out * WIDTH + i, last)
            tl.store(tops + out * WIDTH + i, value - top - norm)


def score(
    logits: torch.Tensor,
    wanted: I32,
    at: I32,
    tokens: torch.Tensor,
    targets: I32,
    target_at: I32,
    top: I32 | None = None,
) -> Drawn:
    """What `Ops.sample` returns, for tokens that were drawn. `wanted` `[R]`: -1 nothing, 0 the token's own, k also the
    k best (at most 20); `at` `[R]`, `target_at` `[P]`: rows of `logits`; `tokens` `[>= R] int64` on the device;
    `targets` `[P]`: tokens to score, `top` `[P]` their k (none or empty: 0). Nothing is launched for draws that want
    nothing. Waits for nothing."""
    count, device = len(wanted), logits.device
    total = count + len(targets)
    top = np.zeros(len(targets), np.int32) if top is None or not len(top) else top
    own, given = int(wanted.max(initial=0)), int(top.max(initial=0))
    most = max(own, given)
    width = next((width for width in _WIDTHS if width >= most), most)
    # one buffer each: the draws', then the targets'
    scores = torch.full((total,), torch.nan, dtype=torch.float32, device=device)
    ids = torch.full((total, width), -1, dtype=torch.int32, device=device)
    tops = torch.full((total, width), torch.nan, dtype=torch.float32, device=device)
    asks = _asks(wanted, at, targets, top, target_at)
    if asks.shape[1]:
        _launch(logits, asks, tokens, scores, ids, tops)
    mine = ids[:count, :own].contiguous(), tops[:count, :own].contiguous()
    theirs = ids[count:, :given].contiguous(), tops[count:, :given].contiguous()
    return Drawn(tokens[:count], scores[:count], *mine, scores[count:], *theirs)


def _launch(
    logits: torch.Tensor,
    asks: I32,
    tokens: torch.Tensor,
    scores: torch.Tensor,
    ids: torch.Tensor,
    tops: torch.Tensor,
) -> None:
    vocab, device = logits.shape[1], logits.device
    used, asks[0] = np.unique(asks[1], return_inverse=True)
    rows = np.zeros((2, len(used)), np.int32)
    rows[0] = used
    np.maximum.at(rows[1], asks[0], asks[4])
    both = upload(np.concatenate((rows.ravel(), asks.ravel())), device)
    width, blocks = max(1, ids.shape[1]), triton.cdiv(vocab, _BLOCK)
    # uninitialised: score_tokens reads what score_blocks wrote
    cells = len(used) * blocks
    floats = torch.empty(cells * (2 + width), dtype=torch.float32, device=device)
    peaks, sums, best = floats[:cells], floats[cells : 2 * cells], floats[2 * cells :]
    best_at = torch.empty(best.shape, dtype=torch.int32, device=device)
    row_words = both[: rows.size]
    source = (logits, logits.stride(0), vocab)
    score_blocks[(blocks, len(used))](
        *source, row_words, len(used), peaks, sums, best, best_at, WIDTH=width, BLOCK=_BLOCK, num_warps=8
    )
    score_tokens[(asks.shape[1],)](
        *source,
        *(both[rows.size :], asks.shape[1], tokens, peaks, sums, best, best_at, scores, ids, tops, blocks),
        WIDTH=width,
        BLOCKS=triton.next_power_of_2(blocks),
        LIST=triton.next_power_of_2(blocks * width),
        num_warps=4,
    )


def _asks(wanted: I32, at: I32, targets: I32, top: I32, target_at: I32) -> I32:
    """`[6, N]`: see `score_tokens`; the first row is still empty."""
    asking = np.flatnonzero(wanted >= 0)
    own, given = len(asking), len(targets)
    asks = np.zeros((6, own + given), np.int32)
    asks[1] = np.concatenate((at[asking], target_at))
    asks[2] = np.concatenate((asking, np.full(given, -1, np.int32)))
    asks[3, own:] = targets
    asks[4] = np.concatenate((wanted[asking], top))
    asks[5] = np.concatenate((asking, len(wanted) + np.arange(given)))
    return asks


def variants() -> tuple[Variant, ...]:
    """Llama 3's vocabulary of 128,256, the five best."""
    vocab, width = 128256, 5
    blocks = triton.cdiv(vocab, _BLOCK)
    source = {"logits": "*fp32", "stride": "i32", "vocab": "i32"}
    stats = {"peaks": "*fp32", "sums": "*fp32", "best": "*fp32", "best_at": "*i32"}
    scan = source | {"rows": "*i32", "rows_count": "i32"} | stats | {"WIDTH": "constexpr", "BLOCK": "constexpr"}
    asks = {"asks": "*i32", "asked": "i32", "drawn": "*i64"}
    tops = {"scores": "*fp32", "top_ids": "*i32", "tops": "*fp32", "blocks": "i32"}
    sizes = {"WIDTH": width, "BLOCKS": triton.next_power_of_2(blocks), "LIST": triton.next_power_of_2(blocks * width)}
    last = source | asks | stats | tops | dict.fromkeys(sizes, "constexpr")
    aligned = ("logits", "stride", "vocab")
    return (
        Variant("logprobs/blocks", score_blocks, scan, {"WIDTH": width, "BLOCK": _BLOCK}, 8, 2, aligned),
        Variant("logprobs/tokens", score_tokens, last, dict(sizes), 4, 2, aligned),
    )
