"""Real clients and plans in front of engines that are lost: one end of each program, the same values in every life."""

from __future__ import annotations

from collections import Counter

import pytest

from .campaign import OFFICES, Task, carry_out


@pytest.mark.parametrize("first", [0, 6])
def test_clients_and_engines_that_die(first: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, first + 6):
        report = carry_out(Task(OFFICES, seed))
        assert not report.failure, f"again: {report.task.command}\n{report.where}"
        seen.update(report.seen)
    deaths = sum(times for what, times in seen.items() if what.startswith("engines "))
    assert min(deaths, seen["programs that lost their engine"], seen["plans"], seen["cancelled"]) > 3, seen
