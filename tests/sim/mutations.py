"""Faults that are seeded into the product, one at a time: under each the simulation must fail.

In: a `MonkeyPatch`. Out: a product with one rule broken. `TABLE` names each, with the scene whose trouble shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from ramet.runtime import joins
from ramet.runtime import messages as m
from ramet.runtime.batch import I32, Draws, Masks
from ramet.runtime.cache import Cache
from ramet.runtime.collect import Collector
from ramet.runtime.draft import Draft, Notes
from ramet.runtime.engine import EngineCore
from ramet.runtime.leases import Leases
from ramet.runtime.parameters import Parameters
from ramet.runtime.program import Program
from ramet.runtime.programs import Programs
from ramet.runtime.radix import Node, RadixTree
from ramet.runtime.scheduler import Scheduler
from ramet.runtime.sequence import NO_SLOTS, Choosing, Generating, Sequence

from .mutations_beside import BESIDE

Patch = pytest.MonkeyPatch


def slot_freed_twice(patch: Patch) -> None:
    """The guard of `Slots.release` stays: it must not be swallowed on the way."""
    free = Cache._free

    def twice(self: Cache, slots: I32) -> None:
        free(self, slots)
        free(self, slots[:1])

    patch.setattr(Cache, "_free", twice)


def slot_of_two_owners(patch: Patch) -> None:
    """Slots that the cache has in its tree are handed out again."""
    alloc = Cache.take

    def lent(self: Cache, count: int, after: int = -1) -> I32 | None:
        slots = alloc(self, count, after)
        leaves = [n for n in self.tree.nodes() if len(n.slots)] if slots is not None and count == 1 else []
        if slots is None or not leaves:
            return slots
        self.slots.release(slots)
        return leaves[0].slots[:1]

    patch.setattr(Cache, "take", lent)


def slot_never_freed(patch: Patch) -> None:
    """Those of a token trie."""

    def dropped(self: Cache, seq: Sequence) -> None:
        if isinstance(seq.task, Choosing):
            seq.task.slots = seq.task.extra = NO_SLOTS

    patch.setattr(Cache, "drop", dropped)


def reference_not_dropped(patch: Patch) -> None:
    """When a sequence is retracted."""
    unlock = RadixTree.unlock

    def kept(self: RadixTree, node: Node, cold: bool = False) -> None:
        if not cold:
            unlock(self, node, cold)

    patch.setattr(RadixTree, "unlock", kept)


def eviction_ignores_locks(patch: Patch) -> None:
    """Of one leaf."""
    evict = RadixTree.evict

    def reckless(self: RadixTree, count: int) -> I32:
        held = next((n for n in self.nodes() if n.refs and not n.children and n.parent is not None), None)
        if held is not None:
            self.locked -= len(held.tokens)
            held.refs, held.used = 0, -(1 << 30)
            self._offer(held)
        return evict(self, count)

    patch.setattr(RadixTree, "evict", reckless)


def split_loses_count(patch: Patch) -> None:
    """The upper half of a node that is held."""
    split = RadixTree._split

    def halved(self: RadixTree, node: Node, at: int) -> Node:
        upper = split(self, node, at)
        upper.refs = min(upper.refs, 1)
        return upper

    patch.setattr(RadixTree, "_split", halved)


def shared_between_namespaces(patch: Patch) -> None:
    """One root for all."""
    root = RadixTree.root
    patch.setattr(RadixTree, "root", lambda self, namespace="": root(self, "ns0"))


def stale_row(patch: Patch) -> None:
    """A row that changes hands is not rewritten."""
    seat = Cache.seat

    def seated(self: Cache, seq: Sequence) -> bool:
        fresh = seq.row is None
        done = seat(self, seq)
        if done and fresh and seq.depth:
            self.rows.table[seq.row, : seq.depth] = 0
        return done

    patch.setattr(Cache, "seat", seated)


def fork_of_private_slots(patch: Patch) -> None:
    """A child claims what only its parent holds."""
    fork = Cache.fork

    def shared(self: Cache, parent: Sequence, child: Sequence) -> None:
        fork(self, parent, child)
        child.computed = child.known

    patch.setattr(Cache, "fork", shared)


def loser_kept(patch: Patch) -> None:
    """Of a choice, the KV of another one stays."""
    keep = Cache.keep_trie

    def wrong(self: Cache, seq: Sequence, task: Choosing, path: list[int]) -> None:
        keep(self, seq, task, next((p for p in task.trie.paths if p[0] != path[0]), path))

    patch.setattr(Cache, "keep_trie", wrong)


def retraction_forgets_flights(patch: Patch) -> None:
    """The draws in the air are not waited for."""
    retract = Scheduler.retract

    def forgotten(self: Scheduler, seq: Sequence) -> None:
        seq.flying = 0
        retract(self, seq)

    patch.setattr(Scheduler, "retract", forgotten)


def retraction_forgets_text(patch: Patch) -> None:
    """What was drawn last is lost."""
    retract = Scheduler.retract

    def shortened(self: Scheduler, seq: Sequence) -> None:
        if isinstance(seq.task, Generating) and seq.task.sent and not seq.flying:
            seq.known -= 1
            seq.computed = min(seq.computed, seq.known)
            seq.task.made -= 1
        retract(self, seq)

    patch.setattr(Scheduler, "retract", shortened)


def sleeper(patch: Patch) -> None:
    """Who is retracted is not queued again."""
    wake = Scheduler.wake
    patch.setattr(Scheduler, "wake", lambda self, seq: None if seq.lost and seq.row is None else wake(self, seq))


def lease_without_end(patch: Patch) -> None:
    """A lease that has run out is not taken."""

    def never(self: Scheduler) -> None:
        return None

    patch.setattr(Scheduler, "_expire", never)


def lease_of_nobody(patch: Patch) -> None:
    """A sequence rests with its lock, and nobody knows."""
    patch.setattr(Leases, "add", lambda self, seq: None)


def end_untold(patch: Patch) -> None:
    """An aborted program has no terminal event."""
    end = Programs.end

    def silent(self: Programs, program: Program, kind: str = "", message: str = "") -> None:
        end(self, program, kind, message)
        if kind:
            self.news.pop()

    patch.setattr(Programs, "end", silent)


def end_told_twice(patch: Patch) -> None:
    """A program has two terminal events."""
    end = Programs.end

    def doubled(self: Programs, program: Program, kind: str = "", message: str = "") -> None:
        end(self, program, kind, message)
        self.news.append(self.news[-1])

    patch.setattr(Programs, "end", doubled)


def end_keeps_rows(patch: Patch) -> None:
    """An aborted program's sequences stay where they are."""
    leave = Scheduler.leave

    def stays(self: Scheduler, seq: Sequence) -> None:
        if seq.program.id in _live(self):
            leave(self, seq)

    def _live(scheduler: Scheduler) -> set[str]:
        return {seq.program.id for seq in scheduler.running if not seq.program.ended}

    patch.setattr(Scheduler, "leave", stays)


