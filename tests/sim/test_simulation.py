"""Random programs through the real step loop: all invariants after every step, every answer equal to the oracle's.

10^5 steps here, 10^6 under `-m nightly`. A failure names its scene and seed, and `World(seed, SCENES[name]).run(STEPS)`
repeats it.
"""

from __future__ import annotations

from collections import Counter

import pytest

from ramet.runtime import messages as m
from ramet.runtime.batch import Samples
from ramet.runtime.config import Limits
from ramet.runtime.draft import Notes

from .mazes import VOCAB
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
    "grammars": Scene(shape=Shape(vocab=VOCAB, grammars=40, tokens=24), context=96, capacity=200),
    "grammars in trouble": Scene(
        shape=Shape(vocab=VOCAB, grammars=40, tokens=24, width=6),
        limits=Limits(batch_tokens=9, chunk_tokens=4, lease_seconds=2.0),
        context=96,
        capacity=110,
        rows=4,
        abort=0.1,
        retract=0.2,
        evict=0.2,
    ),
    "device faults": Scene(faults=0.02),
    "by age": Scene(
        limits=Limits(batch_tokens=16, chunk_tokens=8, lease_seconds=3.0, policy="age"), capacity=60, rows=4
    ),
    "first come": Scene(
        limits=Limits(batch_tokens=16, chunk_tokens=8, policy="lru-fcfs"), capacity=60, rows=4, abort=0.05, retract=0.1
    ),
    "long leases": Scene(
        limits=Limits(batch_tokens=16, chunk_tokens=8, lease_seconds=100.0), capacity=70, at_once=9, shape=Shape(ops=20)
    ),
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


def test_grammars_force_and_guess_in_these_worlds() -> None:
    seen: Counter[str] = Counter()
    world = World(1, SCENES["grammars"])
    collect = world.core.collector.collect

    def watched(notes: Notes, samples: Samples, step: int) -> None:
        before = list(world.core.programs.news)
        collect(notes, samples, step)
        seen["guessed draws"] += sum(ahead > 0 for _, ahead in notes.constrained)
        done = [n for n in world.core.programs.news if isinstance(n, m.Done) and n not in before]
        seen["forced tokens"] += sum(news.forced for news in done)
        seen["ends of grammars"] += sum(news.reason == "stop" and news.matched is None for news in done)

    world.core.collector.collect = watched  # type: ignore[method-assign]
    world.run(600)
    assert min(seen[what] for what in ("guessed draws", "forced tokens", "ends of grammars")) > 20, seen


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
