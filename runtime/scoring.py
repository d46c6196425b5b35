"""What a step scores: the edges of a token trie for a Choose, the sequence's own tokens for a Score.

In: a sequence whose tokens a draft computes. Out: the draft's targets, and notes that say whose they are.
"""

from __future__ import annotations

import numpy as np

from ramet.runtime.batch import I32
from ramet.runtime.draft import Draft, Span, Trial
from ramet.runtime.sequence import Choosing, Scoring, Sequence


def add_trial(seq: Sequence, task: Choosing, row: int, prompt: I32, slots: I32, draft: Draft) -> None:
    """Add a trie's segments and targets below the slots `prompt`, whose last token is the batch's `row`; `slots` for
    its inner nodes, then for those of the unconditional scores."""
    inner = len(task.trie.inner)
    task.slots, task.extra = slots[:inner], slots[inner:]
    before = draft.count
    first = draft.trie(task.trie, task.slots, prompt, row)
    if task.op.context:
        bare = task.extra[: len(task.op.context)]
        context = draft.segment(np.array(task.op.context, np.int32), 0, bare, bare) + len(bare) - 1
        draft.trie(task.trie, task.extra[len(bare) :], bare, context)
    task.beside = draft.count - before
    seq.program.computed += task.beside
    task.launched = True
    draft.notes.trials.append(Trial(seq, seq.turn, task, first))


def allowed(task: Scoring, computed: int, count: int, draft: Draft) -> int:
    """How many of the next `count` tokens after `computed` this step may compute: what is only prefix costs no
    logits."""
    return min(count, max(task.at - computed, 0) + draft.scorable)


def add_span(seq: Sequence, task: Scoring, row: int, count: int, draft: Draft) -> None:
    """The last `count` computed tokens of the sequence end with the batch's `row`: score what follows those of them
    that the Score asks about."""
    begin = max(task.at, seq.computed - count)
    if begin >= seq.computed:
        return
    task.at = seq.computed
    task.launched = task.at == task.end
    any_asked = task.end < task.prompt and task.op.start < task.prompt
    asked = seq.tokens(begin + 1, task.at + 1) if any_asked else seq.tokens(0, 0)
    rows = range(row - (seq.computed - 1 - begin), row + 1) if len(asked) else range(0)
    first = draft.targets(list(rows), asked.tolist(), task.op.top)
    draft.scorable -= len(asked)
    draft.notes.spans.append(Span(seq, seq.turn, task, first, begin + 1, len(asked), task.launched))
