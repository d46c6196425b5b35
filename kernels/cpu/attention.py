"""Attention over slots on the CPU. In: queries, a layer's cache and the batch's plan. Out: one row per new token.

Softmax in two passes over KV blocks: scores of all blocks, their exact maximum, then for each block the weights' sum
and the weighted values, added in order of position. A block's products have fixed inner sizes and a multiple of `TILE`
rows, a masked lane adds exact zeros, and no other reduction crosses lanes: so a row's bits do not depend on what else
is computed, on how its sequence was chunked, or on where its slots lie.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from ramet.kernels.cpu.plan import BLOCK, CpuPlan, LongTile, ShortGroup, padded
from ramet.kernels.ops import Layout

_GATHER = 8 << 20  # bytes of float32 keys or values gathered at a time, so that the products find them in the cache


def attention(
    q: torch.Tensor, layout: Layout, plan: CpuPlan, cache: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """See `Ops.attention`."""
    keys, values = (cache[i].view(-1, layout.head_dim) for i in (0, 1))
    work = plan.work[window]
    if len(work.groups) == 1 and work.groups[0].rows is None and plan.tokens == plan.padded:
        return _short(q, keys, values, work.groups[0], layout).to(dtype)
    out = torch.zeros(plan.padded, layout.heads * layout.head_dim)
    for group in work.groups:
        part = _short(q, keys, values, group, layout)
        if group.rows is None:
            out[: plan.tokens] = part
        else:
            out.index_copy_(0, group.rows, part)
    for tile in work.tiles:
        out[tile.first : tile.last] = _long(q, keys, values, tile, layout)
    return out.to(dtype)


def _short(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: ShortGroup, layout: Layout
) -> torch.Tensor:
    """Rows `[S * queries, H D]` of a group, in its order."""
    count, heads, dim = group.segments, layout.kv_heads, layout.head_dim
    shape = (count, group.queries, heads, layout.heads // heads, dim)
    rows = shape[1] * shape[3]
    height = padded(rows)
    chosen = q[: count * group.queries] if group.rows is None else q.index_select(0, group.rows)
    query = torch.zeros(count, heads, height, dim)
    into = query[:, :, :rows].view(count, heads, group.queries, shape[3], dim)
    torch.mul(chosen.view(shape).permute(0, 2, 1, 3, 4), layout.scale, out=into)
    spread = query if group.item is None else query.index_select(0, group.item)
    scores = _products(spread.view(-1, height, dim), keys, group.read, transpose=True)
    weights = scores.view(-1, heads, height, BLOCK).add_(group.mask)
    peak = _round_max(weights.amax(-1, keepdim=True), group.rounds)
    weights.sub_(peak if group.item is None else peak.index_select(0, group.item)).exp_()
    total = _round_sum(weights.sum(-1, keepdim=True), group.rounds)
    parts = _products(weights.view(-1, height, BLOCK), values, group.read, transpose=False)
    out = _round_sum(parts.view(-1, heads, height, dim), group.rounds).div_(total)
    mine = out[:, :, :rows].view(count, heads, group.queries, shape[3], dim)
    return mine.transpose(1, 2).reshape(count * group.queries, -1)


def _products(left: torch.Tensor, cache: torch.Tensor, read: torch.Tensor, *, transpose: bool) -> torch.Tensor:
    """`left` `[W', M, inner]` times the blocks `[W', BLOCK, dim]` that `read` names, block by block."""
    dim = cache.shape[-1]
    step = max(1, _GATHER // (4 * BLOCK * dim))
    parts = []
    for begin in range(0, left.shape[0], step):
        some = left[begin : begin + step]
        block = (
            cache.index_select(0, read[begin * BLOCK : (begin + some.shape[0]) * BLOCK]).float().view(-1, BLOCK, dim)
        )
        parts.append(torch.bmm(some, block.transpose(1, 2) if transpose else block))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _round_max(items: torch.Tensor, rounds: tuple[int, ...]) -> torch.Tensor:
    size = rounds[1]
    peak = items[:size]
    if len(rounds) == 2:
        return peak
    if rounds[-1] == size * (len(rounds) - 1):
        return items.view(-1, size, *items.shape[1:]).amax(0)
    peak = peak.clone()
    for begin, end in pairwise(rounds[1:]):
        torch.maximum(peak[: end - begin], items[begin:end], out=peak[: end - begin])
    return peak


def _round_sum(items: torch.Tensor, rounds: tuple[int, ...]) -> torch.Tensor:
    """Sum over each segment's blocks in order of position; reuses the memory of the first round."""
    total = items[: rounds[1]]
    for begin, end in pairwise(rounds[1:]):
        total[: end - begin].add_(items[begin:end])
    return total


def _long(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tile: LongTile, layout: Layout) -> torch.Tensor:
    """Rows `[n, H D]` of a tile."""
    count, heads, dim = tile.last - tile.first, layout.kv_heads, layout.head_dim
    group = layout.heads // heads
    rows = count * group
    query = torch.zeros(heads, padded(rows), dim)
    into = query[:, :rows].view(heads, count, group, dim)
    torch.mul(q[tile.first : tile.last].view(count, heads, group, dim).transpose(0, 1), layout.scale, out=into)
    scores = []
    for read, mask in tile.blocks:
        block = keys.index_select(0, read).float().view(heads, BLOCK, dim)
        score = torch.bmm(query, block.transpose(1, 2))
        scores.append(score if mask is None else score.add_(mask))
    peak = scores[0].amax(-1, keepdim=True)
    for score in scores[1:]:
        torch.maximum(peak, score.amax(-1, keepdim=True), out=peak)
    total, out = torch.zeros_like(peak), torch.zeros_like(query)
    for score, (read, _) in zip(scores, tile.blocks, strict=True):
        weights = score.sub_(peak).exp_()
        total.add_(weights.sum(-1, keepdim=True))
        out.add_(torch.bmm(weights, values.index_select(0, read).float().view(heads, BLOCK, dim)))
    return out.div_(total)[:, :rows].view(heads, count, group, dim).transpose(0, 1).reshape(count, -1)
