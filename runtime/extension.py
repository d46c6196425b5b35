"""What one sequence computes in a step: how far it goes, and what it asks of the logits.

In: a seated sequence, the step's draft. Out: its segment in the draft, its new slots, and the tree's new prefix. It
follows what others have computed, or compute in this very step, before it computes anything itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ramet.runtime import asking, scoring
from ramet.runtime.batch import I32
from ramet.runtime.cache import Cache
from ramet.runtime.config import Limits
from ramet.runtime.draft import Draft
from ramet.runtime.sequence import Generating, Scoring, Sequence

Reserve = Callable[[int, Sequence, Draft], "I32 | None"]


class Extension:
    """Extends sequences. `served` counts tokens by namespace; `reserve` finds slots for a sequence, or None."""

    def __init__(
        self, cache: Cache, limits: Limits, clock: Callable[[], float], served: dict[str, int], reserve: Reserve
    ) -> None:
        self.cache = cache
        self.limits = limits
        self.clock = clock
        self.served = served
        self._reserve = reserve

    def schedule(self, seq: Sequence, draft: Draft) -> bool:
        """Add what this step computes for a seated sequence; False when it got nothing."""
        row = self._follow(seq, draft)
        goal = seq.goal()
        todo = min(goal - seq.computed, max(draft.left, 0), self.limits.chunk_tokens)
        if isinstance(seq.task, Scoring):
            todo = scoring.allowed(seq.task, seq.computed, todo, draft)
        if row is None and (todo <= 0 or self._awaits(seq, draft)):
            return False
        extra = asking.extra(seq, todo, row, draft) if seq.computed + todo == goal else 0
        if extra and draft.count and todo + extra > draft.left:
            self._step_back(seq)
            return False
        slots = self._reserve(todo + extra, seq, draft)
        if slots is None:
            self._step_back(seq)
            return False
        if row is None:
            row = self._compute(seq, slots[:todo], draft)
        complete = seq.computed == goal
        self._note(seq, draft, complete=complete)
        asking.ask(seq, row, slots, todo, draft, self.cache, complete=complete)
        return True

    def _step_back(self, seq: Sequence) -> None:
        """It got nothing in this step: if it shared another's last token, it lets go of it, to ask for its logits
        again."""
        if seq.computed == seq.known == seq.depth:
            self.cache.settle(seq, seq.known - 1)

    def _next(self, seq: Sequence) -> int:
        return int(seq.buffer[seq.computed]) if seq.computed < seq.known else -1

    def _awaits(self, seq: Sequence, draft: Draft) -> bool:
        """True when another member is about to compute its very next token, a step later: then it waits for that."""
        if seq.node is None or seq.flying or seq.computed != seq.depth:
            return False
        if isinstance(seq.task, Scoring) and seq.computed >= seq.task.at:
            return False  # it wants the logits itself
        return (seq.node, self._next(seq)) in draft.frontier

    def _follow(self, seq: Sequence, draft: Draft) -> int | None:
        """Move along what others have computed. The batch's row with its last token's logits, if another member
        computes that very token in this step: then nothing is left to do but to sample."""
        if isinstance(seq.task, Scoring):
            self.cache.settle(seq, seq.computed)  # its last chunk: what the tree had meanwhile, or before, is freed
        if seq.flying or seq.computed != seq.depth or seq.node is None:
            return None
        self.cache.advance(seq, seq.reach())
        if seq.task is None or isinstance(seq.task, Scoring) or seq.computed != seq.known - 1 or seq.task.launched:
            return None
        child = seq.node.children.get(int(seq.buffer[seq.computed]))
        if child is None:
            return None
        row = draft.ends.get(child) if child.depth == seq.known else None
        if row is not None:
            self.cache.advance(seq, seq.known)
        return row

    def _compute(self, seq: Sequence, slots: I32, draft: Draft) -> int:
        """The segment for the next len(slots) tokens; the index of its last token in the batch."""
        assert seq.row is not None, "scheduled sequences are seated"
        start, count = seq.computed, len(slots)
        settled = start == seq.depth and not seq.flying
        tokens = np.full(count, -1, np.int32)
        known = min(count, seq.known - start)
        tokens[:known] = seq.buffer[start : start + known]
        self.cache.extend(seq, slots)
        first = draft.segment(tokens, start, slots, self.cache.rows.table[seq.row, : start + count])
        if known < count:
            draft.feed(first + known, seq.row)
        seq.fresh += count
        seq.again += max(min(seq.lost, start + count) - start, 0)
        last = first + count - 1
        next_one = count == 1 and isinstance(seq.task, Generating) and seq.task.drawn
        if settled and not next_one:
            self._publish(seq, last, draft)
        namespace = seq.program.namespace
        if namespace not in self.served:
            self.served[namespace] = min(self.served.values(), default=0)
        self.served[namespace] += count
        seq.program.computed += count
        return last

    def _publish(self, seq: Sequence, last: int, draft: Draft) -> None:
        if self.cache.publish(seq):
            assert seq.node is not None, "published"
            draft.published(seq.node, last, self._next(seq) if seq.computed < seq.goal() else None)
        else:  # its last prompt token was in the tree, and is computed again for its logits: once for all who want them
            assert seq.node is not None, "seated"
            node, matched = self.cache.tree.match(seq.node, seq.tokens(seq.depth, seq.computed))
            if matched == seq.computed - seq.depth:
                draft.published(node, last, None)

    def _note(self, seq: Sequence, draft: Draft, *, complete: bool) -> None:
        """It takes part; `complete`: with this step all is computed that its op waits for."""
        draft.join(seq)
        task = seq.task
        if task is None:
            return
        if task.began < 0 and not task.launched:
            task.began = self.clock()
            task.first_step = draft.step
        if complete and not task.announced:  # what was told is final, also when it has to begin anew
            task.computed = min(seq.fresh, task.prompt)
            draft.notes.begun.append(seq)
