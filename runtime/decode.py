"""The steady case: sequences that want exactly one token after the last, all at once.

In: seated sequences in mid-op. Out: one segment, one slot and one draw for each, by a few array operations over all of
them. It decides nothing: the batch is the one that the scheduler would have made of them one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ramet.runtime.cache import Cache
from ramet.runtime.draft import Draft
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
        seq.computed += 1
        seq.fresh += 1
        seq.flying += 1
        seq.program.computed += 1
