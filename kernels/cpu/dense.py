"""Dense operations on the CPU. In: activations, one token a row, and weights packed once. Out: activations.

What was measured (torch 2.13, MKL and oneDNN, AVX-512, 1 and 2 threads): a row of a linear layer has the same
bits for every number of rows that is a multiple of `TILE`, and not for 1-3 (float32: 5-7 and 9-11 as well). So rows
are padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from ramet.kernels.cpu.plan import TILE, CpuPlan
from ramet.kernels.ops import HeadNorms, Layout, Norm


@dataclass(frozen=True, slots=True)
class Linear:
    """`weight` `[out, in]`, in oneDNN's blocked layout when `blocked`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    blocked: bool


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Reorder a bfloat16 weight once for oneDNN, which is 1.3-1.6 times faster for up to 32 rows; other weights
    stay."""
    if weight.dtype is torch.bfloat16 and torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Linear(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TILE), bias, True)
    return Linear(weight.contiguous(), bias, False)


def linear(x: torch.Tensor, layer: Linear) -> torch.Tensor:
    """See `Ops.linear`."""
    rows = x.shape[0]
    if rows % TILE:
        x = functional.pad(x, (0, 0, 0, -rows % TILE))
    if layer.blocked:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
    else:
        y = functional.linear(x, layer.weight, layer.bias)
    return y[:rows] if rows % TILE else y


def embedding(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `Ops.embedding`."""
    return table.index_select(0, tokens).to(torch.float32)


def rmsnorm(residual: torch.Tensor, delta: torch.Tensor | None, norm: Norm, dtype: torch.dtype) -> torch.Tensor:
    """See `Ops.rmsnorm`."""
    if delta is not None:
        residual.add_(delta)
    return (residual * _inverse_rms(residual, norm.eps)).mul_(norm.weight).to(dtype)


def _inverse_rms(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    length = torch.linalg.vector_norm(x, 2, -1, True)
    return torch.addcmul(eps, length, length, value=1.0 / x.shape[-1]).rsqrt_()


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `Ops.silu_mul`. Float32 `silu` rounds differently in vector tails; `exp` does not."""
    gate, up = x.chunk(2, dim=-1)
    if x.dtype is torch.float32:
        return gate.neg().exp_().add_(1).reciprocal_().mul_(gate).mul_(up)
    return functional.silu(gate).mul_(up)


def rope_store(
    qkv: torch.Tensor, norms: HeadNorms | None, layout: Layout, plan: CpuPlan, cache: torch.Tensor
) -> torch.Tensor:
    """See `Ops.rope_store`."""
    rotated, dim = layout.heads + layout.kv_heads, layout.head_dim
    x = qkv.to(torch.float32).view(qkv.shape[0], rotated + layout.kv_heads, dim)
    qk = x[:, :rotated]
    if norms is not None:
        qk.mul_(_inverse_rms(qk, norms.eps)).mul_(norms.weight)
    swapped = torch.roll(qk, dim // 2, -1)
    qk.mul_(plan.cos).addcmul_(swapped, plan.sin)  # plan.sin is negative in its first half
    new = x[: plan.tokens, layout.heads :].transpose(0, 1).reshape(-1, dim)
    cache.view(-1, dim).index_copy_(0, plan.store, new.to(cache.dtype))
    return x[:, : layout.heads]