def abort_by_prefix(patch: Patch) -> None:
    """An abort ends all programs whose ids begin so."""
    receive = Programs._receive

    def broad(self: Programs, order: m.Order) -> None:
        if isinstance(order, m.OrderAbort):
            for name in [n for n in self.live if n.startswith(order.program)]:
                receive(self, m.OrderAbort(name))
        else:
            receive(self, order)

    patch.setattr(Programs, "_receive", broad)


def cut_of_neighbours(patch: Patch) -> None:
    """A branch that is stopped takes its siblings along."""
    cut = Programs._cut

    def broad(self: Programs, program: Program, branch: str) -> None:
        for name in [n for n in program.sequences if n.startswith(branch[:-1])]:
            cut(self, program, name)

    patch.setattr(Programs, "_cut", broad)


def failure_spreads(patch: Patch) -> None:
    """A broken grammar ends other programs too."""
    automaton = Collector._refused

    def spread(self: Collector, seq: Sequence, task: Any, error: BaseException) -> bool:
        for program in [p for p in self._programs.live.values() if p is not seq.program]:
            self._programs.end(program, "generation", str(error))
        return automaton(self, seq, task, error)

    patch.setattr(Collector, "_refused", spread)


def result_told_twice(patch: Patch) -> None:
    """A Generate ends twice."""
    finish = Programs.finish

    def doubled(self: Programs, seq: Sequence, value: I32) -> None:
        if isinstance(self.news[-1], m.Done):
            self.news.append(self.news[-1])
        finish(self, seq, value)

    patch.setattr(Programs, "finish", doubled)


