"""`CudaRunner` on a `HostDevice`, in plain torch: the GPU's plans and buckets, the reference's arithmetic.

`PlanOps` reads nothing but the words of a packed plan, through its views, as the kernels do. `HostSteps` packs draws
without edits into words; others fit no bucket and travel as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ramet.kernels import reference
from ramet.kernels.ops import Angles, Layout
from ramet.runtime.batch import I32, Batch, Draws, Masks, Targets
from ramet.runtime.cuda import CudaRunner
from ramet.runtime.device import Device, HostDevice
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.spec import Spec
from ramet.runtime.steps import Packed, TritonSteps

from ..kernels import worklist

FIELDS = ("positions", "seeds", "temperature", "top_p", "top_k", "min_p")
WIDTH = 9  # words of a draw: at, position and seed (two each), and four options


class PlanOps:
    """`Ops` over `TritonPlan`s on CPU tensors."""

    deterministic = False
    grouping = True
    pack = staticmethod(reference.pack)
    linear = staticmethod(reference.linear)
    embedding = staticmethod(reference.embedding)
    rmsnorm = staticmethod(reference.rmsnorm)
    silu_mul = staticmethod(reference.silu_mul)
    sample = staticmethod(reference.sample)
    rope_store = staticmethod(worklist.rope_store)
    attention = staticmethod(worklist.attention)

    def plan(self, batch: Batch, layout: Layout, angles: Angles, capacity: int) -> Any:
        raise AssertionError("the runner packs plans itself")


class HostSteps(TritonSteps):
    """`Steps` whose draws the reference makes."""

    def draw_words(self, bucket: int) -> int:
        return WIDTH * bucket

    def pack_draws(self, draws: Draws, at: I32, masks: Masks, bucket: int | None) -> Packed | None:
        if bucket is None:
            return Packed((np.zeros(1, np.int32),), "whole", (draws, at, masks))
        if draws.bias or masks.history or masks.allowed:
            return None
        words = np.zeros((bucket, WIDTH), np.int32)
        words[: len(draws), 0] = at
        for n, name in enumerate(FIELDS):
            wide = n < 2
            column = 1 + 2 * n if wide else 3 + n
            values = np.ascontiguousarray(getattr(draws, name)).view(np.int32).reshape(len(draws), -1)
            words[: len(draws), column : column + 1 + wide] = values
        return Packed((words.reshape(-1),), "plain", bucket)

    def view_draws(self, words: torch.Tensor, packed: Packed) -> tuple[Draws, I32, Masks]:
        if packed.facts == "whole":
            made: tuple[Draws, I32, Masks] = packed.detail
            return made
        n = packed.detail
        table = np.ascontiguousarray(words[: n * WIDTH].view(n, WIDTH).numpy())

        def column(at: int, dtype: type) -> Any:
            width = np.dtype(dtype).itemsize // 4
            return np.ascontiguousarray(table[:, at : at + width]).view(dtype).reshape(n)

        fields = {"positions": column(1, np.int64), "seeds": column(3, np.uint64), "temperature": column(5, np.float32)}
        fields |= {"top_p": column(6, np.float32), "top_k": column(7, np.int32), "min_p": column(8, np.float32)}
        none = np.full(n, -1, np.int32)
        return Draws.of(rows=none, into=none, **fields), column(0, np.int32), Masks()

    def draw(self, logits: torch.Tensor, view: Any) -> torch.Tensor:
        draws, at, masks = view
        nothing = np.zeros(0, np.int32)
        return reference.sample(logits, draws, at, Targets(nothing, nothing), nothing, masks).tokens

    def gather(self, plan: Any, last: torch.Tensor) -> torch.Tensor:
        return torch.where(plan.feed < 0, plan.ids.long(), last[plan.feed.clamp(min=0).long()])

    def scatter(self, tokens: torch.Tensor, into: torch.Tensor, last: torch.Tensor) -> None:
        last[into.long()] = tokens.clamp(min=0)

    def scratch_bytes(self, tokens: int, draws: int) -> int:
        return self._partial_bytes(tokens)


def decoder(spec: Spec, seed: int = 0) -> Decoder:
    return Decoder(spec, random_weights(spec, torch.float32, seed), "cpu", torch.float32, PlanOps())  # type: ignore[arg-type]


def runner(made: Decoder, device: Device | None = None, *, warm: bool = False, **fields: Any) -> CudaRunner:
    """A runner on the host; `warm` as `build` would."""
    options = {"capacity": 1400, "rows": 8, "context": 512, "graphs": True} | fields
    found = CudaRunner(made, HostDevice() if device is None else device, HostSteps, **options)
    if warm:
        found.warm(64)
    return found
