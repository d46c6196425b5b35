"""The models of the benchmark on the device. In: a preset's name. Out: its Spec, and a runner with random weights.

Weights are drawn on the device and the KV pool is filled with random numbers: nothing is timed on zeros. One model is
kept at a time; another one takes its place.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gpu_parts.place import Place
from ramet.kernels.triton import TritonOps
from ramet.runtime.config import Config, Limits
from ramet.runtime.cuda import CudaRunner, assemble
from ramet.runtime.device import CudaDevice, HostDevice
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.spec import Spec
from ramet.runtime.runner import Load, TorchRunner
from ramet.runtime.sizing import device_weight_bytes, kv_bytes_per_token
from ramet.runtime.steps import TritonSteps

SMOL, QWEN, LLAMA1, LLAMA8 = "smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "llama-3.1-8b"
MODELS = (SMOL, QWEN, LLAMA1, LLAMA8)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much a run does. `layers`: at most so many of each model; `toy`: for the interpreter. `kv_tokens` bounds the
    pool, which is at most 80 % of what is free. A step has at most `batch_tokens` new tokens."""

    toy: bool = False
    layers: int = 1 << 20
    batches: tuple[int, ...] = (1, 8, 32, 128, 256)
    contexts: tuple[int, ...] = (1024, 8192)
    forks: tuple[int, ...] = (8, 32, 64)
    shared: tuple[int, ...] = (1024, 4096, 8192)
    steps: int = 24
    repeats: int = 5
    prompts: tuple[int, int] = (16, 1024)  # number and tokens of a prefill
    mix: tuple[int, int, int] = (256, 100, 1024)  # requests, least and most tokens
    busy: tuple[int, ...] = (64, 256)  # sequences whose host time is measured
    kv_tokens: int = 256 * 8400
    context: int = 8704
    rows: int = 256
    batch_tokens: int = 8192


FULL = Scale()
# what a child does before the run, so that the compiler has been everywhere
REHEARSAL = Scale(
    layers=1, batches=(1, 32), contexts=(1024,), forks=(8,), shared=(1024,), steps=2, repeats=1,
    mix=(24, 100, 200), busy=(64,), kv_tokens=90_000,
)  # fmt: skip
TOY = Scale(
    toy=True, batches=(2,), contexts=(20,), forks=(2,), shared=(520,), steps=1, repeats=1, prompts=(2, 8),
    mix=(2, 2, 3), busy=(2,), kv_tokens=1200, context=600, rows=2, batch_tokens=16,
)  # fmt: skip


def spec_of(model: str, scale: Scale) -> Spec:
    """The preset, as far as the scale goes."""
    spec = PRESETS[model]
    if scale.toy:
        return replace(spec, layers=1, hidden=32, heads=4, kv_heads=2, head_dim=16, intermediate=48, vocab=131)
    return replace(spec, layers=min(spec.layers, scale.layers))


def random_on(spec: Spec, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """`runtime.models.load.random_weights`, drawn on the device: 8 billion numbers take a minute on a CPU."""
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, shape in spec.tensor_shapes().items():
        part = name.rpartition(".")[2]
        if part.endswith("norm"):
            weights[name] = torch.ones(shape, dtype=dtype, device=device)
            continue
        scale = 0.02 if len(shape) == 1 else shape[1] ** -0.5
        scale *= (2 * spec.layers) ** -0.5 if part in ("o", "down") else 1.0
        weights[name] = torch.randn(shape, generator=generator, dtype=dtype, device=device).mul_(scale)
    return weights


@dataclass(frozen=True, slots=True)
class Model:
    """A runner and what it runs."""

    name: str
    spec: Spec
    runner: CudaRunner | TorchRunner
    limits: Limits

    def group(self, on: bool) -> None:
        """Read shared KV once from now on, or once for each branch: what is compared shares weights, pool and graphs'
        buffers. (`TritonOps(grouping=...)` says it once and for all.)"""
        self.runner._steps._grouping = on  # type: ignore[union-attr]


class Models:
    """Loads models and keeps the last one."""

    def __init__(self, place: Place, scale: Scale) -> None:
        self.place, self.scale = place, scale
        self._kept: tuple[tuple[Any, ...], Model] | None = None

    def get(self, name: str, **fields: Any) -> Model:
        """A model; `fields` are those of `Config` (`deterministic`, `graphs`)."""
        key = (name, *sorted(fields.items()))
        if self._kept is None or self._kept[0] != key:
            self.drop()
            spec = spec_of(name, self.scale)
            self._kept = key, self.build(name, spec, **fields)
        return self._kept[1]

    def drop(self) -> None:
        """Free the memory of the last one."""
        self._kept = None
        gc.collect()
        if not self.place.toy:
            torch.cuda.empty_cache()

    def build(self, name: str, spec: Spec, load: Load | None = None, **fields: Any) -> Model:
        """A runner, warm, over a pool of random numbers; `load` gives its weights (None: random ones)."""
        scale, place = self.scale, self.place
        device = HostDevice() if place.toy else CudaDevice()
        limits = Limits(batch_tokens=scale.batch_tokens, chunk_tokens=min(2048, scale.batch_tokens))
        options: dict[str, Any] = {"dtype": str(place.dtype).removeprefix("torch."), "context": scale.context}
        options |= {"kv_tokens": self._slots(spec, device.free()), "max_running": scale.rows, "limits": limits} | fields

        def drawn(dtype: torch.dtype) -> Mapping[str, torch.Tensor]:
            return random_on(spec, dtype, place.device)

        config = Config(model=f"random:{name}", **options)
        ops = TritonOps(deterministic=config.deterministic)
        runner = assemble(config, spec, load or drawn, device, ops, TritonSteps)
        place.sync()
        with torch.inference_mode():
            runner._cache.normal_()
        place.sync()
        return Model(name, spec, runner, limits)

    def _slots(self, spec: Spec, free: int) -> int:
        left = free - device_weight_bytes(spec, self.place.dtype, "dense")
        each = kv_bytes_per_token(spec, self.place.dtype)
        return min(self.scale.kv_tokens, int(0.8 * left) // each)