def late_tokens_count(patch: Patch) -> None:
    """What arrives for an op that is over is taken for its successor's."""
    collect = Collector.collect

    def careless(self: Collector, notes: Notes, samples: Any, step: int) -> None:
        notes.turns[:] = [seq.turn for seq in notes.drawn]
        collect(self, notes, samples, step)

    patch.setattr(Collector, "collect", careless)


def garbage_is_kept(patch: Patch) -> None:
    """After a device error the cache is trusted."""
    crash = EngineCore._crash

    def trusting(self: EngineCore, batch: Any, error: Exception) -> None:
        self.cache.flush = lambda: 0  # type: ignore[method-assign]
        crash(self, batch, error)
        del self.cache.flush

    patch.setattr(EngineCore, "_crash", trusting)


def noise_of_the_batch(patch: Patch) -> None:
    """A draw's noise depends on its place among others."""
    draws = Parameters.draws

    def mixed(self: Parameters, *arguments: Any) -> Draws:
        made = draws(self, *arguments)
        made.seeds[:] += np.arange(len(made.seeds), dtype=np.uint64)
        return made

    patch.setattr(Parameters, "draws", mixed)


def parameters_of_the_row(patch: Patch) -> None:
    """A row keeps the parameters of the op that had it before."""
    hold = Parameters.hold

    def kept(self: Parameters, row: int, task: Generating) -> None:
        if self.tasks[row] is None:
            hold(self, row, task)
        self.tasks[row] = task

    patch.setattr(Parameters, "hold", kept)


def edits_forgotten(patch: Patch) -> None:
    """Bias, penalties and least lengths are dropped."""
    patch.setattr(Draft, "_edit", lambda self, r, seq, task, ahead: None)


def masks_forgotten(patch: Patch) -> None:
    """Nothing is forbidden by a grammar."""
    masks = Notes.masks

    def free(self: Notes, *arguments: Any) -> Masks:
        found = masks(self, *arguments)
        return Masks(history=found.history)

    patch.setattr(Notes, "masks", free)


def join_in_any_order(patch: Patch) -> None:
    """A join takes its branches from behind."""
    tokens_of = joins.tokens_of

    def backwards(seq: Sequence, op: m.Join, *rest: Any) -> Any:
        return tokens_of(seq, with_fields(op, branches=op.branches[::-1]), *rest)

    patch.setattr(joins, "tokens_of", backwards)


Seed = Callable[[Patch], None]
TABLE: dict[str, tuple[str, Seed]] = {
    "a slot is freed twice": ("tiny pool", slot_freed_twice),
    "a slot has two owners": ("tiny pool", slot_of_two_owners),
    "a slot is never freed": ("cancel storms", slot_never_freed),
    "a reference is not dropped": ("retraction and eviction", reference_not_dropped),
    "an eviction ignores locks": ("tiny pool", eviction_ignores_locks),
    "a split loses the count of its holders": ("shared prefixes", split_loses_count),
    "a cached prefix is used across namespaces": ("plain", shared_between_namespaces),
    "a row is not rewritten": ("plain", stale_row),
    "a fork takes private slots": ("plain", fork_of_private_slots),
    "the KV of a loser is kept": ("plain", loser_kept),
    "a retraction forgets draws in the air": ("retraction and eviction", retraction_forgets_flights),
    "a retraction forgets text": ("no overlap, retraction", retraction_forgets_text),
    "a retracted sequence is not queued": ("retraction and eviction", sleeper),
    "a lease never ends": ("short leases", lease_without_end),
    "a lease is of nobody": ("short leases", lease_of_nobody),
    "a terminal event is missing": ("aborts and flushes", end_untold),
    "a terminal event comes twice": ("plain", end_told_twice),
    "an aborted program stays": ("cancel storms", end_keeps_rows),
    "an abort matches a prefix": ("cancel storms", abort_by_prefix),
    "a cut takes its neighbours": ("branches cut", cut_of_neighbours),
    "a failure spreads": ("broken grammars", failure_spreads),
    "a result is told twice": ("plain", result_told_twice),
    "late tokens count": ("plain", late_tokens_count),
    "garbage of a failed batch is kept": ("device faults", garbage_is_kept),
    "noise depends on the batch": ("plain", noise_of_the_batch),
    "parameters stay with the row": ("plain", parameters_of_the_row),
    "bias and penalties are forgotten": ("plain", edits_forgotten),
    "masks are forgotten": ("grammars", masks_forgotten),
    "joins take any order": ("plain", join_in_any_order),
    **BESIDE,
}
