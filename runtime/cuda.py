"""Batches to tokens on a GPU: a `Runner` that stages, replays and fetches, and never waits but in `read`.

In: `Batch`es in launch order. Out: `Samples`. Small steps are replays of captured graphs (`graphs.py`), the others run
eagerly on the same kernels. Built from a `Config` after a dummy step of the largest size was measured.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from ramet.frontend.errors import DeviceLost, EngineError
from ramet.kernels import ops as ops_for
from ramet.kernels.ops import Angles, Ops
from ramet.runtime.batch import I32, SCORED, Batch, Draws, Flight, Masks, Samples, Targets
from ramet.runtime.config import Config
from ramet.runtime.device import (
    CudaDevice,
    Device,
    Fetch,
    exhausted,
    first_line,
    out_of_memory,
    place_kernels,
    start_kernels,
)
from ramet.runtime.graphs import FORWARD_BYTES, SMALL_BYTES, Graphs, aligned, buckets, filled
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.fetch import cache_directory
from ramet.runtime.models.spec import Spec
from ramet.runtime.runner import Load, checked_context, wanted
from ramet.runtime.sizing import Budget, check_weights, device_capacity, device_weight_bytes
from ramet.runtime.steps import MOST, Steps, TritonSteps

T = TypeVar("T")
MakeSteps = Callable[[Decoder, Angles, int], Steps]  # of a decoder, its angles and a capacity
_SHORT = 17  # tokens of a dummy chunk: more than a narrow item's, fewer than a tall one's
LONG = 513  # KV tokens of a dummy whose attention has more than one span: decoding merges, and needs graphs for it


@dataclass(slots=True)
class CudaFlight:
    """A batch in the air. `logits` `[U, V]` until it is sampled, and whether they stand in the graphs' own buffer; then
    `fetch`, what is on its way to the host: the tokens, or all fields of `Drawn`."""

    batch: Batch
    logits: torch.Tensor | None
    at: I32
    target_at: I32
    static: bool = False
    fetch: Fetch | None = None


class CudaRunner:
    """A `Runner` on a `Device`. `capacity` KV slots and one more, the dump slot, which padded rows write and nothing
    reads; `rows` rows of the token table and one more likewise; `context` tokens of the longest sequence.

    A batch must be sampled before the next one is launched, as the engine does: logits and token table are one buffer
    each, and the device works in order. Raises `EngineError` when memory does not suffice, in a step too: then the
    batch is lost and the runner goes on. Raises `DeviceLost` when the device cannot go on; then nothing works any more.
    """

    def __init__(
        self,
        decoder: Decoder,
        device: Device,
        steps: MakeSteps,
        *,
        capacity: int,
        rows: int,
        context: int,
        graphs: bool = True,
    ) -> None:
        spec = decoder.spec
        self.capacity, self.rows, self.context, self.vocab = capacity, rows, context, spec.vocab
        self.threads = torch.get_num_threads()
        self.dtype_name, self.kernels = str(decoder.dtype).removeprefix("torch."), "triton"
        self.device = device
        self._decoder = decoder
        self._graphs: Graphs | None = None
        guarded(self.device, f"making a KV pool of {capacity} tokens", lambda: self._allocate(steps, graphs))

    @torch.inference_mode()
    def _allocate(self, steps: MakeSteps, graphs: bool) -> None:
        decoder, spec, place = self._decoder, self._decoder.spec, self.device.place
        # zeroed, so that a slot that was never written cannot hold a nan
        shape = (spec.layers, 2, spec.kv_heads, self.capacity + 1, spec.head_dim)
        self._cache = torch.zeros(shape, dtype=decoder.dtype, device=place)
        self._last = torch.zeros(self.rows + 1, dtype=torch.int64, device=place)
        self._steps = steps(decoder, decoder.angles(self.context), self.capacity)
        if graphs:
            self._graphs = Graphs(self.device, decoder, self._steps, self._cache, self._last, self.rows)

    @property
    def graphs(self) -> Graphs | None:
        """The captured graphs, where they are wanted."""
        return self._graphs

    def warm(self, tokens: int) -> None:
        """Run dummies through the real path: one step of `tokens` tokens, then decode steps of every bucket of up to
        `rows` sequences, short and long ones, whose graphs are captured, then what only some requests ask for. Raises
        `EngineError` when that needs more memory than there is."""
        self._largest(tokens)
        if self._graphs is not None:
            self._capture(self._graphs)
        self._rarest()

    def _capture(self, graphs: Graphs) -> None:
        lengths = (1, LONG) if self.context >= LONG else (1,)
        batches = [
            dummy([(length - 1, length)] * count, slot=self.capacity, rows=self.rows, draws=count)
            for count in graphs.draws
            for length in lengths
        ]

        def capture() -> None:
            self.device.trim()  # the graphs' pool takes what the first step has cached
            with torch.inference_mode():
                graphs.warm(batches)

        guarded(self.device, "capturing graphs", capture)

    def profile(self, tokens: int) -> int:
        """Bytes of workspace that a step of `tokens` tokens takes which draws for all rows, and scores."""
        self._largest(tokens)  # compiles, and opens libraries, whose workspaces stay
        return self.device.workspace(lambda: self._largest(tokens))

    def graph_bytes(self, workspace: int, tokens: int) -> int:
        """Bytes that `Graphs` is going to take: its buffers, what the driver keeps of each graph, and the workspace of
        the largest bucket, in proportion to the `workspace` of a step of `tokens` tokens."""
        sizes = len(buckets(min(self.rows, MOST)))
        forwards = 2 * sizes if self.context >= LONG else sizes
        return (
            Graphs.bytes_for(self._decoder, self._steps, self.rows)
            + FORWARD_BYTES * forwards
            + SMALL_BYTES * 3 * sizes
            + workspace * min(MOST, tokens) // tokens
        )

    def _largest(self, tokens: int) -> None:
        """A dummy step of `tokens` tokens, in segments as long as the context, with draws for all rows and for as many
        tokens as a step scores or checks, if it has so many. In deterministic mode segments end where the context does:
        partial results of attention grow with what is seen."""
        whole, rest = divmod(tokens, self.context)
        end = self.context if getattr(self._decoder.ops, "deterministic", False) else rest
        spans = [(0, self.context)] * whole + [(end - rest, end)] * (rest > 0)
        draws = min(self.rows + SCORED, tokens)
        flight = self.forward(dummy(spans, slot=self.capacity, rows=self.rows, draws=draws))
        self.sample(flight, Masks())
        self.read(flight)

    def _rarest(self) -> None:
        """A chunk that is short enough for the items of forks, bitmasks and changed logits, log-probabilities with
        each length of list, draws that nothing truncates. Whoever asks for one of them first would else wait for the
        compiler, and all others too."""
        masks = Masks(allowed=((0, np.full(-(-self.vocab // 32), 0xFFFFFFFF, np.uint32)),))
        bias = ((0, np.zeros(1, np.int32), np.ones(1, np.float32)),)
        chunk, last = (0, min(_SHORT, self.context)), min(LONG, self.context)
        one = (last - 1, last)
        steps = ((chunk, masks, 0), (one, masks, 5), (one, masks, 20), (one, masks, -1), (one, Masks(), -1))
        for span, asked, listed in steps:
            made = dummy([span], slot=self.capacity, rows=self.rows, draws=1)
            scored = replace(made.draws.changed(logprobs=listed), bias=bias)
            flight = self.forward(replace(made, draws=scored if listed >= 0 else made.draws.changed(temperature=0)))
            self.sample(flight, asked)
            self.read(flight)

    # -- the Runner protocol

    def forward(self, batch: Batch) -> CudaFlight:
        """Launch the forward pass, and the logits of the rows that are drawn from or scored."""
        return guarded(self.device, f"a step of {len(batch)} tokens", lambda: self._forward(batch))

    def sample(self, flight: Flight, masks: Masks) -> None:
        """Launch sampling, the write to the token table, and the copy to the host."""
        assert isinstance(flight, CudaFlight), "a runner samples its own flights"
        draws = len(flight.batch.draws)
        guarded(self.device, f"sampling {draws} tokens", lambda: self._sample(flight, masks))

    def read(self, flight: Flight) -> Samples:
        """Wait for the flight; its results."""
        assert isinstance(flight, CudaFlight), "a runner reads its own flights"
        fetch, flight.fetch = flight.fetch, None
        if fetch is None:
            return Samples()
        return _samples(guarded(self.device, "reading a step's results", fetch.wait))

    # -- how

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> CudaFlight:
        rows, at, target_at = _wanted(batch)
        if len(batch) == 0:
            return CudaFlight(batch, None, at, target_at)
        graphs = self._graphs
        hidden = graphs.forward(batch, rows) if graphs is not None else None
        if graphs is not None and hidden is not None:
            if 0 < len(rows) <= graphs.draws[-1]:
                return CudaFlight(batch, graphs.head(hidden, len(rows)), at, target_at, static=True)
            logits = self._decoder.logits(hidden.index_select(0, graphs.staged_rows(len(rows)))) if len(rows) else None
            return CudaFlight(batch, logits, at, target_at)
        return self._eager(batch, rows, at, target_at)

    def _eager(self, batch: Batch, rows: I32, at: I32, target_at: I32) -> CudaFlight:
        packed = self._steps.pack(batch, None)
        assert packed is not None, "without a bucket every batch fits"
        width = aligned(len(rows))
        staged = self.device.stage(filled(rows, width, 0), *packed.parts)
        plan = self._steps.view(staged[width:], packed)
        hidden = self._decoder.forward(self._steps.gather(plan, self._last), plan, self._cache)
        if len(rows) == 0:
            return CudaFlight(batch, None, at, target_at)
        graphs = self._graphs
        static = graphs is not None and len(rows) <= graphs.draws[-1]
        out = graphs.logits[: len(rows)] if graphs is not None and static else None
        logits = self._decoder.logits(hidden.index_select(0, staged[: len(rows)]), out)
        return CudaFlight(batch, logits, at, target_at, static)

    @torch.inference_mode()
    def _sample(self, flight: CudaFlight, masks: Masks) -> None:
        logits, flight.logits = flight.logits, None
        if logits is None:
            return
        draws, targets = flight.batch.draws, flight.batch.targets
        if len(targets) or (draws.logprobs >= 0).any():
            drawn = self._decoder.ops.sample(logits, draws, flight.at, targets, flight.target_at, masks)
            if len(draws):
                self._steps.scatter(drawn.tokens, self.device.stage(draws.into), self._last)
            own = (drawn.tokens, drawn.logprobs, drawn.top_ids, drawn.top_logprobs)
            flight.fetch = self.device.fetch((*own, drawn.targets, drawn.target_ids, drawn.target_logprobs))
            return
        tokens = None
        if flight.static and self._graphs is not None:
            tokens = self._graphs.sample(draws, flight.at, masks)
        flight.fetch = self.device.fetch((self._draw(logits, draws, flight.at, masks) if tokens is None else tokens,))

    def _draw(self, logits: torch.Tensor, draws: Draws, at: I32, masks: Masks) -> torch.Tensor:
        packed = self._steps.pack_draws(draws, at, masks, None)
        assert packed is not None, "without a bucket all draws fit"
        width = aligned(len(draws))
        staged = self.device.stage(filled(draws.into, width, 0), *packed.parts)
        tokens = self._steps.draw(logits, self._steps.view_draws(staged[width:], packed))
        self._steps.scatter(tokens, staged[: len(draws)], self._last)
        return tokens


def guarded(
    device: Device, doing: str, act: Callable[[], T], smaller: str = "kv_share, kv_tokens or batch_tokens"
) -> T:
    """Call `act`, which launches work, and make the device's errors typed ones: out of memory is an `EngineError` that
    names what should be `smaller`, and whatever the failed call had allocated is freed; after anything else the device
    is tried, and when it does not answer it is lost."""
    failure: EngineError
    try:
        with device.launching():
            return act()
    except Exception as error:
        if out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # their tensors would live as long as the error
            device.trim()
            failure = exhausted(device, doing, error, smaller)
        elif device.healthy():
            raise
        else:
            failure = DeviceLost(f"{device.name} failed in {doing}: {type(error).__name__}: {first_line(error)}")
    raise failure


def _wanted(batch: Batch) -> tuple[I32, I32, I32]:
    """`runner.wanted`, without its sort for a step that draws from every token in order, the common one."""
    rows = batch.draws.rows
    count = len(rows)
    if count == len(batch) and not len(batch.targets) and np.array_equal(rows, np.arange(count)):
        return rows, rows, rows[:0]
    return wanted(batch)


def _samples(fields: tuple[torch.Tensor, ...]) -> Samples:
    tokens = fields[0].numpy().astype(np.int32)
    if len(fields) > 1:
        return Samples(tokens, *(field.numpy() for field in fields[1:]))
    count = len(tokens)
    nothing = np.full(count, np.nan, np.float32)
    return Samples(tokens, nothing, np.zeros((count, 0), np.int32), np.zeros((count, 0), np.float32))


def dummy(spans: Sequence[tuple[int, int]], *, slot: int, rows: int, draws: int) -> Batch:
    """A batch whose segments have new tokens start..stop-1 for each (start, stop) of `spans`, all of them token 0 in
    the dump slot `slot`; older slots are any (they differ between segments, which share nothing). `draws` draws with
    truncation, from its tokens in turn."""
    counts = np.array([stop - start for start, stop in spans], np.int32)
    stops = np.array([stop for _, stop in spans], np.int32)
    total = int(counts.sum())
    kv = [np.full(stop, number % slot, np.int32) for number, stop in enumerate(stops.tolist())]
    for slots, count in zip(kv, counts.tolist(), strict=True):
        slots[len(slots) - count :] = slot
    nothing = np.zeros(0, np.int32)
    at = np.arange(draws, dtype=np.int32)
    drawn = Draws.of(
        rows=at % np.int32(total),
        into=at % np.int32(rows),
        positions=np.ones(draws, np.int64),
        temperature=1.0,
        top_p=0.9,
        top_k=50,
        min_p=0.01,
    )
    return Batch(
        step=0,
        tokens=np.zeros(total, np.int32),
        positions=np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in spans]),
        slots=np.full(total, slot, np.int32),
        qo_indptr=np.concatenate((nothing, [0], np.cumsum(counts))).astype(np.int32),
        kv_indptr=np.concatenate((nothing, [0], np.cumsum(stops))).astype(np.int32),
        kv_indices=np.concatenate(kv),
        feed=nothing,
        feed_rows=nothing,
        draws=drawn,
        targets=Targets(nothing, nothing),
    )


def build(config: Config, spec: Spec, load: Load) -> CudaRunner:
    """The runner on the GPU that `config` asks for; `load` delivers the weights of `spec` in the chosen dtype, on the
    host. Raises `EngineError` or `ModelError` when CUDA cannot be used here or the model does not fit, with the
    figures; before weights are loaded when they alone do not fit."""
    device = CudaDevice()
    place_kernels(cache_directory() / "triton")
    start_kernels()
    weights = "dense" if config.weights == "auto" else config.weights
    ops = ops_for("cuda", weights=weights, deterministic=config.deterministic)
    if config.threads:
        torch.set_num_threads(config.threads)
    return assemble(config, spec, load, device, ops, TritonSteps)


def assemble(
    config: Config, spec: Spec, load: Load, device: Device, ops: Ops, steps: Callable[[Decoder, Angles, int], Steps]
) -> CudaRunner:
    """`build` on any device: load, measure a step of the largest size on a pool of one slot, size the pool, warm up."""
    dtype = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    context, weights = checked_context(config, spec), config.weights
    before = device.free()
    check_weights(spec, dtype, weights, before)
    decoder = guarded(
        device,
        "loading the weights",
        lambda: Decoder(spec, load(dtype), device.place.type, dtype, ops),
        "model, or weights='int8' or 'int4'",
    )
    device.trim()
    loaded = before - device.free()
    rows, tokens = config.max_running, config.limits.on("cuda").batch_tokens
    probe = CudaRunner(decoder, device, steps, capacity=1, rows=rows, context=context, graphs=False)
    workspace = probe.profile(tokens)
    graphs = probe.graph_bytes(workspace, tokens) if config.graphs else 0
    del probe
    device.trim()
    # measured now, since libraries have taken workspaces of their own
    budget = Budget(device.free(), workspace, graphs, max(loaded, device_weight_bytes(spec, dtype, weights)))
    capacity = device_capacity(spec, dtype, budget, context=context, asked=config.kv_tokens, share=config.kv_share)
    runner = CudaRunner(decoder, device, steps, capacity=capacity, rows=rows, context=context, graphs=config.graphs)
    runner.warm(tokens)
    return runner
