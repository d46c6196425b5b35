"""What an op wants of the logits of a step, and which KV slots it needs for that beyond its sequence's own.

In: a scheduled sequence, the batch's row of its last token. Out: draws and targets in the step's draft. The tokens of a
token trie, and tokens that a grammar makes likely, are computed along, behind the sequence's last token; who guessed
right has saved a step each, and the results are those of sampling one by one.
"""

from __future__ import annotations

import numpy as np

from ramet.runtime import scoring
from ramet.runtime.batch import I32
from ramet.runtime.cache import Cache
from ramet.runtime.draft import Draft
from ramet.runtime.sequence import Choosing, Generating, Scoring, Sequence


def extra(seq: Sequence, todo: int, row: int | None, draft: Draft) -> int:
    """Slots that the op of a sequence needs beyond the `todo` tokens that complete it; `row` where the batch computes
    its last token already."""
    task = seq.task
    if isinstance(task, Choosing):
        return task.size
    if isinstance(task, Generating) and task.guess and row is None:
        return max(min(len(task.guess), draft.left - todo, task.limit - task.made - 1, draft.scorable), 0)
    return 0


def ask(seq: Sequence, row: int, slots: I32, todo: int, draft: Draft, cache: Cache, *, complete: bool) -> None:
    """Ask for what the sequence's op wants of the logits of the `todo` tokens that end with the batch's `row`; `slots`
    beyond the first `todo` are the op's extra ones."""
    task = seq.task
    if isinstance(task, Scoring):
        scoring.add_span(seq, task, row, todo, draft)
    elif complete and isinstance(task, Generating):
        draft.draw(seq, task, row)
        _check(seq, task, slots[todo:], draft, cache)
        seq.flying += 1
        task.drawn = True
    elif complete and isinstance(task, Choosing):
        assert seq.row is not None, "scheduled sequences are seated"
        prompt = cache.rows.table[seq.row, : seq.computed]
        scoring.add_trial(seq, task, row, prompt, slots[todo:], draft)


def _check(seq: Sequence, task: Generating, slots: I32, draft: Draft, cache: Cache) -> None:
    """Compute as many guessed tokens as there are slots for, and draw after each of them."""
    assert seq.row is not None, "scheduled sequences are seated"
    tokens = task.guess = task.guess[: len(slots)]
    task.lent = slots
    if not tokens:
        return
    draft.scorable -= len(tokens)
    task.beside += len(tokens)
    seq.program.computed += len(tokens)
    seq.foresee(tokens)
    kv = np.concatenate((cache.rows.table[seq.row, : seq.computed], slots))
    first = draft.segment(np.array(tokens, np.int32), seq.computed, slots, kv)
    for ahead in range(1, len(tokens) + 1):
        draft.draw(seq, task, first + ahead - 1, ahead)
