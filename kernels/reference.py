"""The definition of every operation, in plain torch on any device: clear and exact before fast.

In: tensors of one device. Out: tensors of the same device. Other implementations are tested against this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ramet.kernels.cpu.draw import unpacked as unpacked
from ramet.kernels.noise import uniforms
from ramet.kernels.ops import Angles, Drawn, HeadNorms, Layout, Norm
from ramet.runtime.batch import I32, Batch, Draws, Masks, Targets


@dataclass(frozen=True, slots=True)
class Linear:
    """`weight` `[out, in]`, `bias` `[out]` or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens first..last-1 of a batch and the slots `[kv] int64` of all tokens that the last one sees."""

    first: int
    last: int
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class RaggedPlan:
    """Slots `[T] int64`, `cos` and `sin` `[T, 1, D/2]` of the new tokens, and the segments."""

    tokens: int
    padded: int
    slots: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    segments: tuple[Segment, ...]


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """See `Ops.pack`."""
    return Linear(weight, bias)


def linear(x: torch.Tensor, layer: Linear) -> torch.Tensor:
    """See `Ops.linear`."""
    return torch.nn.functional.linear(x, layer.weight, layer.bias)


def embedding(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `Ops.embedding`."""
    return table[tokens].to(torch.float32, copy=True)


def rmsnorm(residual: torch.Tensor, delta: torch.Tensor | None, norm: Norm, dtype: torch.dtype) -> torch.Tensor:
    """See `Ops.rmsnorm`."""
    if delta is not None:
        residual.add_(delta)
    return _normed(residual, norm.weight, norm.eps).to(dtype)


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `Ops.silu_mul`."""
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def plan(batch: Batch, layout: Layout, angles: Angles, capacity: int) -> RaggedPlan:
    """See `Ops.plan`."""
    device = angles.cos.device
    positions = torch.from_numpy(batch.positions).to(device, torch.int64)
    slots = torch.from_numpy(batch.slots).to(device, torch.int64)
    visible = torch.from_numpy(batch.kv_indices).to(device, torch.int64)
    qo, kv = batch.qo_indptr.tolist(), batch.kv_indptr.tolist()
    segments = tuple(Segment(qo[s], qo[s + 1], visible[kv[s] : kv[s + 1]]) for s in range(batch.segments))
    cos, sin = angles.cos[positions][:, None], angles.sin[positions][:, None]
    return RaggedPlan(len(batch), len(batch), slots, cos, sin, segments)


def rope_store(
    qkv: torch.Tensor, norms: HeadNorms | None, layout: Layout, plan: RaggedPlan, cache: torch.Tensor
) -> torch.Tensor:
    """See `Ops.rope_store`."""
    rotated = layout.heads + layout.kv_heads
    x = qkv.to(torch.float32).view(len(qkv), rotated + layout.kv_heads, layout.head_dim)
    qk, v = x[:, :rotated], x[:, rotated:]
    if norms is not None:
        qk = _normed(qk, norms.weight, norms.eps)
    a, b = qk.chunk(2, dim=-1)
    qk = torch.cat((a * plan.cos - b * plan.sin, b * plan.cos + a * plan.sin), dim=-1)
    cache[0][:, plan.slots] = qk[:, layout.heads :].transpose(0, 1).to(cache.dtype)
    cache[1][:, plan.slots] = v.transpose(0, 1).to(cache.dtype)
    return qk[:, : layout.heads]


def attention(
    q: torch.Tensor, layout: Layout, plan: RaggedPlan, cache: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """See `Ops.attention`."""
    out = torch.zeros(len(q), layout.heads * layout.head_dim, dtype=dtype, device=q.device)
    group = layout.heads // layout.kv_heads
    for segment in plan.segments:
        n, length = segment.last - segment.first, len(segment.slots)
        keys, values = (cache[i][:, segment.slots].float().repeat_interleave(group, 0) for i in (0, 1))
        scores = q[segment.first : segment.last].transpose(0, 1) @ keys.transpose(1, 2) * layout.scale
        at = torch.arange(length, device=q.device)
        mine = at[length - n :, None]
        hidden = at > mine if window is None else (at > mine) | (at <= mine - window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[segment.first : segment.last] = (weights @ values).transpose(0, 1).flatten(1).to(dtype)
    return out


def adjusted(logits: torch.Tensor, r: int, draws: Draws, masks: Masks) -> torch.Tensor:
    """The logits `[V] float32` of draw r after repetition, frequency and presence penalties, bias and constraint, in
    this order. Repetition (Keskar et al. 2019) is over all tokens of the sequence, the other two over the op's own."""
    x = logits.clone()
    for index, tokens, own in masks.history:
        if index == r:
            seen = torch.from_numpy(np.unique(tokens).astype(np.int64)).to(x.device)
            scale = float(draws.repetition[r])
            x[seen] = torch.where(x[seen] > 0, x[seen] / scale, x[seen] * scale)
            ids, counts = np.unique(tokens[len(tokens) - own :], return_counts=True)
            count = torch.from_numpy(counts.astype(np.float32)).to(x.device)
            penalty = count * float(draws.frequency[r]) + float(draws.presence[r])
            x[torch.from_numpy(ids.astype(np.int64)).to(x.device)] -= penalty
    for index, tokens, values in draws.bias:
        if index == r:
            at = torch.from_numpy(tokens.astype(np.int64)).to(x.device)
            x.index_add_(0, at, torch.from_numpy(values).to(x.device))
    for index, words in masks.allowed:
        if index == r:
            x.masked_fill_(~torch.from_numpy(unpacked(words, len(x))).to(x.device), -torch.inf)
    return x


