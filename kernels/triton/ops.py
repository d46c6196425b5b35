"""The operations of a GPU, put together. In: how weights are kept, and whether bits may depend on the batch. Out: an
implementation of `ramet.kernels.ops.Ops`; each method is one call into the module that does the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ramet.frontend.errors import ModelError
from ramet.kernels.ops import Angles, Drawn, HeadNorms, Layout, Norm
from ramet.kernels.triton import attention, linear, norms, rope, sample, silu, table
from ramet.kernels.triton.plan import TritonPlan, plan
from ramet.runtime.batch import I32, Batch, Draws, Masks, Targets

WEIGHTS = ("dense", "int8", "int4", "fp8")


@dataclass(frozen=True, slots=True)
class TritonOps:
    """`Ops` on CUDA. `weights`: "dense" keeps the dtype that `pack` is given, "int8" and "int4" keep groups of integers
    with scales, "fp8" also quantises activations. `deterministic`: a row's bits depend neither on its batch nor on
    chunking nor on grouping (not with "fp8"). `grouping`: read KV that segments share once.

    Raises `ModelError` for other values.
    """

    weights: str = "dense"
    deterministic: bool = False
    grouping: bool = True

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ModelError(f"weights={self.weights!r}: use one of {', '.join(map(repr, WEIGHTS))}")
        if self.deterministic and self.weights == "fp8":
            raise ModelError("weights='fp8' with deterministic=True: its product depends on the batch; use 'int8'")

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Ops.pack`."""
        return linear.pack(weight, bias, self.weights, deterministic=self.deterministic)

    def linear(self, x: torch.Tensor, layer: Any) -> torch.Tensor:
        """See `Ops.linear`."""
        return linear.linear(x, layer)

    def embedding(self, tokens: torch.Tensor, table_: torch.Tensor) -> torch.Tensor:
        """See `Ops.embedding`."""
        return table.embedding(tokens, table_)

    def rmsnorm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, norm: Norm, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `Ops.rmsnorm`."""
        return norms.rmsnorm(residual, delta, norm, dtype)

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.silu_mul`."""
        return silu.silu_mul(x)

    def plan(self, batch: Batch, layout: Layout, angles: Angles, capacity: int) -> TritonPlan:
        """See `Ops.plan`: sized for this batch alone, one copy to the device."""
        return plan(batch, layout, angles, capacity, deterministic=self.deterministic, grouping=self.grouping)

    def rope_store(
        self, qkv: torch.Tensor, norms: HeadNorms | None, layout: Layout, plan: TritonPlan, cache: torch.Tensor
    ) -> torch.Tensor:
        """See `Ops.rope_store`; q comes in the cache's dtype."""
        return rope.rope_store(qkv, norms, layout, plan, cache)

    def attention(
        self,
        q: torch.Tensor,
        layout: Layout,
        plan: TritonPlan,
        cache: torch.Tensor,
        window: int | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """See `Ops.attention`."""
        return attention.attention(q, layout, plan, cache, window, dtype)

    def sample(
        self, logits: torch.Tensor, draws: Draws, at: I32, targets: Targets, target_at: I32, masks: Masks
    ) -> Drawn:
        """See `Ops.sample`."""
        return sample.sample(logits, draws, at, targets, target_at, masks)
