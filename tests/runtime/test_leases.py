"""Whose lease is taken: by least waste, and not before waiting has cost as much as computing again."""

from __future__ import annotations

import numpy as np
import pytest

from ramet.runtime.bank import exclusive
from ramet.runtime.leases import Leases, Pace
from ramet.runtime.program import Program
from ramet.runtime.radix import RadixTree
from ramet.runtime.sequence import Sequence


class Stage:
    """A tree, a clock, and sequences that rest."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tree = RadixTree()
        self.leases = Leases(60.0, lambda: self.now)
        self._slots = 0

    def rest(self, order: int, tokens: int, *, above: Sequence | None = None) -> Sequence:
        """A sequence with so many tokens of its own, below those of another."""
        seq = Sequence(Program(f"p{order}", "", 0, order, 0.0), "0", order)
        node = self.tree.root() if above is None or above.node is None else above.node
        run = np.arange(self._slots, self._slots + tokens, dtype=np.int32)
        self._slots += tokens
        seq.node = self.tree.insert(node, run, run)[0]
        self.tree.lock(seq.node)
        self.leases.add(seq)
        return seq


def test_only_what_nobody_else_holds_counts() -> None:
    stage = Stage()
    parent = stage.rest(0, 100)
    child = stage.rest(1, 20, above=parent)
    assert (exclusive([parent]), exclusive([child]), exclusive([parent, child])) == (0, 20, 120)
    assert stage.leases.cheapest([parent, child]) is child, "the parent's lease frees nothing"


def test_of_two_that_wait_as_long_the_cheaper_to_compute_again_goes() -> None:
    stage = Stage()
    large, small = stage.rest(0, 200), stage.rest(1, 50)
    stage.now = 1.0
    assert stage.leases.cheapest([large, small]) is small


def test_of_two_as_large_the_one_that_waits_longer_goes() -> None:
    stage = Stage()
    early = stage.rest(0, 100)
    stage.now = 5.0
    late = stage.rest(1, 100)
    stage.now = 6.0
    assert stage.leases.cheapest([early, late]) is early


def test_a_lease_that_nears_its_end_is_not_likely_to_be_used() -> None:
    stage = Stage()
    early = stage.rest(0, 1000)
    stage.now = 57.0
    late = stage.rest(1, 500)
    stage.now = 59.9
    assert stage.leases.cheapest([early, late]) is early
    assert stage.leases.expired() is None
    stage.now = 60.1
    assert stage.leases.expired() is early


def test_it_is_worth_waiting_as_long_as_computing_again_would_take() -> None:
    stage = Stage()
    seq = stage.rest(0, 100)
    assert stage.leases.price(seq, 0.01) == pytest.approx(1.0)
    stage.now = 59.5
    assert stage.leases.price(seq, 0.01) == pytest.approx(0.5), "but not beyond its end"


def test_the_pace_is_that_of_the_best_steps() -> None:
    pace, now = Pace(), 0.0
    for tokens, seconds in ((500, 0.5), (1, 0.1), (500, 0.25), (0, 9.0), (1, 0.1)):
        pace.note(now, tokens)
        now += seconds
    pace.note(now, 0)
    assert 0.0005 <= pace.seconds < 0.003
