"""Batches to tokens on one device.

In: `Batch`es in launch order. Out: `Samples`. Owns the KV pool and the table of last sampled tokens; a sampled token is
written to the table on the device and the next batch is fed from it there, so the host is not on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.ops import Drawn
from ramet.runtime.batch import I32, Batch, Flight, Masks, Samples
from ramet.runtime.batch import wanted as wanted
from ramet.runtime.config import Config
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.spec import Spec
from ramet.runtime.sizing import (
    check_room,
    cores,
    default_capacity,
    free_memory,
    kv_bytes_per_token,
    native_dtype,
    size,
)
from ramet.runtime.sizing import checked_context as checked_context
from ramet.runtime.sizing import weight_bytes as weight_bytes  # one name for whoever sizes a runner

Load = Callable[[torch.dtype], Mapping[str, torch.Tensor]]


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
        self.dtype_name, self.kernels = str(decoder.dtype).removeprefix("torch."), "torch"
        self._decoder, self._device = decoder, decoder.device
        shape = (spec.layers, 2, spec.kv_heads, capacity, spec.head_dim)
        with torch.inference_mode():
            try:
                self._cache = torch.zeros(shape, dtype=decoder.dtype, device=self._device)
            except RuntimeError as error:
                need = capacity * kv_bytes_per_token(spec, decoder.dtype)
                raise ModelError(f"capacity={capacity}: no room for a KV pool of {size(need)}; ask for less") from error
            self._last = torch.zeros(rows, dtype=torch.int64, device=self._device)
            self._angles = decoder.angles(context)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> TorchFlight:
        """Compute the batch's tokens; logits only for the rows that are drawn from or scored."""
        rows, at, target_at = wanted(batch)
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
            drawn.target_ids.cpu().numpy(),
            drawn.target_logprobs.cpu().numpy(),
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


def build(config: Config, spec: Spec, load: Load) -> TorchRunner:
    """The runner on the CPU that `config` asks for; `load` delivers the weights of `spec` in the chosen dtype. Raises
    `EngineError` or `ModelError` before weights are loaded when they cannot fit."""
    config.check_cpu()
    dtype = native_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
    context, memory = checked_context(config, spec), free_memory()
    check_room(spec, dtype, kv_tokens=config.kv_tokens, memory=memory)
    sized = config.kv_tokens or default_capacity(spec, dtype, context=context, memory=memory, share=config.kv_share)
    decoder = Decoder(spec, load(dtype), "cpu", dtype)
    return TorchRunner(
        decoder, capacity=sized, rows=config.max_running, context=context, threads=config.threads or cores()
    )