def probabilities(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """The distribution `[V] float64` from which a token is drawn; temperature > 0, logits with a finite maximum.

    Softmax at the temperature; then keep the top_k most likely (0: all; of equals, the lower id first); of these, the
    smallest most likely set with at least the share top_p of their mass (Holtzman et al. 2020); of these, those with at
    least min_p times the largest probability (Nguyen et al. 2024); then renormalise.
    """
    x = logits.to(torch.float64)
    ranked, ids = torch.sort(x, descending=True, stable=True)
    p = torch.exp((ranked - ranked[0]) / temperature)
    if top_k > 0:
        p[top_k:] = 0
    if top_p < 1:
        p[p.cumsum(0) - p >= top_p * p.sum()] = 0
    p[p < min_p * p[0]] = 0
    return torch.zeros_like(x).index_copy_(0, ids, p / p.sum())


def _draw(x: torch.Tensor, r: int, draws: Draws, u: float) -> int:
    if not bool(x.max().isfinite()):  # nan, +inf, or every token forbidden
        return -1
    if draws.temperature[r] == 0:
        return int((x == x.max()).nonzero()[0])
    options = draws.temperature[r], draws.top_k[r], draws.top_p[r], draws.min_p[r]
    total = probabilities(x, float(options[0]), int(options[1]), float(options[2]), float(options[3])).cumsum(0)
    return int(torch.searchsorted(total, u * total[-1], right=True))


def sample(logits: torch.Tensor, draws: Draws, at: I32, targets: Targets, target_at: I32, masks: Masks) -> Drawn:
    """See `Ops.sample`. The token is the first, in order of id, whose cumulated probability exceeds `uniforms(seed,
    position)`; at temperature 0 the most likely one, the lowest id of equals."""
    noise = uniforms(draws.seeds, draws.positions)
    tokens = [_draw(adjusted(logits[at[r]], r, draws, masks), r, draws, float(noise[r])) for r in range(len(draws))]
    logprobs = torch.log_softmax(logits, dim=-1)
    own = logits.new_full((len(draws),), torch.nan)
    failed = np.array(tokens, np.int64) < 0
    for r, k in enumerate(draws.logprobs.tolist()):
        if k >= 0 and not failed[r]:
            own[r] = logprobs[at[r], tokens[r]]
    ids, tops = _alternatives(logprobs, np.where(failed, 0, draws.logprobs).astype(np.int32), at)
    where = torch.from_numpy(np.stack((target_at, targets.tokens)).astype(np.int64)).to(logits.device)
    drawn = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    asked = targets.top if len(targets.top) else np.zeros(len(targets.tokens), np.int32)
    return Drawn(drawn, own, ids, tops, logprobs[where[0], where[1]], *_alternatives(logprobs, asked, target_at))


def _alternatives(logprobs: torch.Tensor, wanted: I32, at: I32) -> tuple[torch.Tensor, torch.Tensor]:
    """The `wanted[n]` most likely tokens of row `at[n]` of `logprobs` and their values, each `[N, K]`, K the largest
    wanted; -1 and nan beyond a row's own."""
    width = max(0, int(wanted.max())) if len(wanted) else 0
    ids = torch.full((len(wanted), width), -1, dtype=torch.int32, device=logprobs.device)
    tops = logprobs.new_full((len(wanted), width), torch.nan)
    for n, k in enumerate(wanted.tolist()):
        if k > 0:
            best = torch.sort(logprobs[at[n]], descending=True, stable=True)
            k = min(k, len(best.values))
            ids[n, :k], tops[n, :k] = best.indices[:k].to(torch.int32), best.values[:k]
    return ids, tops
