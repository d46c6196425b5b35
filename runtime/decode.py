"""The steady case: sequences that want exactly one token after the last, all at once.

In: seated sequences in mid-op, or a batch of them alone. Out: one segment, one slot and one draw for each, by a few
array operations over all of them; a batch that follows from the last one. It decides nothing: the batch is the one that
the scheduler would have made of them one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ramet.runtime.batch import Batch, Draws
from ramet.runtime.cache import Cache
from ramet.runtime.draft import Draft, Notes, joined
from ramet.runtime.sequence import Generating, Sequence


def is_steady(seq: Sequence, held: list[Generating | None]) -> bool:
    """True when the sequence's next token is all that is missing, nobody else could be computing it, and its row
    (`held`: `Parameters.tasks`) holds its op's parameters. One that starts at the tree's edge has to look there."""
    row = seq.row
    if row is None or seq.known + seq.flying - seq.computed != 1:
        return False
    task = held[row]
    if task is None or task is not seq.task or task.guess:
        return False
    return bool(seq.flying) or seq.computed != seq.depth


def runs(decoding: Iterable[Sequence], held: list[Generating | None]) -> Iterator[tuple[bool, list[Sequence]]]:
    """`decoding` in order, cut into runs of steady sequences (True); one that is not stands alone (False). Whether a
    sequence is steady is asked when its turn comes: what was done with those before it may have changed that."""
    run: list[Sequence] = []
    for seq in decoding:
        if is_steady(seq, held):
            run.append(seq)
            continue
        if run:
            yield True, run
            run = []
        yield False, [seq]
    if run:
        yield True, run


def advance(run: list[Sequence], cache: Cache, draft: Draft, held: list[Generating | None]) -> None:
    """Compute and draw one token for each of `run`, all steady, for whom there are slots and budget."""
    count, table = len(run), cache.rows.table
    seats = [seq.row for seq in run if seq.row is not None]  # all are seated
    tasks = [task for seat in seats if (task := held[seat]) is not None]
    rows = np.array(seats, np.int32)
    starts = np.array([seq.computed for seq in run], np.int32)
    slots = cache.slots.follow(table[rows, starts - 1])
    table[rows, starts] = slots
    kv = [table[seat, :end] for seat, end in zip(seats, (starts + 1).tolist(), strict=True)]
    tokens = np.full(count, -1, np.int32)
    flying = np.array([seq.flying for seq in run], np.bool_)
    first = draft.singles(tokens, starts, slots, kv)
    indices = np.arange(first, first + count, dtype=np.int32)
    if flying.all():
        draft.feed_all(indices, rows)
    else:
        draft.feed_all(indices[flying], rows[flying])
        for i in np.flatnonzero(~flying).tolist():
            tokens[i] = run[i].buffer[run[i].computed]
    draft.members.update(run)
    draft.notes.members += run
    draft.draw_all(run, tasks, indices, rows, starts + 1)
    for seq in run:
        _advance(seq)


class Steady:
    """A batch that decodes and does nothing else, one token of each sequence in `order`, all of them fed from the token
    table. As long as nobody comes, goes or ends, the next batch is this one with each position one further."""

    __slots__ = ("_batch", "_held", "_lengths", "_order", "_seats")

    def __init__(self, batch: Batch, order: list[Sequence]) -> None:
        notes: Notes = batch.owner
        self._batch = batch
        self._order = order
        self._held = list(zip(notes.drawn, notes.tasks, strict=True))
        self._seats = batch.feed_rows.tolist()
        self._lengths = batch.draws.positions.tolist()  # with the token that is drawn next

    @staticmethod
    def fits(batch: Batch, order: list[Sequence]) -> bool:
        """True for a batch of which `order` are all members, with nothing in it that is asked for once only."""
        notes: Notes = batch.owner
        count = len(batch.feed)
        return (
            count == len(batch) == batch.segments == len(batch.draws) == len(notes.members) == len(order)
            and not (notes.begun or notes.constrained or notes.trials or notes.spans)
            and not (batch.draws.bias or len(batch.targets))
            and np.array_equal(batch.feed_rows, batch.draws.into)
        )

    def next(self, step: int, order: list[Sequence], cache: Cache) -> Batch | None:
        """The batch of the next step, its slots taken; None, and nothing taken, when it does not follow."""
        if order is not self._order or len(self._held) > cache.slots.free:
            return None
        for seq, task in self._held:
            if seq.task is not task or seq.flying != 1 or task.made + 1 >= task.limit:
                return None
        # lists: for a few sequences they are faster than operations of numpy
        last, table = self._batch, cache.rows.table
        slots = cache.slots.follow(last.slots)
        ends, kv, end = [0], [], 0
        for at, (seat, slot) in enumerate(zip(self._seats, slots.tolist(), strict=True)):
            self._lengths[at] = length = self._lengths[at] + 1
            table[seat, length - 1] = slot
            kv.append(table[seat, :length])
            end += length
            ends.append(end)
        lengths = np.array(self._lengths, np.int32)
        draws = Draws(last.draws.rows, last.draws.into, lengths.astype(np.int64), last.draws.words)
        self._batch = Batch(
            step=step,
            tokens=last.tokens,
            positions=np.array([length - 1 for length in self._lengths], np.int32),
            slots=slots,
            qo_indptr=last.qo_indptr,
            kv_indptr=np.array(ends, np.int32),
            kv_indices=joined(kv, end),
            feed=last.feed,
            feed_rows=last.feed_rows,
            draws=draws,
            targets=last.targets,
            owner=last.owner,
        )
        for seq, _ in self._held:
            _advance(seq)
        return self._batch


def _advance(seq: Sequence) -> None:
    seq.computed += 1
    seq.fresh += 1
    seq.flying += 1
    seq.program.computed += 1
