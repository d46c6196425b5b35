"""The one signature of every device operation, and the plain data that they share.

In: a `Batch` and tensors of one device. Out: tensors of the same device. An implementation is a module with these
functions (`reference`, `cpu`); `ramet.kernels.ops` picks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ramet.runtime.batch import I32, Batch, Draws, Masks, Targets

if TYPE_CHECKING:  # nothing here computes: the native path on the CPU never imports torch
    import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """The attention shape of a model: `windows` lists the distinct windows of its layers (None is full attention; w
    means that a token sees itself and the w - 1 before it). Query head h reads KV head h // (heads // kv_heads)."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    windows: tuple[int | None, ...] = (None,)


@dataclass(frozen=True, slots=True)
class Angles:
    """Rotary tables `cos`, `sin` `[context, head_dim / 2] float32`, times the attention factor of the rope scaling."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm: `weight` `[dim] float32`; `eps` a 0-d float32 tensor, so that no call builds one."""

    weight: torch.Tensor
    eps: torch.Tensor


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Norms of q and k over head_dim (Qwen3): `weight` `[heads + kv_heads, head_dim] float32`, q heads first."""

    weight: torch.Tensor
    eps: torch.Tensor


@dataclass(frozen=True, slots=True)
class Drawn:
    """What `sample` returns, on the device; shapes as in `Samples`. tokens `[R] int64` (-1: no token is allowed, or the
    logits are not finite), logprobs `[R] float32`, top_ids `[R, K] int32`, top_logprobs `[R, K]`, targets `[P]`
    float32, target_ids `[P, K'] int32`, target_logprobs `[P, K']`."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor
    targets: torch.Tensor
    target_ids: torch.Tensor
    target_logprobs: torch.Tensor


class Plan(Protocol):
    """Index tensors of one batch, built once and used by every layer; what else it holds is its device's business."""

    @property
    def tokens(self) -> int:
        """T, the number of new tokens."""

    @property
    def padded(self) -> int:
        """Rows of every activation: T rounded up to what the device's linear layers want; the last ones are padding."""


class Ops(Protocol):
    """The operations. Names: T' padded rows, E hidden, H heads, K kv_heads, D head_dim, C slots."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """Prepare `weight` `[out, in]` (and `bias` `[out]`) for `linear`."""

    def linear(self, x: torch.Tensor, layer: Any) -> torch.Tensor:
        """`x` `[rows, in]` → `[rows, out]`, same dtype."""

    def embedding(self, tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """`tokens` `[T'] int64` → the residual stream `[T', E] float32`, a fresh tensor."""

    def rmsnorm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, norm: Norm, dtype: torch.dtype
    ) -> torch.Tensor:
        """Add `delta` to `residual` `[T', E] float32` in place, return the norm of the sum in `dtype` (Zhang and
        Sennrich 2019)."""

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        """`x` `[T', 2I]` → `silu(x[:, :I]) * x[:, I:]`."""

    def plan(self, batch: Batch, layout: Layout, angles: Angles, capacity: int) -> Any:
        """Index tensors of `batch` for a cache of `capacity` slots, on the device of `angles`."""

    def rope_store(
        self, qkv: torch.Tensor, norms: HeadNorms | None, layout: Layout, plan: Any, cache: torch.Tensor
    ) -> torch.Tensor:
        """Norm (if any) and rotate q and k of `qkv` `[T', (H + 2K) D]` in float32 (half-split rotary embedding, Su et
        al. 2021), write k and v to the batch's slots of `cache` `[2, K, C, D]`, return q `[T', H, D] float32`."""

    def attention(
        self, q: torch.Tensor, layout: Layout, plan: Any, cache: torch.Tensor, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """Causal attention of every new token over its segment's slots, in float32 → `[T', H D]` in `dtype`. Padding
        rows are zero. Slots that a token may not see do not influence it, whatever finite value they hold; slots in no
        segment of the batch are never read."""

    def sample(
        self, logits: torch.Tensor, draws: Draws, at: I32, targets: Targets, target_at: I32, masks: Masks
    ) -> Drawn:
        """Draw tokens and score targets. `logits` `[U, V] float32`; draw r uses row `at[r]`, target p row
        `target_at[p]`. The definition of the distribution is `reference.probabilities`."""
