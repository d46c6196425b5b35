"""Attention by work lists in plain torch, as the GPU kernels do it. In: a `TritonPlan` on the CPU. Out: rows; and, for
tests of the lists themselves, how often every (token, position) pair is computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ramet.kernels import reference
from ramet.kernels.ops import HeadNorms, Layout
from ramet.kernels.triton.plan import DeviceWork, TritonPlan
from ramet.kernels.triton.work import NARROW_M


def rope_store(
    qkv: torch.Tensor, norms: HeadNorms | None, layout: Layout, plan: TritonPlan, cache: torch.Tensor
) -> torch.Tensor:
    """`reference.rope_store` with the angles read by position; padding rows write the dump slot."""
    at = plan.positions.long()
    cos, sin = plan.cos[at][:, None], plan.sin[at][:, None]
    rows = reference.RaggedPlan(plan.tokens, plan.padded, plan.slots.long(), cos, sin, ())
    return reference.rope_store(qkv, norms, layout, rows, cache).to(cache.dtype)


def items(work: DeviceWork) -> Iterator[tuple[bool, tuple[int, ...], torch.Tensor]]:
    """(is wide, columns, tokens) of every item; checks its class's height and the launch flags."""
    narrow, wide = work.counts.tolist()
    assert (narrow == 0 or work.has_narrow) and (wide == 0 or work.has_wide), "a list that is not launched"
    for is_wide, table, count in ((False, work.narrow, narrow), (True, work.wide, wide)):
        for item in table[:count].tolist():
            yield is_wide, tuple(item), work.item_rows[item[0] : item[0] + item[1]].long()


def attention(
    q: torch.Tensor, layout: Layout, plan: TritonPlan, cache: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """See `Ops.attention`. Partials are normalised, with the log of the sum of exponentials, in `plan.partials`."""
    work, parts = plan.work[window], plan.partials
    heads, dim, group = layout.heads, layout.head_dim, layout.heads // layout.kv_heads
    out = torch.zeros(plan.padded, heads, dim)
    limit = plan.limit.long()
    written = torch.zeros(plan.padded, dtype=torch.int64)
    for is_wide, (_, count, at, start, length, into), tokens in items(work):
        assert 0 < count * group <= (work.wide_m if is_wide else NARROW_M), "an item is higher than its class"
        slots, position = plan.kv[at : at + length].long(), torch.arange(start, start + length)
        keys, values = (cache[i][:, slots].float() for i in (0, 1))
        query = q[tokens].float().view(count, layout.kv_heads, group, dim).permute(1, 0, 2, 3).flatten(1, 2)
        hidden = position > limit[tokens][:, None]
        if window is not None:
            hidden |= position <= limit[tokens][:, None] - window
        scores = (query @ keys.transpose(1, 2) * layout.scale).masked_fill(
            hidden.repeat_interleave(group, 0), -torch.inf
        )
        peak = scores.amax(-1, keepdim=True)
        weights = (scores - peak.clamp(min=-1e30)).exp()
        total = weights.sum(-1, keepdim=True)
        rows = (weights @ values / total.clamp(min=1e-30)).view(layout.kv_heads, count, group, dim)
        rows = rows.transpose(0, 1).reshape(count, heads, dim)
        lse = (peak + total.log()).view(layout.kv_heads, count, group).transpose(0, 1).reshape(count, heads)
        if into < 0:
            out[tokens] = rows
            written[tokens] += 1
        else:
            parts.acc[into : into + count], parts.lse[into : into + count] = rows, lse
    pointer = work.merge_ptr.tolist()
    assert work.has_merge or pointer[-1] == 0, "a merge that is not launched"
    for token in range(plan.padded):
        listed = work.merge_at[pointer[token] : pointer[token + 1]].long()
        if len(listed):
            share = (parts.lse[listed] - parts.lse[listed].amax(0)).exp()
            out[token] = (parts.acc[listed] * (share / share.sum(0))[..., None]).sum(0)
            written[token] += 1
    wanted = (limit >= 0).long()
    assert torch.equal(written, wanted), "every token is written once, and no padding"
    return out.flatten(1).to(dtype)


def spans(plan: TritonPlan, window: int | None) -> list[list[tuple[int, int]]]:
    """For every token the (first, last) positions that it sees of each span that makes up its result, in the order in
    which they are merged."""
    work, limit = plan.work[window], plan.limit.tolist()
    found: list[list[tuple[int, int]]] = [[] for _ in limit]
    partial: dict[int, tuple[int, int]] = {}
    for _, (_, _, _, start, length, into), tokens in items(work):
        for row, token in enumerate(tokens.tolist()):
            low = 0 if window is None else max(0, limit[token] - window + 1)
            seen = max(start, low), min(start + length - 1, limit[token])
            if into < 0:
                found[token].append(seen)
            else:
                assert into + row not in partial, "two rows write one partial"
                partial[into + row] = seen
    pointer = work.merge_ptr.tolist()
    for token in range(plan.padded):
        found[token] += [partial[p] for p in work.merge_at[pointer[token] : pointer[token + 1]].tolist()]
    return found


def poisoned(plan: TritonPlan) -> TritonPlan:
    """The same plan; what is in its partial buffers is nan."""
    plan.partials.acc.fill_(np.nan)
    plan.partials.lse.fill_(np.nan)
    return plan
