"""Whose KV is taken when memory is short: a lease first, then a place.

In: who holds KV (seated, waiting with a lock, resting under a lease) and who needs more. Out: the sequence that gives
way, or None. Under a bank the leases of younger programs and of the needy one go by least waste; without one, that of
who rests longest. Places are given up by the youngest, and never by an older sequence for a younger one, so one
sequence can always finish. Nothing is taken here: the scheduler does that.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from operator import attrgetter

from ramet.runtime.bank import Bank
from ramet.runtime.leases import Leases
from ramet.runtime.sequence import Choosing, Sequence
from ramet.runtime.waiting import Waiting

AGE = attrgetter("age")  # of a sequence: the least is the oldest


class Victims:
    """Chooses among the sequences of one scheduler, whose live `running`, `waiting` and `leases` it reads."""

    def __init__(self, running: Iterable[Sequence], waiting: Waiting, leases: Leases, bank: Bank | None) -> None:
        self._running = running
        self._waiting = waiting
        self._leases = leases
        self._bank = bank

    def lease(self, needy: Sequence) -> Sequence | None:
        """Whose lease goes so that `needy` can go on. Under a bank: of the programs younger than its own, and of its
        own, by least waste; else that of the sequence that rests longest, or of the youngest that waits."""
        if self._bank is not None:
            mine, first = needy.program, needy.program.order
            holders = (s for s in self._holders() if s.program.order > first or (s.program is mine and s is not needy))
            return self._leases.cheapest(holders)
        resting = next(iter(self._leases.resting), None)
        if resting is not None:
            return resting
        return max((s for s in self._waiting if s.node is not None), key=AGE, default=None)

    def any_lease(self, head: Sequence | None) -> Sequence | None:
        """Whose lease goes when nothing can move, by least waste: anybody's but that of `head`, which waits first."""
        return self._leases.cheapest(seq for seq in self._holders() if seq is not head)

    def place(self, needy: Sequence, members: Container[Sequence]) -> Sequence | None:
        """Who gives up its place for `needy`: the youngest that is not part of this step (`members`), if it is younger;
        but nobody whose choices are half computed."""
        held = (s for s in self._running if s not in members and s is not needy and not _half_chosen(s))
        victim = max(held, key=AGE, default=None)
        return None if victim is None or victim.age < needy.age else victim

    def any_place(self) -> Sequence | None:
        """Who gives up its place when nothing can move and no lease is left: the youngest."""
        return max(self._running, key=AGE, default=None)

    def _holders(self) -> Iterator[Sequence]:
        yield from self._leases.resting
        yield from (seq for seq in self._waiting if seq.node is not None)


def _half_chosen(seq: Sequence) -> bool:
    return isinstance(seq.task, Choosing) and seq.task.launched
