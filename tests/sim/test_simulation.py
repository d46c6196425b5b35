"""Random programs through the real step loop: all invariants after every step, every answer equal to the oracle's.

A part of the seeds is tried here; `make sim` goes on to 10^6 steps. A failure names the one command that repeats it.
"""

from __future__ import annotations

from collections import Counter

import pytest

from ramet.runtime import messages as m
from ramet.runtime.admission import Footprints
from ramet.runtime.batch import Samples
from ramet.runtime.draft import Draft, Notes

from .campaign import Task, carry_out
from .scenes import SCENES
from .world import World

STEPS = 300  # of each scene


@pytest.mark.parametrize("name", SCENES)
def test_simulated_steps(name: str) -> None:
    steps, seed = 0, 0
    while steps < STEPS:
        report = carry_out(Task(name, seed, STEPS - steps))
        assert not report.failure, f"again: {report.task.command}\n{report.where}"
        steps += report.steps
        seed += 1


def test_every_trouble_happens() -> None:
    """What the scenes are for is what is seen in them."""
    seen: Counter[str] = Counter()
    for name in ("all at once", "hosts that answer late or never", "cancel storms"):
        seen.update(carry_out(Task(name, 1, 300)).seen)
    quiet = [what for what, times in seen.items() if not times and what != "leaked slots"]
    assert not quiet, f"never: {quiet}"
    assert len(seen) >= 18, sorted(seen)


def test_places_are_counted_again_when_who_is_admitted_took_some() -> None:
    world = World(4, SCENES["long leases"])
    scheduler = world.core.scheduler
    admit, footprints, counts = scheduler._admit, scheduler._footprints, [0]

    def admitted(draft: Draft) -> bool:
        counts.append(0)
        return admit(draft)

    def counted() -> Footprints:
        counts[-1] += 1
        return footprints()

    scheduler._admit, scheduler._footprints = admitted, counted  # type: ignore[method-assign]
    world.run(800)
    assert max(counts) > 1


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
