"""Random programs through the real step loop: all invariants after every step, every answer equal to the oracle's.

10^5 steps here, 10^6 under `-m nightly`. A failure names its scene and seed, and `World(seed, SCENES[name]).run(STEPS)`
repeats it.
"""

from __future__ import annotations

import pytest

from ramet.runtime.config import Limits

from .programs import Shape
from .world import Scene, World

STEPS = 500  # of one world, before its programs are left to end
STEMS = ((1, 2, 1, 2, 3, 4, 1, 2, 1, 2, 1, 1), (1, 2, 1, 2, 3, 5, 6, 7), (1, 2, 2))

SCENES = {
    "plain": Scene(),
    "shared prefixes": Scene(shape=Shape(vocab=8, stems=STEMS), namespaces=1),
    "two tokens": Scene(shape=Shape(vocab=3, ops=20), namespaces=1, eos_rate=0.03),
    "one-token chunks": Scene(limits=Limits(batch_tokens=3, chunk_tokens=1, lease_seconds=1.0)),
    "no overlap": Scene(limits=Limits(batch_tokens=64, chunk_tokens=64, lease_seconds=3.0, overlap=False)),
    "tiny pool": Scene(capacity=40, rows=3, at_once=8),
    "pool smaller than the context": Scene(capacity=24, rows=8, at_once=8),
    "retraction and eviction": Scene(retract=0.3, evict=0.3),
    "aborts and flushes": Scene(abort=0.15, flush=0.1),
    "wide": Scene(capacity=400, rows=30, at_once=20, shape=Shape(width=8, ops=20)),
    "device faults": Scene(faults=0.02),
    "everything": Scene(capacity=60, rows=3, faults=0.03, abort=0.1, retract=0.1, evict=0.1, flush=0.05),
}


def _steps(name: str, count: int, first_seed: int) -> None:
    seed = first_seed
    while count > 0:
        world = World(seed, SCENES[name])
        try:
            world.run(min(STEPS, count))
        except Exception as error:
            error.add_note(f"scene {name!r}, seed {seed}, step {world.steps}")
            raise
        count -= world.steps
        seed += 1


@pytest.mark.parametrize("name", SCENES)
def test_simulated_steps(name: str) -> None:
    _steps(name, 100_000 // len(SCENES) + 1, first_seed=0)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SCENES)
def test_simulated_steps_nightly(name: str) -> None:
    _steps(name, 1_000_000 // len(SCENES) + 1, first_seed=1_000_000)


def test_a_world_is_a_function_of_its_seed() -> None:
    first, second = World(5, SCENES["everything"]), World(5, SCENES["everything"])
    first.run(200)
    second.run(200)
    assert (first.steps, first.finished, first.runner.computed) == (
        second.steps,
        second.finished,
        second.runner.computed,
    )
    assert first.finished > 10
