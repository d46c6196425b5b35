"""When the native runner reads a shared prefix once: where it saves `PAYS` block reads a thread, and with the same bits
either way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ramet.kernels.cpu import library
from ramet.runtime import native as module
from ramet.runtime.batch import Batch
from ramet.runtime.models.spec import Rope, Spec
from ramet.runtime.native import PAYS, NativeRunner

from ..kernels.ragged import Part, batch
from .natives import native, needs_native, packed

pytestmark = needs_native
SPEC = Spec("llama", "tiny", 2, 64, 6, 2, 16, 96, 131, 1024, 1e-5, Rope(), tied=True)
OWN = 5  # slots of a member's own, its new token among them
# members and blocks that they share, just below what pays, at it and beyond
BELOW = ((2, 1), (2, PAYS - 1), (3, PAYS // 2 - 1), (5, 1), (PAYS, 1))
BEYOND = ((2, PAYS), (2, PAYS + 3), (3, PAYS // 2), (5, 2), (PAYS + 1, 1), (16, 1))


def step(members: int, blocks: int, *, more: int = 3) -> list[Part]:
    """The next token of each branch over `blocks` whole blocks of shared slots and `more` beyond."""
    shared = blocks * library.BLOCK + more
    length = shared + OWN
    parts = []
    for member in range(members):
        own = shared + member * OWN + np.arange(OWN)
        slots = np.concatenate((np.arange(shared), own)).astype(np.int32)
        parts.append(Part((slots * 7 % 131).astype(np.int32), slots, length - 1, length))
    return parts


def spans(made: Batch, pays: int | None) -> int:
    """Groups that the kernels are told of."""
    return len(module._shared(made, pays))


def by_the_rule(pays: int | None) -> bool:
    """A runner with this rule groups what saves `PAYS` block reads, and nothing else."""
    below = [spans(batch(step(*case)), pays) for case in BELOW]
    beyond = [spans(batch(step(*case)), pays) for case in BEYOND]
    return below == [0] * len(BELOW) and beyond == [1] * len(BEYOND)


def test_both_sides_of_the_break_even() -> None:
    assert by_the_rule(PAYS)


@pytest.mark.parametrize("pays", [0, PAYS - 1, PAYS + 1, None])
def test_any_other_rule_is_noticed(pays: int | None) -> None:
    """The control."""
    assert not by_the_rule(pays)


def test_small_savings_add_up() -> None:
    """The cost is one of a batch: many forks that save little each are grouped together."""
    shift = 2000
    parts = step(3, 2)
    for fork in range(1, 3):
        parts += [replace(part, slots=part.slots + np.int32(fork * shift)) for part in step(3, 2)]
    assert [spans(batch(parts[: 3 * forks]), 2 * PAYS) for forks in (1, 2, 3)] == [0, 0, 3]


def filled(dtype: str) -> NativeRunner:
    """A runner whose cache holds random numbers."""
    runner = native(packed(SPEC, dtype), capacity=1400, context=1024, threads=2)
    pool = runner._kv.bytes.view(np.uint16)
    drawn = np.random.default_rng(3).standard_normal(len(pool), np.float32)
    pool[:] = (drawn.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return runner


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_the_bits_are_the_same_on_both_sides(dtype: str) -> None:
    runner = filled(dtype)
    assert runner.pays == PAYS * runner.threads == PAYS * 2
    for members, blocks in (*BELOW, *BEYOND):
        parts = step(members, blocks)
        made = batch(parts)
        found = []
        for pays in (PAYS, 0, None):
            runner.pays = pays
            found.append(logits(runner, made))
        assert all(np.array_equal(found[0], other) for other in found[1:]), (members, blocks)
        for at in (0, members - 1):
            assert np.array_equal(logits(runner, batch([parts[at]]))[0], found[0][at])


def logits(runner: NativeRunner, made: Batch) -> np.ndarray:
    flight = runner.forward(made)
    assert flight.logits is not None
    return flight.logits.copy()
