"""Head norms, rotary embedding and the write into the KV cache, one pass. In: q, k and v of a batch as the linear layer
leaves them, and the plan. Out: rotated q; k and v stand in their slots."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import triton
import triton.language as tl

from ramet.kernels.ops import HeadNorms, Layout
from ramet.kernels.triton.aot import Variant

_ELEMENTS = 2048  # a program: 16 a thread


class RopePlan(Protocol):
    """What is needed of a plan: positions, slots `[P] int32`; cos, sin `[context, D / 2] float32`."""

    @property
    def positions(self) -> torch.Tensor:
        """Of the new tokens, `[P] int32`."""

    @property
    def slots(self) -> torch.Tensor:
        """That the new tokens' K and V go to, `[P] int32`."""

    @property
    def cos(self) -> torch.Tensor:
        """`[context, D / 2] float32`."""

    @property
    def sin(self) -> torch.Tensor:
        """`[context, D / 2] float32`."""


@triton.jit
def rotate_store(
    qkv: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    cache: tl.tensor,
    qkv_stride: tl.tensor,
    side_stride: tl.tensor,
    head_stride: tl.tensor,
    slot_stride: tl.tensor,
    H: tl.constexpr,
    KH: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    NORM: tl.constexpr,
) -> None:
    """One program per HEADS heads of a token, in float32; the halves of a head are two tiles `[HEADS, HALF]`.

    Half-split rotation: (a, b) → (a cos - b sin, b cos + a sin) (Su et al. 2021). Heads are numbered q, k, v.
    Floor: 2 T (H + 2 KH) D itemsize bytes (each of q, k, v read once and written once); the angles stay in L2.
    """
    program = tl.program_id(0)
    token = (program // GROUPS).to(tl.int64)
    head = program % GROUPS * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, HALF)
    within = lane < D // 2
    inside = (head < H + 2 * KH)[:, None] & within[None, :]
    slot = tl.load(slots + token).to(tl.int64)
    angle = tl.load(positions + token).to(tl.int64) * (D // 2) + lane
    source = qkv + token * qkv_stride + head[:, None] * D + lane[None, :]
    a = tl.load(source, inside, 0.0).to(tl.float32)
    b = tl.load(source + D // 2, inside, 0.0).to(tl.float32)
    c = tl.load(cos + angle, within, 0.0)[None, :]
    s = tl.load(sin + angle, within, 0.0)[None, :]
    turned = (head < H + KH)[:, None]
    if NORM:
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / D + tl.load(eps))[:, None]
        weights = weight + head[:, None] * D + lane[None, :]
        a = tl.where(turned, a * scale * tl.load(weights, turned & inside, 0.0), a)
        b = tl.where(turned, b * scale * tl.load(weights + D // 2, turned & inside, 0.0), b)
    left = tl.where(turned, a * c - b * s, a).to(cache.dtype.element_ty)
    right = tl.where(turned, b * c + a * s, b).to(cache.dtype.element_ty)
    query = (head < H)[:, None] & inside
    target = out + (token * H + head[:, None]) * D + lane[None, :]
    tl.store(target, left, query)
    tl.store(target + D // 2, right, query)
    other = tl.maximum(head - H, 0)  # q's lanes are masked
    place = (other // KH).to(tl.int64) * side_stride + (other % KH).to(tl.int64) * head_stride + slot * slot_stride
    target = cache + place[:, None] + lane[None, :]
    stored = (head >= H)[:, None] & inside
    tl.store(target, left, stored)
    tl.store(target + D // 2, right, stored)


def rope_store(
    qkv: torch.Tensor, norms: HeadNorms | None, layout: Layout, plan: RopePlan, cache: torch.Tensor
) -> torch.Tensor:
    """See `Ops.rope_store`: `qkv` `[P, (H + 2 K) D]` of any row stride, `cache` `[2, K, C, D]` of any strides but the
    last. Returns q `[P, H, D]` in the cache's dtype. Padding rows are rotated too and write their slot, the dump."""
    rows, heads, kv_heads, dim = len(qkv), layout.heads, layout.kv_heads, layout.head_dim
    assert qkv.stride(1) == 1 and cache.stride(3) == 1, "heads are contiguous"
    assert plan.cos.is_contiguous() and plan.sin.is_contiguous(), "angles are read by position * D / 2"
    out = torch.empty(rows, heads, dim, dtype=cache.dtype, device=qkv.device)  # every element is written below
    if rows == 0:
        return out
    shape = _tile(heads, kv_heads, dim)
    angles = plan.cos, plan.sin
    rotate_store[(rows * shape["GROUPS"],)](
        qkv,
        plan.cos if norms is None else norms.weight,
        plan.cos if norms is None else norms.eps,
        plan.positions,
        plan.slots,
        *angles,
        out,
        cache,
        qkv.stride(0),
        *cache.stride()[:3],
        **shape,
        NORM=norms is not None,
        num_warps=4,
    )
    return out


def _tile(heads: int, kv_heads: int, dim: int) -> dict[str, int]:
    half = 1 << (dim // 2 - 1).bit_length()
    each = max(1, _ELEMENTS // (2 * half))
    groups = triton.cdiv(heads + 2 * kv_heads, each)
    return {"H": heads, "KH": kv_heads, "D": dim, "HALF": half, "HEADS": each, "GROUPS": groups}


def variants() -> tuple[Variant, ...]:
    """Heads of SmolLM2-135M, Qwen3-0.6B (head norms), Llama 3.2 1B, Llama 3.1 8B and a head of 80."""
    shapes = ((9, 3, 64, False), (16, 8, 128, True), (32, 8, 64, False), (32, 8, 128, False), (32, 32, 80, False))
    return tuple(_variant(*shape) for shape in shapes)


def _variant(heads: int, kv_heads: int, dim: int, norm: bool) -> Variant:
    constants: dict[str, Any] = _tile(heads, kv_heads, dim) | {"NORM": norm}
    pointers = {"qkv": "*bf16", "weight": "*fp32", "eps": "*fp32", "positions": "*i32", "slots": "*i32"}
    pointers |= {"cos": "*fp32", "sin": "*fp32", "out": "*bf16", "cache": "*bf16"}
    strides = {"qkv_stride": "i32", "side_stride": "i64", "head_stride": "i32", "slot_stride": "i32"}
    return Variant(
        name=f"rope/{'norm/' if norm else ''}bf16/h{heads}k{kv_heads}d{dim}",
        kernel=rotate_store,
        signature=pointers | strides | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        aligned=(*pointers, *strides),
    )
