"""Agents under memory pressure: what each policy computes twice, and when agents are done."""

from __future__ import annotations

from functools import cache

import pytest

from ramet.runtime.config import Policy

from .agents import Figures, Pressure


@cache
def figures(policy: Policy, declared: bool = True) -> tuple[Figures, Figures]:
    """Of a first round of agents, and of a second one on an engine that has learned."""
    world = Pressure(policy, declared=declared)
    return world.run(), world.again()


def test_agents_that_declare_their_turns_compute_nothing_twice() -> None:
    for each in figures("peak"):
        assert each.computed <= 1.05 * each.distinct
        assert (each.retractions, each.revocations) == (0, 0)


def test_calls_that_come_one_by_one_thrash() -> None:
    for each in figures("lru-fcfs"):
        assert each.computed >= 4 * each.distinct


def test_agents_are_done_in_less_than_half_the_time() -> None:
    calls, programs = figures("lru-fcfs")[0], figures("peak")[0]
    assert calls.distinct == programs.distinct
    assert programs.mean <= calls.mean / 2
    assert programs.last <= calls.last / 2


def test_age_alone_is_not_enough() -> None:
    assert figures("age")[0].waste > figures("peak")[0].waste * 1.1


def test_agents_that_grow_are_known_the_second_time() -> None:
    first, again = figures("peak", declared=False)
    assert first.waste <= 1.35, "nobody could know"
    assert again.waste <= 1.05


@pytest.mark.parametrize("declared", [True, False])
def test_without_pressure_nothing_is_held_back(declared: bool) -> None:
    """With room for all, the policies differ in nothing but the order of equals."""
    policies: tuple[Policy, ...] = ("peak", "age")
    found = [Pressure(policy, share=1.6, declared=declared).run() for policy in policies]
    assert found[0].computed == found[0].distinct
    assert (found[0].steps, found[0].mean) == (found[1].steps, found[1].mean)


def test_one_call_programs_are_scheduled_alike() -> None:
    """Chat: programs of one generation, in a pool that is too small for all of them."""
    policies: tuple[Policy, ...] = ("peak", "age")
    found = [Pressure(policy, turns=1, count=30, share=0.2).run() for policy in policies]
    assert found[0].steps == found[1].steps
    assert (found[0].mean, found[0].computed) == (found[1].mean, found[1].computed)
