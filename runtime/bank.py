"""Which programs may hold KV: a banker who lends so that whoever has begun can finish.

In: sequences that want a place, what is seated, and how many slots nobody holds. Out: yes or no. A program is admitted
when the peaks of all admitted ones and its own fit, if all grow in step; an op of an admitted program is let in when
afterwards some order is left in which every one can finish (Dijkstra 1965, "Cooperating sequential processes", for one
kind of resource: that order is by what is still needed). So nobody who has begun loses KV to who comes later, and no
memory lies idle for what all will never need at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ramet.runtime.admission import Footprints, peak
from ramet.runtime.cache import Cache
from ramet.runtime.footprint import footprint, resident
from ramet.runtime.footprint import peak as peak_of
from ramet.runtime.lengths import Learned
from ramet.runtime.sequence import Sequence

if TYPE_CHECKING:
    from ramet.runtime.programs import Program

STALE = 16  # a peak is computed again after a step for so many of the program's open ops


def can_all_finish(free: int, loans: Iterable[tuple[int, int]]) -> bool:
    """The banker's question: `free` slots, and of each program (slots that it still needs, slots that come back when it
    has finished). True when there is an order in which all can finish."""
    for need, back in sorted(loans):
        if need > free:
            return False
        free += back
    return True


class Bank:
    """The admitted programs. `admitted` holds them in the order in which they came in."""

    def __init__(self, cache: Cache, learned: Learned) -> None:
        self.admitted: dict[Program, None] = {}
        self._cache = cache
        self._learned = learned
        self._longest = min(cache.capacity, cache.rows.table.shape[1])
        self._composed: dict[Program, None] = {}  # those of them that were more than one call
        self._promised = 0  # the sum of the admitted programs' peaks, as they were when last looked at

    def peak(self, program: Program, step: int) -> int:
        """A program's peak in slots, at most the whole pool. Looked at again when its ops have changed; for a program
        of many ops only so often that this stays cheap."""
        if program.changed and (program.peak < 0 or step >= program.peak_until):
            found = min(peak_of(program, self._learned, self._longest), self._cache.capacity)
            if program in self.admitted:
                self._promised += found - max(program.peak, 0)
            program.peak, program.changed = found, False
            program.peak_until = step + program.open // STALE
        return program.peak

    def admit(self, program: Program, step: int) -> None:
        """It holds KV from now on."""
        if program not in self.admitted:
            self._promised += self.peak(program, step)
            self.admitted[program] = None
            if not _is_one_call(program):
                self._composed[program] = None

    def forget(self, program: Program) -> None:
        """It is over, or has lost its KV: it is to be admitted anew if it goes on."""
        if program in self.admitted:
            del self.admitted[program]
            self._composed.pop(program, None)
            self._promised -= max(program.peak, 0)

    def affords(self, program: Program, room: int, step: int) -> bool:
        """True when a program that is not admitted may be: `room` slots are not locked."""
        if self._promised + self.peak(program, step) <= self._cache.capacity:
            return True
        if not self._composed and _is_one_call(program):
            return True  # what is seated is all that there is, and has been asked about
        pairs = np.array([self._pair(each, step) for each in (*self.admitted, program)], np.int64)
        return peak(pairs[:, 0], pairs[:, 1]) <= room

    def lends(self, seq: Sequence, running: Iterable[Sequence], seats: Footprints, room: int, step: int) -> bool:
        """True when a sequence of an admitted program may begin its op: all can finish even so. `running` are seated,
        `seats` what they may hold."""
        if len(self.admitted) == 1 or self._promised <= self._cache.capacity:
            return True
        pair = footprint(seq)
        free = room - seats.peak(pair)
        needs = {program: sum(self._pair(program, step)) for program in self.admitted}
        loans: dict[Program, int] = dict.fromkeys(needs, 0)
        for each in (*running, seq):
            lent = sum(footprint(each))
            needs[each.program] = needs.get(each.program, lent) - lent
            loans[each.program] = loans.get(each.program, 0) + lent
        if sum(max(need, 0) for need in needs.values()) <= free:
            return True
        return can_all_finish(
            free, [(max(need, 0), loans[program] + self.exclusive(program)) for program, need in needs.items()]
        )

    def _pair(self, program: Program, step: int) -> tuple[int, int]:
        """Slots that a program's tokens need beyond those that it has locked, and tokens to come."""
        if _is_one_call(program):
            return footprint(next(iter(program.sequences.values())))
        held = 0
        for seq in program.sequences.values():
            if not (seq.closed or seq.failed is not None):
                base = seq.node.depth if seq.node is not None else seq.base
                held += max(seq.known + seq.flying - base, 0)
        return held, max(self.peak(program, step) - resident(program), 0)

    def exclusive(self, program: Program) -> int:
        """Tokens in the tree that only this program holds."""
        return exclusive(program.sequences.values())


def _is_one_call(program: Program) -> bool:
    """True when all that is left of it is one op at most."""
    return len(program.sequences) == 1 and program.open <= 1 and program.ended


def exclusive(sequences: Iterable[Sequence]) -> int:
    """Tokens in the tree that nobody but these sequences holds: what would be free without their locks."""
    held: dict[int, int] = {}
    total = 0
    for seq in sequences:
        node = seq.node
        while node is not None and node.parent is not None:
            mine = held[id(node)] = held.get(id(node), 0) + 1
            if mine == node.refs:
                total += len(node.tokens)
            node = node.parent
    return total
