"""Tasks of a simulation campaign: one world, or one run of rounds, each a function of its name and seed.

In: a `Task`. Out: a `Report`: what was done and seen, and the failure, if any, with the command that repeats it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from itertools import count

import msgspec
import pytest

from .mutations import TABLE
from .offices import Office
from .prefixes import rounds
from .scenes import SCENES
from .world import World

STEPS = 500  # of one world, before its programs are left to end
ROUNDS = 10_000
OFFICE_STEPS = 150
PREFIXES, OFFICES = "prefixes", "offices"
COMMAND = ".venv/bin/python -P tests/sim/sim.py"


class Task(msgspec.Struct, frozen=True):
    """One world: a scene, "offices" or "prefixes"; under a mutation of the product when `mutation` names one."""

    scene: str
    seed: int
    steps: int = 0
    mutation: str = ""

    @property
    def command(self) -> str:
        """The command that repeats it."""
        mutation = f' --mutation "{self.mutation}"' if self.mutation else ""
        steps = f" --world-steps {self.steps}" if self.steps else ""
        return f'{COMMAND} --scene "{self.scene}" --seed {self.seed}{steps}{mutation}'


class Report(msgspec.Struct):
    """What came of a task. `seen` counts troubles by kind."""

    task: Task
    steps: int = 0
    rounds: int = 0
    programs: int = 0
    seen: dict[str, int] = {}
    failure: str = ""
    where: str = ""


def carry_out(task: Task) -> Report:
    """Run a task to its end, or to its failure."""
    report = Report(task)
    with pytest.MonkeyPatch.context() as patch:
        if task.mutation:
            TABLE[task.mutation][1](patch)
        world: World | Office | None = None
        try:
            if task.scene == PREFIXES:
                report.rounds = task.steps or ROUNDS
                rounds(task.seed, report.rounds)
            elif task.scene == OFFICES:
                world = Office(task.seed)
                world.run(task.steps or OFFICE_STEPS)
            else:
                world = World(task.seed, SCENES[task.scene])
                world.run(task.steps or STEPS)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is reported with its seed)
            report.failure = f"{type(error).__name__}: {error}"
            report.where = traceback.format_exc()
        finally:
            if isinstance(world, Office):
                world.close()
        if world is not None:
            report.steps, report.programs, report.seen = world.steps, world.finished, dict(world.seen)
    return report


def tasks(first_seed: int, prefix_rounds: int) -> Iterator[Task]:
    """Endless: rounds of the prefix cache first, then every scene with one seed after the other."""
    for i, done in enumerate(range(0, prefix_rounds, ROUNDS)):
        yield Task(PREFIXES, first_seed + i, min(ROUNDS, prefix_rounds - done))
    for seed in count(first_seed):
        yield Task(OFFICES, seed)
        for scene in SCENES:
            yield Task(scene, seed)
