"""The queue: sequences that want work and have no row, in admission order at all times.

In: sequences as they come, change and go; a change of one costs O(log n). Out: those to be admitted next. A group is
the sequences of one priority and namespace.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest

from ramet.runtime.admission import interleave
from ramet.runtime.radix import RadixTree
from ramet.runtime.sequence import Choosing, Generating, Sequence

LOOKAHEAD = 64  # waiting sequences that one plan looks at
AGE_BONUS = 16.0  # programs that a wholly cached prompt may overtake
TINY = 4  # an op of so few tokens goes first,
LEAD = 128  # before programs that are so much older, so that a stream of such ops holds up nobody for ever

Rank = tuple[bool, bool, int, int]
Entry = tuple[Rank, Sequence]  # ranks differ: sequences are never compared


def rank(seq: Sequence) -> Rank:
    """A sequence's place inside its group: calls before mere prefill, programs that run already, then age, where a tiny
    op makes older (so that children of one fork stand together)."""
    task = seq.task
    tiny = isinstance(task, Choosing) or (isinstance(task, Generating) and task.limit <= TINY)
    program, order = seq.age
    return (task is None, not seq.program.steps, program - LEAD if tiny else program, order)


def arrival(seq: Sequence) -> Rank:
    """A sequence's place where nothing is known of programs: its age, which is then its call's."""
    return (False, False, *seq.age)


@dataclass(slots=True)
class Group:
    """Waiting sequences of one priority and namespace. `serials`: when each came, the earliest first."""

    priority: int
    namespace: str
    entries: list[Entry] = field(default_factory=list)
    serials: dict[Sequence, int] = field(default_factory=dict)


class Waiting:
    """The queue. `update` tells it that what a sequence wants, or its program's standing, may have changed."""

    def __init__(self, tree: RadixTree, *, aware: bool = True) -> None:
        """`aware` of programs and of what is cached; else first come, first served."""
        self._tree = tree
        self._rank = rank if aware else arrival
        self._aware = aware
        self._cached: dict[Sequence, tuple[int, int]] = {}  # what `_match` found, and the tree's `changes` then
        self._groups: dict[tuple[int, str], Group] = {}
        self._entries: dict[Sequence, Entry] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, seq: Sequence) -> bool:
        return seq in self._entries

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._entries)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence that is not queued."""
        key = (seq.program.priority, seq.program.namespace)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
        self._serial += 1
        group.serials[seq] = self._serial
        entry = self._entries[seq] = (self._rank(seq), seq)
        insort(group.entries, entry)

    def discard(self, seq: Sequence) -> None:
        """Take a sequence out, if it is queued."""
        entry = self._entries.pop(seq, None)
        if entry is None:
            return
        self._cached.pop(seq, None)
        key = (seq.program.priority, seq.program.namespace)
        group = self._groups[key]
        del group.serials[seq]
        del group.entries[bisect_left(group.entries, entry)]
        if not group.entries:
            del self._groups[key]

    def update(self, seq: Sequence) -> None:
        """Move a sequence to its place, if it is queued."""
        self._cached.pop(seq, None)
        entry = self._entries.get(seq)
        if entry is None or entry[0] == self._rank(seq):
            return
        group = self._groups[seq.program.priority, seq.program.namespace]
        del group.entries[bisect_left(group.entries, entry)]
        moved = self._entries[seq] = (self._rank(seq), seq)
        insort(group.entries, moved)

    def next(self, served: dict[str, int]) -> list[Sequence]:
        """At most LOOKAHEAD sequences in admission order: by priority; namespaces in turn, the one that was served
        least first (`served`: its tokens), then the one that waits longest; inside a namespace by rank, where a cached
        prefix makes a sequence older."""

        def turn(group: Group) -> tuple[int, int, int]:
            return (-group.priority, served.get(group.namespace, 0), next(iter(group.serials.values())))

        turns = nsmallest(LOOKAHEAD, self._groups.values(), turn)
        return interleave([(-group.priority, self._first(group)) for group in turns], LOOKAHEAD)

    def _first(self, group: Group) -> list[Sequence]:
        first = [seq for _, seq in group.entries[:LOOKAHEAD]]
        if self._aware and any(seq.program is not first[0].program for seq in first):
            first.sort(key=self._rank_cached)
        return first

    def _rank_cached(self, seq: Sequence) -> tuple[bool, bool, float, int]:
        cached = seq.depth if seq.node is not None else self._match(seq)
        bonus = AGE_BONUS * cached / max(seq.known, 1)
        called, runs, program, order = self._entries[seq][0]
        return (called, runs, program - bonus, order)

    def _match(self, seq: Sequence) -> int:
        """How many of the sequence's tokens are cached."""
        changes, cached = self._cached.get(seq, (-1, 0))
        if changes != self._tree.changes:
            cached = self._tree.match(self._tree.root(seq.program.namespace), seq.tokens(0, seq.known))[1]
            self._cached[seq] = (self._tree.changes, cached)
        return cached
