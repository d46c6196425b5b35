"""Positive controls: under each fault that is seeded into the product the simulation fails, within a few seeds."""

from __future__ import annotations

import pytest

from .campaign import PREFIXES, Report, Task, carry_out
from .mutations import TABLE

SEEDS = 4  # within so many the fault must show
STEPS = 150


def world_of(scene: str, seed: int, mutation: str = "") -> Report:
    """One world, long enough for the faults of the table."""
    return carry_out(Task(scene, seed, 400 if scene == PREFIXES else STEPS, mutation))


@pytest.mark.parametrize("name", TABLE)
def test_a_seeded_fault_is_found(name: str) -> None:
    reports = (world_of(TABLE[name][0], seed, name) for seed in range(SEEDS))
    failure = next((report.failure for report in reports if report.failure), "")
    assert failure.startswith(("AssertionError", "LedgerError")), f"{name}: {failure or 'nothing failed'}"


@pytest.mark.parametrize("scene", sorted({scene for scene, _ in TABLE.values()}))
def test_without_it_nothing_fails(scene: str) -> None:
    assert world_of(scene, 0).failure == ""
