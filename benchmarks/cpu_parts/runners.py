"""Forwards of the runners themselves, without a scheduler. In: a runner, sizes. Out: seconds.

A timed forward is `forward`, `sample` (greedy) and `read`; batches are built before. KV pools are filled with random
numbers, so that a context is there at once and is nowhere one page of zeros.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu_parts.floors import Shape, shape
from cpu_parts.pins import workers
from ramet.kernels.cpu import library
from ramet.runtime import native
from ramet.runtime.batch import I32, Batch, Draws, Masks, Runner, Targets
from ramet.runtime.config import Config
from ramet.runtime.models.hub import ModelSource
from ramet.runtime.models.spec import Spec

TORCH = "torch"
NAMES = ("int8", "int4", "bfloat16", TORCH)  # dtypes of the native kernels, and torch in bfloat16
SEED = 7
_DRAWN = 1 << 20  # random numbers that fill a pool, again and again


@dataclass(frozen=True, slots=True)
class Subject:
    """A runner under test and what it runs."""

    name: str
    runner: Runner
    shape: Shape


def opened(name: str, source: ModelSource, spec: Spec, config: Config, cores: Sequence[int]) -> Subject:
    """A runner of `NAMES` over a filled pool; its threads are pinned to `cores`, if any. Raises `EngineError` or
    `ModelError`."""
    if name == TORCH:
        return Subject(name, _torch(source, spec, config, cores), shape(spec, "bfloat16"))
    with workers(cores):
        runner = native.build(config, spec, source, dtype=name)
    _fill(runner._kv.bytes.view(np.uint16))
    return Subject(name, runner, shape(spec, name, library.load()))


def _torch(source: ModelSource, spec: Spec, config: Config, cores: Sequence[int]) -> Runner:
    """`TorchRunner`. The threads that compute start with the first large operation; others, which importing torch and
    setting the number start, never compute and are not counted among them."""
    import torch

    from ramet.runtime.models.load import load_weights
    from ramet.runtime.runner import build

    torch.set_num_threads(config.threads)
    with workers(cores):
        torch.ones(1 << 20).exp_()
    runner = build(config, spec, lambda dtype: load_weights(source, spec, dtype))
    with torch.inference_mode():
        _fill(runner._cache.view(torch.int16).numpy().view(np.uint16).reshape(-1))
    return runner


def _fill(pool: NDArray[np.uint16]) -> None:
    """Random bfloat16 numbers everywhere."""
    drawn = np.random.default_rng(SEED).standard_normal(min(_DRAWN, len(pool)), np.float32)
    halves = (drawn.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    for at in range(0, len(pool), len(halves)):
        part = pool[at : at + len(halves)]
        part[:] = halves[: len(part)]


def forward(runner: Runner, batch: Batch) -> None:
    """One forward, and the tokens that it draws."""
    flight = runner.forward(batch)
    runner.sample(flight, Masks())
    runner.read(flight)


def prefill_seconds(runner: Runner, length: int, vocab: int) -> float:
    """A prompt of random tokens, and the token after it."""
    batch = prompt(np.random.default_rng(SEED).integers(0, vocab, length).astype(np.int32))
    start = time.perf_counter()
    forward(runner, batch)
    return time.perf_counter() - start


def decode_seconds(runner: Runner, batch: int, context: int, steps: int, vocab: int) -> float:
    """Of one step of `batch` sequences that share nothing: the mean of `steps` steps after one that warms up. They see
    `context` + 2 to `context` + `steps` + 1 positions."""
    first = np.random.default_rng(SEED).integers(0, vocab, batch).astype(np.int32)
    forward(runner, step(first, context, context + steps + 1, feed=False))
    batches = [step(first, context + k, context + steps + 1, feed=True) for k in range(1, steps + 1)]
    start = time.perf_counter()
    for each in batches:
        forward(runner, each)
    return (time.perf_counter() - start) / steps


def prompt(tokens: I32) -> Batch:
    """A batch that computes `tokens` as one sequence in the first slots and draws the next one."""
    order, ends = np.arange(len(tokens), dtype=np.int32), np.array([0, len(tokens)], np.int32)
    none = np.zeros(0, np.int32)
    return Batch(0, tokens, order, order, ends, ends, order, none, none, greedy(order[-1:]), Targets(none, none))


def step(first: I32, position: int, stride: int, *, feed: bool) -> Batch:
    """One token at `position` of each of len(first) sequences, whose slots are `stride` in a row: those that were drawn
    last, or (not `feed`) `first`."""
    count = len(first)
    order, none = np.arange(count, dtype=np.int32), np.zeros(0, np.int32)
    slots = order[:, None] * stride + np.arange(position + 1, dtype=np.int32)
    return Batch(
        step=0,
        tokens=np.full(count, -1, np.int32) if feed else first,
        positions=np.full(count, position, np.int32),
        slots=slots[:, -1].copy(),
        qo_indptr=np.arange(count + 1, dtype=np.int32),
        kv_indptr=np.arange(count + 1, dtype=np.int32) * np.int32(position + 1),
        kv_indices=slots.reshape(-1).astype(np.int32),
        feed=order if feed else none,
        feed_rows=order if feed else none,
        draws=greedy(order),
        targets=Targets(none, none),
    )


def greedy(rows: I32) -> Draws:
    """The most likely token after each of `rows`, into the token table's first rows."""
    count = len(rows)
    return Draws.of(rows=rows, into=np.arange(count, dtype=np.int32), positions=np.zeros(count, np.int64))
