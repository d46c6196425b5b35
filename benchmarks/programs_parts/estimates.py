"""How far plans' estimates are from what runs cost. In: workloads and places. Out: per workload the error, in tokens.

A plan learns from one run of every program of a workload, on other texts than those whose cost it then has to tell.
The tokens of a run are those of all its prompts, as clients without programs would send them, and those that it makes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from programs_parts.catalog import Workload
from programs_parts.places import Places
from programs_parts.rungs import SECONDS
from programs_parts.scenes import Row, rows
from programs_parts.session import planned
from ramet.frontend.estimate import Estimate
from ramet.frontend.ir import Usage
from ramet.frontend.plan import Plan

WARM, MEASURED = 2_000_000, 2_000_001  # seeds of the rounds
MOST = 0.20  # median error over all runs


@dataclass(frozen=True, slots=True)
class Guessed:
    """One workload, as sums over its programs: expected and real tokens; `errors`, one a run; `complete`: its plans run
    to their ends without Python."""

    workload: str
    complete: bool
    prompt: int
    prompted: int
    generated: int
    made: int
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """The median over runs."""
        return statistics.median(self.errors)


def guessed(places: Places, workload: Workload, scale: int = 1) -> Guessed:
    """Warm-up and measurement of one workload, on the engine with room for all."""
    warm = rows(workload.number, WARM, scale, places.setting.pace)
    plans = planned(workload, warm)
    for plan in plans[1:]:
        plan.observed = plans[0].observed  # those of rows with other static arguments learn together
    _run(places, workload, plans, warm)
    given = rows(workload.number, MEASURED, scale, places.setting.pace)
    asked = planned(workload, given)
    for plan in asked:
        plan.observed = plans[0].observed
    before = [plan.estimate(**_arguments(workload, row)) for plan, row in zip(asked, given, strict=True)]
    return _compared(workload, before, _run(places, workload, asked, given))


def _arguments(workload: Workload, row: Row) -> dict[str, str]:
    return {name: value for name, value in workload.arguments(row).items() if name not in workload.static(row)}


def _run(places: Places, workload: Workload, plans: Sequence[Plan], given: Sequence[Row]) -> list[Usage]:
    backend = places.engine()
    backend.flush_cache()
    runs = [
        plan.run(**_arguments(workload, row), backend=backend, seed=place)
        for place, (plan, row) in enumerate(zip(plans, given, strict=True))
    ]
    for run in runs:
        run.result(SECONDS)
    return [run.usage for run in runs]


def _compared(workload: Workload, before: Sequence[Estimate], after: Sequence[Usage]) -> Guessed:
    errors = [
        abs(guess.prompt + guess.generated - usage.prompt_tokens - usage.generated_tokens)
        / max(usage.prompt_tokens + usage.generated_tokens, 1)
        for guess, usage in zip(before, after, strict=True)
    ]
    return Guessed(
        f"{workload.label} {workload.name}",
        all(guess.complete for guess in before),
        sum(guess.prompt for guess in before),
        sum(usage.prompt_tokens for usage in after),
        sum(guess.generated for guess in before),
        sum(usage.generated_tokens for usage in after),
        tuple(errors),
    )


def table(found: Sequence[Guessed]) -> Table:
    """For people; the last row is over all runs."""
    out = Table(title="Estimates after one run of each program, and what other texts cost")
    for name in ("workload", "plan", "prompt", "real", "generated", "real", "median error", "worst"):
        out.add_column(name, justify="left" if name in ("workload", "plan") else "right")
    for each in found:
        counts = (f"{value:,}" for value in (each.prompt, each.prompted, each.generated, each.made))
        whole = "whole" if each.complete else "with breaks"
        out.add_row(each.workload, whole, *counts, f"{each.error:.1%}", f"{max(each.errors):.1%}")
    if found:
        out.add_section()
        out.add_row("all runs", "", "", "", "", "", f"{overall(found):.1%}", f"{max(worst(found)):.1%}")
    return out


def worst(found: Sequence[Guessed]) -> list[float]:
    """Errors of all runs."""
    return [error for each in found for error in each.errors]


def overall(found: Sequence[Guessed]) -> float:
    """The median error over all runs: at most `MOST`."""
    return statistics.median(worst(found))
