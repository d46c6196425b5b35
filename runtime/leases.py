"""Leases: sequences that want nothing now, or wait for a place, and keep a lock on the KV of their prefix.

In: sequences that rest. Out: whose lease has run out, and whose is to be taken back when memory is short. The choice is
by least waste, as InferCept weighs it (Abhyankar et al. 2024): to drop a lease of c tokens costs that c tokens are
computed again, with the probability p that they are wanted; to keep it costs c slots for as long as it waits, for which
the time w that it has waited is the estimate. The lease of the least p * c / w goes first; p falls from 1 to 0 over the
lease's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ramet.runtime.bank import exclusive
from ramet.runtime.sequence import Sequence

SOON = 1e-3  # seconds: a wait that has just begun
DRIFT = 0.02  # how much of a slower step the pace believes


class Leases:
    """Who rests. `resting` is coldest first; a lease lasts `seconds`."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.resting: dict[Sequence, None] = {}
        self._seconds = seconds
        self._clock = clock

    def add(self, seq: Sequence) -> None:
        """It rests from now on, unless it does already."""
        if seq not in self.resting:
            seq.since = self._clock()
            self.resting[seq] = None

    def drop(self, seq: Sequence) -> None:
        """It rests no more."""
        self.resting.pop(seq, None)

    def expired(self) -> Sequence | None:
        """One whose lease has run out."""
        seq = next(iter(self.resting), None)
        return seq if seq is not None and self._clock() - seq.since > self._seconds else None

    def cheapest(self, holders: Iterable[Sequence]) -> Sequence | None:
        """The holder whose lease is to be taken first: one that frees something, by least waste, then the youngest."""
        return min(holders, key=self._order, default=None)

    def price(self, seq: Sequence, pace: float) -> float:
        """Seconds that it takes to compute again what the lease holds, at `pace` seconds a token, but no more than the
        lease has left: so long it is worth to wait for its owner (the rule of break-even, Karlin et al. 1988: it costs
        at most twice of what the best choice would)."""
        again = exclusive([seq]) * pace
        return min(again, max(seq.since + self._seconds - self._clock(), 0.0)) if seq in self.resting else again

    def _order(self, seq: Sequence) -> tuple[bool, float, int, int]:
        tokens = exclusive([seq])
        waited = max(self._clock() - seq.since, SOON)
        likely = max(1.0 - waited / self._seconds, 0.0) if seq in self.resting and self._seconds else 1.0
        return (not tokens, likely * tokens / waited, -seq.age[0], -seq.age[1])


class Pace:
    """Seconds a computed token, of the steps that were best at it: what computing a lost prefix again would take."""

    def __init__(self) -> None:
        self.seconds = 0.0  # a token; 0 is unknown
        self._tokens = 0
        self._at = 0.0

    def note(self, now: float, tokens: int) -> None:
        """A step of so many tokens begins now (0: none, and the clock stands)."""
        if self._tokens:
            rate = (now - self._at) / self._tokens
            slower = self.seconds + DRIFT * (rate - self.seconds)
            self.seconds = min(rate, slower) if self.seconds else rate
        self._tokens, self._at = tokens, now
