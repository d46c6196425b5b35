"""Batches to tokens on one device.

In: `Batch`es in launch order. Out: `Samples`. Owns the KV pool and the table of last sampled tokens; a sampled token is
written to the table on the device and the next batch is fed from it there, so the host is not on the way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.ops import Drawn
from ramet.runtime.batch import I32, Batch, Flight, Masks, Samples
from ramet.runtime.config import Config
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.spec import Spec

_MAX_SLOTS = 65_536  # of a pool that nobody sized
_SHARE = 0.25  # of the free memory, for such a pool
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(slots=True)
class TorchFlight:
    """A batch in the air: the logits of the rows that are drawn from or scored, and later what was drawn. `at` and
    `target_at` map draws and targets to rows of `logits`."""

    batch: Batch
    logits: torch.Tensor | None
    at: I32
    target_at: I32
    drawn: Drawn | None = None


class TorchRunner:
    """A `Runner` over torch. `capacity` KV slots, `rows` rows of the token table, `context` tokens of the longest
    sequence.

    `threads` sets torch's number of threads, which is the process's (None leaves it). The pool is zeroed, so that a
    slot that was never written cannot hold a nan. Raises `EngineError` for sizes that make no sense, `ModelError` when
    the device has no room for the pool.
    """

    def __init__(self, decoder: Decoder, *, capacity: int, rows: int, context: int, threads: int | None = None) -> None:
        for field, value in (("capacity", capacity), ("rows", rows), ("context", context), ("threads", threads or 1)):
            if value < 1:
                raise EngineError(f"{field}={value}: must be at least 1")
        if context > decoder.spec.context:
            raise EngineError(
                f"context={context}: the model {decoder.spec.name!r} has {decoder.spec.context}; ask for less"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        spec = decoder.spec
        self.capacity, self.rows, self.context, self.vocab = capacity, rows, context, spec.vocab
        self.threads = torch.get_num_threads()
        self.dtype_name = str(decoder.dtype).removeprefix("torch.")
        self._decoder, self._device = decoder, decoder.device
        shape = (spec.layers, 2, spec.kv_heads, capacity, spec.head_dim)
        with torch.inference_mode():
            try:
                self._cache = torch.zeros(shape, dtype=decoder.dtype, device=self._device)
            except RuntimeError as error:
                need = capacity * kv_bytes_per_token(spec, decoder.dtype)
                raise ModelError(
                    f"capacity={capacity}: no room for a KV pool of {_size(need)}; ask for less"
                ) from error
            self._last = torch.zeros(rows, dtype=torch.int64, device=self._device)
            self._angles = decoder.angles(context)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> TorchFlight:
        """Compute the batch's tokens; logits only for the rows that are drawn from or scored."""
        rows, where = np.unique(np.concatenate((batch.draws.rows, batch.targets.rows)), return_inverse=True)
        index: I32 = where.astype(np.int32)
        at, target_at = index[: len(batch.draws)], index[len(batch.draws) :]
        if len(batch) == 0:
            return TorchFlight(batch, None, at, target_at)
        decoder = self._decoder
        plan = decoder.ops.plan(batch, decoder.layout, self._angles, self.capacity)
        hidden = decoder.forward(self._tokens(batch, plan.padded), plan, self._cache)
        if len(rows) == 0:
            return TorchFlight(batch, None, at, target_at)
        chosen = hidden.index_select(0, self._on_device(rows))
        return TorchFlight(batch, decoder.logits(chosen), at, target_at)

    @torch.inference_mode()
    def sample(self, flight: Flight, masks: Masks) -> None:
        """Draw the batch's tokens and write them to the token table."""
        assert isinstance(flight, TorchFlight), "a runner samples its own flights"
        if flight.logits is None:
            return
        draws, targets = flight.batch.draws, flight.batch.targets
        drawn = self._decoder.ops.sample(flight.logits, draws, flight.at, targets, flight.target_at, masks)
        # a draw that failed (-1) must not break the next batch, which is launched before the failure is read
        self._last[self._on_device(draws.into)] = drawn.tokens.clamp(min=0)
        flight.drawn, flight.logits = drawn, None

    def read(self, flight: Flight) -> Samples:
        """The results of a flight, on the host."""
        assert isinstance(flight, TorchFlight), "a runner reads its own flights"
        drawn, flight.drawn = flight.drawn, None
        if drawn is None:
            return Samples()
        return Samples(
            drawn.tokens.cpu().numpy().astype(np.int32),
            drawn.logprobs.cpu().numpy(),
            drawn.top_ids.cpu().numpy(),
            drawn.top_logprobs.cpu().numpy(),
            drawn.targets.cpu().numpy(),
        )

    def _tokens(self, batch: Batch, padded: int) -> torch.Tensor:
        host = np.zeros(padded, np.int64)
        host[: len(batch)] = batch.tokens
        tokens = torch.from_numpy(host).to(self._device)
        if len(batch.feed):
            tokens[self._on_device(batch.feed)] = self._last[self._on_device(batch.feed_rows)]
        return tokens

    def _on_device(self, index: I32) -> torch.Tensor:
        return torch.from_numpy(index).to(self._device, torch.int64)


def build(config: Config, spec: Spec, load: Callable[[torch.dtype], Mapping[str, torch.Tensor]]) -> TorchRunner:
    """The runner that `config` asks for; `load` delivers the weights of `spec` in the chosen dtype. Raises
    `EngineError` or `ModelError` before weights are loaded when they cannot fit."""
    dtype = _DTYPES[config.dtype] if config.dtype != "auto" else native_dtype()
    context = config.context or spec.context
    if context > spec.context:
        raise EngineError(f"context={context}: the model {spec.name!r} has {spec.context}; ask for less, or 0")
    capacity = config.kv_tokens or default_capacity(spec, dtype, context=context, memory=free_memory())
    decoder = Decoder(spec, load(dtype), config.device, dtype)
    return TorchRunner(
        decoder, capacity=capacity, rows=config.max_running, context=context, threads=config.threads or _cores()
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def native_dtype() -> torch.dtype:
    """bfloat16 where the processor computes with it, else float32."""
    onednn = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if onednn and torch.cpu._is_avx512_bf16_supported() else torch.float32


def kv_bytes_per_token(spec: Spec, dtype: torch.dtype) -> int:
    """Bytes of one slot: K and V of one token in all layers."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize


def weight_bytes(spec: Spec, dtype: torch.dtype) -> int:
    """Bytes of the weights as the decoder keeps them (a tied embedding is packed once more for the head)."""
    count = sum(int(np.prod(shape)) for shape in spec.tensor_shapes().values())
    return (count + (spec.vocab * spec.hidden if spec.tied else 0)) * dtype.itemsize


def default_capacity(spec: Spec, dtype: torch.dtype, *, context: int, memory: int) -> int:
    """Slots of a pool that nobody sized: what a quarter of `memory` (free bytes, weights not yet loaded) holds after
    the weights, at least one context and at most 65,536. Raises `ModelError` with the figures when the weights and one
    context do not fit at all."""
    weights, each = weight_bytes(spec, dtype), kv_bytes_per_token(spec, dtype)
    left = memory - weights
    if left < context * each:
        raise ModelError(
            f"the model {spec.name!r} needs {_size(weights)} for weights and {_size(context * each)} for the KV of one "
            f"context of {context} tokens; {_size(memory)} are free: ask for a shorter context, or a smaller model"
        )
    return max(context, min(_MAX_SLOTS, int(left * _SHARE) // each))


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


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
