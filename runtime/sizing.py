"""How much memory a model needs, and how many KV slots fit beside it.

In: a `Spec`, a dtype, bytes that are free. Out: bytes, slots, or an error with the figures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ramet.frontend.errors import EngineError, ModelError
from ramet.runtime.config import Config
from ramet.runtime.models.spec import Spec

if TYPE_CHECKING:  # the native path sizes its pool without torch
    import torch

MAX_SLOTS = 65_536  # of a pool on the CPU that nobody sized
CPU_SHARE = 0.25  # of the free memory, for such a pool
CUDA_SHARE = 0.9  # of what weights, workspace and graphs leave; the rest is for fragmentation and odd batches
# bytes of a weight of a linear layer: 4-bit and 8-bit values, and what their scales take at most
PACKED = {"int8": 1.0625, "int4": 0.5625, "fp8": 1.0625}


class Element(Protocol):
    """The type of an element: torch's or numpy's dtype."""

    @property
    def itemsize(self) -> int:
        """Bytes of one."""


def native_dtype() -> torch.dtype:
    """bfloat16 where the processor computes with it, else float32."""
    import torch

    onednn = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if onednn and torch.cpu._is_avx512_bf16_supported() else torch.float32


def kv_bytes_per_token(spec: Spec, dtype: Element) -> int:
    """Bytes of one slot: K and V of one token in all layers."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize


def weight_bytes(spec: Spec, dtype: Element) -> int:
    """Bytes of the weights as the decoder keeps them (a tied embedding is packed once more for the head)."""
    count = sum(int(np.prod(shape)) for shape in spec.tensor_shapes().values())
    return (count + (spec.vocab * spec.hidden if spec.tied else 0)) * dtype.itemsize


def device_weight_bytes(spec: Spec, dtype: Element, weights: str) -> int:
    """The same on a GPU, for the option `weights`: a dense head shares a tied embedding, packed weights are smaller
    than `dtype`."""
    embedding = spec.vocab * spec.hidden
    count = sum(int(np.prod(shape)) for shape in spec.tensor_shapes().values())
    if weights not in PACKED:
        return count * dtype.itemsize
    linear = count - embedding * (1 if spec.tied else 2)
    return embedding * dtype.itemsize + int((linear + embedding) * PACKED[weights])


def default_capacity(
    spec: Spec, dtype: Element, *, context: int, memory: int, share: float = 0.0, weights: int = 0
) -> int:
    """Slots of a pool on the CPU that nobody sized: what `share` (0: a quarter, and at most 65,536 slots) of `memory`
    (free bytes, weights not yet loaded) holds after the weights (bytes; 0: dense ones of `dtype`), at least one
    context. Raises `ModelError` with the figures when the weights and one context do not fit at all."""
    weights, each = weights or weight_bytes(spec, dtype), kv_bytes_per_token(spec, dtype)
    left = memory - weights
    if left < context * each:
        raise ModelError(
            f"the model {spec.name!r} needs {size(weights)} for weights and {size(context * each)} for the KV of one "
            f"context of {context} tokens; {size(memory)} are free: ask for a shorter context, or a smaller model"
        )
    slots = int(left * (share or CPU_SHARE)) // each
    return max(context, slots if share else min(MAX_SLOTS, slots))


def check_room(spec: Spec, dtype: Element, *, kv_tokens: int, memory: int, weights: int = 0) -> None:
    """Raise `EngineError` for a pool of a stated size that `memory` (free bytes, weights not yet loaded; they take
    `weights` bytes, 0: dense ones of `dtype`) does not hold on the CPU."""
    weights, each = weights or weight_bytes(spec, dtype), kv_bytes_per_token(spec, dtype)
    if kv_tokens and weights + kv_tokens * each > memory:
        raise EngineError(
            f"kv_tokens={kv_tokens}: a KV pool of {kv_tokens * each / 2**30:.2f} GiB does not fit; "
            f"{memory / 2**30:.2f} GiB are free, the weights take {weights / 2**30:.2f} of them: ask for at most "
            f"{max(memory - weights, 0) // each} tokens, or leave it out"
        )


def check_weights(spec: Spec, dtype: Element, weights: str, memory: int) -> None:
    """Raise `ModelError` before anything is loaded when the weights alone do not fit `memory` (free bytes of a GPU)."""
    need = device_weight_bytes(spec, dtype, weights)
    if need > memory:
        raise ModelError(
            f"the model {spec.name!r} needs {size(need)} for weights; {size(memory)} are free on the device: ask for "
            f"a smaller model, weights='int8' or 'int4', or device='cpu'"
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory of a GPU in bytes, measured with the weights loaded and no KV pool: `free`; of that, `workspace` is what
    the largest step allocates at once and `graphs` what captured graphs are going to keep. `weights` is for messages.
    """

    free: int
    workspace: int
    graphs: int
    weights: int

    @property
    def left(self) -> int:
        """What a KV pool may take."""
        return max(0, self.free - self.workspace - self.graphs)


def device_capacity(
    spec: Spec, dtype: Element, budget: Budget, *, context: int, asked: int = 0, share: float = 0.0
) -> int:
    """Slots of the KV pool of a GPU, without the dump slot, which is paid for: `asked`, or (0) as many as `share` (0:
    0.9) of what is left holds.

    Raises `ModelError` when not even one context fits that share, `EngineError` when `asked` does not fit what is
    left, both with the figures.
    """
    each, share = kv_bytes_per_token(spec, dtype), share or CUDA_SHARE
    figures = (
        f"{size(budget.free)} are free beside {size(budget.weights)} of weights; a step needs {size(budget.workspace)} "
        f"of workspace, CUDA graphs {size(budget.graphs)}"
    )
    if asked:
        most = budget.left // each - 1
        if asked > most:
            raise EngineError(
                f"kv_tokens={asked}: a KV pool of {size(asked * each)} does not fit; {figures}: ask for at most "
                f"{max(most, 0)} tokens, or leave it out"
            )
        return asked
    slots = int(budget.left * share) // each - 1
    if slots < context:
        raise ModelError(
            f"the model {spec.name!r} needs {size((context + 1) * each)} for the KV of one context of {context} "
            f"tokens; {figures}, and kv_share={share:g} of the rest is for KV: ask for a shorter context, fewer "
            f"batch_tokens, a smaller max_running or a smaller model"
        )
    return slots


def free_memory() -> int:
    """Bytes that this process may still take: the machine's available memory, and less where a control group says
    so."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = pages
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(most) - int(used.read_text())))
    return free


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def checked_context(config: Config, spec: Spec) -> int:
    """The context that `config` asks for. Raises `EngineError` when the model has less."""
    context = config.context or spec.context
    if context > spec.context:
        raise EngineError(f"context={context}: the model {spec.name!r} has {spec.context}; ask for less, or 0")
    return context


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
