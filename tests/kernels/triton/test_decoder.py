"""The whole decoder on the GPU's operations against the CPU's: prefill, mixed and forked batches, windows, head norms;
and its bits in deterministic mode, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("triton")

from ramet.kernels.cpu import operations as cpu
from ramet.kernels.ops import Ops
from ramet.kernels.triton import TritonOps
from ramet.kernels.triton.work import LENGTH
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.spec import Spec

from ..ragged import Part, batch
from .device import DEVICE, close

pytestmark = [pytest.mark.triton, pytest.mark.gpu]

TINY = replace(PRESETS["tiny"], vocab=509)
SPECS = {
    "llama": TINY,
    "qwen3, windows": replace(TINY, family="qwen3", qk_norm=True, window=40, windowed=(True, False)),
    "qwen2": replace(TINY, family="qwen2", qkv_bias=True, heads=6, kv_heads=2, tied=False),
}
CAPACITY = 1200
CONTEXT = 700
PREFIX = 530  # shared tokens: more than one split of the KV


class Model:
    """A decoder with its cache, one slot more than the capacity for padding; unwritten slots are nan."""

    def __init__(self, spec: Spec, ops: Ops, device: str, dtype: torch.dtype = torch.float32) -> None:
        self.decoder = Decoder(spec, random_weights(spec, dtype), device, dtype, ops)
        self.capacity = CAPACITY + (ops is cpu)  # the CPU writes no slot for padding
        shape = (spec.layers, 2, spec.kv_heads, CAPACITY + 1, spec.head_dim)
        self.cache = torch.full(shape, torch.nan, device=device, dtype=dtype)
        self.angles = self.decoder.angles(CONTEXT)
        self.plan: Any = None  # of the last batch

    @torch.inference_mode()
    def run(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Logits `[new tokens, V]` of each part, on the CPU."""
        made = batch(parts)
        decoder = self.decoder
        plan = self.plan = decoder.ops.plan(made, decoder.layout, self.angles, self.capacity)
        tokens = torch.zeros(plan.padded, dtype=torch.int64)
        tokens[: len(made)] = torch.from_numpy(made.tokens)
        hidden = decoder.forward(tokens.to(decoder.device), plan, self.cache)
        logits = decoder.logits(hidden[: len(made)]).cpu()
        return list(logits.split([part.stop - part.start for part in parts]))


class World:
    """Token ids of a few sequences that begin with the same tokens, and where they stand."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.ids = np.random.default_rng(7).integers(0, TINY.vocab, (8, CONTEXT)).astype(np.int32)
        self.ids[:, :PREFIX] = self.ids[0, :PREFIX]
        self._slots = rng.permutation(CAPACITY).astype(np.int32)

    def alone(self, sequence: int, start: int, stop: int) -> Part:
        """Tokens start..stop-1 of a short sequence that shares nothing; up to 80 tokens each."""
        at = 700 + 80 * (sequence - 3)
        return Part(self.ids[sequence, PREFIX:], self._slots[at : at + 80], start, stop)

    def branch(self, sequence: int, start: int, stop: int) -> Part:
        """Tokens of a branch of the shared prefix; up to 30 tokens of its own."""
        own = 530 + 30 * sequence
        slots: NDArray[np.int32] = np.concatenate((self._slots[:PREFIX], self._slots[own : own + 30]))
        return Part(self.ids[sequence], slots, start, stop)


def agree(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for mine, its in zip(found, wanted, strict=True):
        close(mine, its, 2e-5)


@pytest.mark.parametrize(("name", "grouping"), [("llama", True), ("qwen3, windows", True), ("qwen2", False)])
def test_it_computes_what_the_cpu_computes(name: str, grouping: bool) -> None:
    world, its, mine = World(), Model(SPECS[name], cpu, "cpu"), Model(SPECS[name], TritonOps(grouping=grouping), DEVICE)
    for step in (
        [world.alone(3, 0, 20), world.alone(4, 0, 1), world.alone(5, 0, 50)],
        [world.alone(3, 20, 21), world.alone(4, 1, 8), world.alone(5, 50, 51)],
    ):
        agree(mine.run(step), its.run(step))
    its.run([world.branch(0, 0, PREFIX)])
    mine.cache.copy_(its.cache)
    # beside a chunk, the three branches read the 512 tokens of a split once or three times
    forked = [world.branch(b, PREFIX, PREFIX + 1 + b % 2) for b in range(3)] + [world.alone(3, 21, 32)]
    agree(mine.run(forked), its.run(forked))
    work = mine.plan.work[None]
    read = int(work.narrow[:, LENGTH].sum() + work.wide[:, LENGTH].sum())
    assert read < 1200 if grouping else read > 3 * PREFIX


def test_deterministic_bits_depend_on_the_sequence_alone() -> None:
    """All but the last 30 tokens of the prefix come from the CPU, into other slots for each model."""
    spec, start, last = SPECS["qwen3, windows"], PREFIX - 30, PREFIX + 4
    its = Model(spec, cpu, "cpu")
    its.run([World().branch(0, 0, start)])

    def begun(world: World) -> Model:
        model = Model(spec, TritonOps(deterministic=True), DEVICE)
        source, target = (
            torch.from_numpy(w.branch(0, 0, start).slots[:start].astype(np.int64)) for w in (World(), world)
        )
        model.cache[:, :, :, target.to(DEVICE)] = its.cache[:, :, :, source].to(DEVICE)
        return model

    world = World()
    whole = begun(world).run([world.branch(1, start, last)])[0]
    world = World(seed=1)
    other = begun(world)
    chunks = [other.run([world.alone(4, 0, 9), world.branch(0, start, start + 7)])[1]]
    chunks += [other.run([world.branch(0, start + 7, PREFIX), world.alone(5, 0, 3)])[0]]
    assert torch.equal(torch.cat(chunks), whole[:30])
    forked = [world.branch(b, PREFIX, PREFIX + 1) for b in (2, 1, 0)] + [world.alone(4, 9, 12)]
    assert torch.equal(other.run(forked)[1], whole[30:31])
    rest = [world.alone(5, 3, 4), world.branch(1, PREFIX + 1, last), world.branch(0, PREFIX + 1, PREFIX + 2)]
    assert torch.equal(other.run(rest)[1], whole[31:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("weights", "bound"), [("dense", 0.02), ("int8", 0.04), ("int4", 0.4)])
def test_fewer_bits_stay_near(weights: str, bound: float, dtype: torch.dtype) -> None:
    world, its = World(), Model(TINY, cpu, "cpu")
    mine = Model(TINY, TritonOps(weights=weights), DEVICE, dtype)
    forked = [world.branch(b, PREFIX, PREFIX + 1 + b) for b in range(3)]
    wanted = its.run([world.alone(3, 0, 40), world.alone(4, 0, 1)])
    found = mine.run([world.alone(3, 0, 40), world.alone(4, 0, 1)])
    its.run([world.branch(0, 0, PREFIX)])
    mine.cache.copy_(its.cache)
    far = torch.cat(found + mine.run(forked)).float() - torch.cat(wanted + its.run(forked))
    error = float(far.square().mean().sqrt() / torch.cat(wanted).square().mean().sqrt())
    assert (weights == "dense" and dtype == torch.float32) == (error < 1e-5)
    assert error < bound
