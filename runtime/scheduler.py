"""Plans one batch per step under a token budget, and says who holds KV meanwhile.

In: sequences that want work (from `Programs`). Out: `plan() → Batch`, `masks(batch) → Masks`. It knows no phases: a
sequence has tokens known and tokens computed, a step computes some of the difference. Running sequences go first,
then waiting ones in admission order. When memory runs out it evicts what nobody holds, then revokes leases, then
retracts the youngest sequence; the oldest one is never retracted for another, so one sequence can always finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ramet.runtime import admission
from ramet.runtime.batch import I32, Batch, Masks
from ramet.runtime.cache import Cache
from ramet.runtime.config import Limits
from ramet.runtime.draft import EMPTY, Draft, Notes, Score
from ramet.runtime.sequence import NO_SLOTS, Choosing, Generating, Sequence

LOOKAHEAD = 64  # waiting sequences that one plan looks at
AGE_BONUS = 16.0  # programs that a wholly cached prompt may overtake
TINY = 4  # an op of so few tokens goes first


class Scheduler:
    """Decides what the next step computes. Public: `wake`, `plan`, `masks`, `rest`, `park`, `leave`."""

    def __init__(self, cache: Cache, limits: Limits, eos: tuple[int, ...], clock: Callable[[], float]) -> None:
        self.cache = cache
        self.limits = limits
        self.clock = clock
        self.lengths = admission.Lengths()
        self.running: dict[Sequence, None] = {}  # seated, oldest first once planned
        self.waiting: dict[Sequence, None] = {}  # want work, have no row
        self.resting: dict[Sequence, None] = {}  # want nothing, hold a lease; coldest first
        self.served: dict[str, int] = {}  # tokens computed per namespace, for fairness
        self.steps = 0
        self.computed = 0
        self.retractions = 0
        self._eos = np.array(eos, np.int32)

    # -- who is where

    def wake(self, seq: Sequence) -> None:
        """The sequence may want work: queue it unless it is seated."""
        over = seq.closed or seq.failed is not None
        if seq.row is None and not over and seq not in self.waiting and seq.wants_work():
            self.resting.pop(seq, None)
            seq.since = self.clock()
            self.waiting[seq] = None

    def rest(self, seq: Sequence) -> None:
        """It wants nothing now (Python or a tool runs): it keeps a lease on its prefix, not its row."""
        self.running.pop(seq, None)
        self.waiting.pop(seq, None)
        self.cache.rest(seq)
        if seq.node is not None and seq not in self.resting:
            seq.since = self.clock()
            self.resting[seq] = None

    def leave(self, seq: Sequence) -> None:
        """It is done, failed or aborted: what it computed stays as long as nobody needs the room."""
        self._forget(seq)
        self.cache.park(seq)

    def discard(self, seq: Sequence) -> None:
        """Its KV cannot be trusted; if it still wants work it begins anew."""
        self._forget(seq)
        self.cache.discard(seq)
        if seq.task is not None:
            seq.task.launched = False
        self.wake(seq)

    def _forget(self, seq: Sequence) -> None:
        for group in (self.running, self.waiting, self.resting):
            group.pop(seq, None)
        if isinstance(seq.task, Choosing):
            self.cache.drop_trie(seq.task)

    # -- the plan

    def plan(self) -> Batch | None:
        """The next batch, or None. Prompt tokens that it computes are in the tree when it returns (insert at
        launch)."""
        draft = Draft(self.steps, self.limits.batch_tokens)
        self._expire()
        for seq in [s for s in self.running if s.task is None and not s.wants_work()]:
            self.rest(seq)
        ready = sorted((seq for seq in self.running if seq.wants_work()), key=_age)
        decoding = [seq for seq in ready if _sampling(seq)]
        for seq in [*decoding, *ready]:
            if seq in self.running and seq not in draft.members:  # not retracted meanwhile for an older one
                self._schedule(seq, draft)
        self._admit(draft)
        batch = draft.launch()
        if batch is not None:
            self.steps += 1
            self._account(batch, draft.notes)
        return batch

    def _account(self, batch: Batch, notes: Notes) -> None:
        self.computed += len(batch)
        for seq in notes.members:
            seq.program.steps += seq.program.last_step != batch.step
            seq.program.last_step = batch.step

    def _schedule(self, seq: Sequence, draft: Draft) -> bool:
        """Add what this step computes for a seated sequence; False when it got nothing."""
        row = self._follow(seq, draft)
        goal = seq.goal()
        todo = min(goal - seq.computed, max(draft.left, 0), self.limits.chunk_tokens)
        if row is None and (todo <= 0 or self._awaits(seq, draft)):
            return False
        trie = seq.task.size if isinstance(seq.task, Choosing) and seq.computed + todo == goal else 0
        if trie and draft.count and todo + trie > draft.left:
            self._step_back(seq)
            return False
        slots = self._reserve(todo + trie, seq, draft)
        if slots is None:
            self._step_back(seq)
            return False
        if row is None:
            row = self._compute(seq, slots[:todo], draft)
        self._note(seq, draft)
        if seq.computed == goal and seq.task is not None and not _sampling(seq):
            seq.task.computed = min(seq.fresh, seq.task.prompt)
        if seq.computed == goal and isinstance(seq.task, Generating):
            draft.draw(seq, seq.task, row, self._banned(seq, seq.task))
            seq.flying += 1
        elif seq.computed == goal and isinstance(seq.task, Choosing):
            self._score(seq, seq.task, row, slots[todo:], draft)
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
        return (seq.node, self._next(seq)) in draft.frontier

    def _follow(self, seq: Sequence, draft: Draft) -> int | None:
        """Move along what others have computed. The batch's row with its last token's logits, if another member
        computes that very token in this step: then nothing is left to do but to sample."""
        if seq.flying or seq.computed != seq.depth or seq.node is None:
            return None
        self.cache.advance(seq, seq.known - 1)
        if seq.task is None or seq.computed != seq.known - 1 or seq.task.launched:
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
        first = draft.segment(tokens, start, slots, self.cache.rows.table[seq.row, : start + count].copy())
        if known < count:
            draft.feed(first + known, seq.row)
        seq.fresh += count
        last = first + count - 1
        decode = count == 1 and isinstance(seq.task, Generating) and seq.task.made > 0
        if settled and not decode:
            self._publish(seq, last, draft)
        floor = min(self.served.values(), default=0)
        self.served[seq.program.namespace] = self.served.get(seq.program.namespace, floor) + count
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

    def _note(self, seq: Sequence, draft: Draft) -> None:
        draft.join(seq)
        if seq.task is not None and seq.task.began < 0 and not seq.task.launched:
            seq.task.began = self.clock()
            seq.task.first_step = draft.step

    def _banned(self, seq: Sequence, task: Generating) -> I32:
        if task.made + seq.flying >= task.op.sampling.min_tokens:
            return EMPTY
        stops = np.array(task.op.sampling.stop_token_ids, np.int32)
        return np.concatenate([self._eos, stops])

    # -- choices

    def _score(self, seq: Sequence, task: Choosing, row: int, slots: I32, draft: Draft) -> None:
        """Add the trie's segments and targets; `slots` for its inner nodes, then for those of the unconditional
        scores."""
        assert seq.row is not None, "scheduled sequences are seated"
        inner = len(task.trie.inner)
        task.slots, task.extra = slots[:inner], slots[inner:]
        prompt = self.cache.rows.table[seq.row, : seq.computed]
        before = draft.count
        first = self._trie(task, task.slots, prompt, row, draft)
        if task.op.context:
            bare = task.extra[: len(task.op.context)]
            context = draft.segment(np.array(task.op.context, np.int32), 0, bare, bare) + len(bare) - 1
            self._trie(task, task.extra[len(bare) :], bare, context, draft)
        seq.program.computed += draft.count - before
        task.launched = True
        draft.notes.scores.append(Score(seq, seq.turn, task, first))

    def _trie(self, task: Choosing, slots: I32, prompt: I32, row: int, draft: Draft) -> int:
        trie = task.trie
        slot = dict(zip(trie.inner, slots.tolist(), strict=True))
        at = {-1: row}
        for chain in trie.chains():
            above = [slot[node] for node in trie.ancestors(chain[0])]
            own = np.array([slot[node] for node in chain], np.int32)
            kv = np.concatenate([prompt, np.array(above, np.int32), own])
            tokens = np.array([trie.tokens[node] for node in chain], np.int32)
            first = draft.segment(tokens, len(prompt) + len(above), own, kv)
            at.update({node: first + i for i, node in enumerate(chain)})
        return draft.targets([at[parent] for parent in trie.parents], trie.tokens)

    # -- memory

    def _reserve(self, count: int, seq: Sequence, draft: Draft) -> I32 | None:
        """Slots for a sequence's next tokens: by eviction, then by revoking leases, then by retracting younger
        sequences."""
        if not count:
            return NO_SLOTS
        after = -1
        if seq.row is not None and seq.computed:
            after = int(self.cache.rows.table[seq.row, seq.computed - 1])
        while True:
            slots = self.cache.take(count, after)
            if slots is not None:
                return slots
            if not self._revoke() and not self._retract(seq, draft):
                return None

    def _revoke(self) -> bool:
        """Take back one lease: of the sequence that rests longest, else of the youngest that waits. False when there
        is none."""
        seq = next(iter(self.resting), None)
        if seq is None:
            seq = max((s for s in self.waiting if s.node is not None), key=_age, default=None)
        if seq is None:
            return False
        self.resting.pop(seq, None)
        self.cache.park(seq)
        return True

    def _expire(self) -> None:
        now = self.clock()
        while self.resting:
            seq = next(iter(self.resting))
            if now - seq.since <= self.limits.lease_seconds:
                return
            self._revoke()

    def _retract(self, needy: Sequence, draft: Draft) -> bool:
        """Send the youngest sequence that is not part of this step, and younger than `needy`, back to the queue."""
        held = (s for s in self.running if s not in draft.members and s is not needy and not _busy(s))
        victim = max(held, key=_age, default=None)
        if victim is None or _age(victim) < _age(needy):
            return False
        self.retract(victim)
        return True

    def retract(self, seq: Sequence) -> None:
        """Take a sequence's row and lock; what it computed is the first to be evicted. It loses time, nothing else."""
        self.retractions += 1
        self._forget(seq)
        self.cache.park(seq, cold=True)
        self.wake(seq)

    # -- admission

    def _admit(self, draft: Draft) -> None:
        """Seat waiting sequences, best first, while rows, budget and the peak of their footprints allow."""
        for seq in self._candidates():
            if draft.left <= 0:
                return
            if seq.flying:
                continue
            if not self.cache.seat(seq):
                return
            if self.running and not self._fits(seq):
                self.cache.park(seq)
                return
            del self.waiting[seq]
            self.running[seq] = None
            if not self._schedule(seq, draft) and not draft.count:
                self.running.pop(seq)
                self.cache.park(seq)
                self.waiting[seq] = None
                return

    def _candidates(self) -> list[Sequence]:
        """Waiting sequences in admission order: by priority; namespaces in turn, the least served first; inside a
        namespace calls before mere prefill, programs that run already, tiny ops, then age (so that children of one
        fork stand together), where a cached prefix makes a sequence older. Those that want nothing any more go to
        rest."""
        for seq in [s for s in self.waiting if not s.wants_work() and not s.flying]:
            self.rest(seq)
        groups: dict[tuple[int, str], list[Sequence]] = {}
        for seq in self.waiting:
            groups.setdefault((-seq.program.priority, seq.program.namespace), []).append(seq)
        for group in groups.values():
            group.sort(key=_rank)
            if len({seq.program.id for seq in group[:LOOKAHEAD]}) > 1:
                group[:LOOKAHEAD] = sorted(group[:LOOKAHEAD], key=self._rank_cached)
        turns = sorted(groups, key=lambda key: (key[0], self.served.get(key[1], 0)))
        return admission.interleave([(key[0], groups[key]) for key in turns], LOOKAHEAD)

    def _rank_cached(self, seq: Sequence) -> tuple[object, ...]:
        cached = seq.depth
        if seq.node is None:
            root = self.cache.tree.root(seq.program.namespace)
            cached = self.cache.tree.match(root, seq.tokens(0, seq.known))[1]
        bonus = AGE_BONUS * cached / max(seq.known, 1)
        return (*_rank(seq)[:3], seq.program.order - bonus, seq.order)

    def _fits(self, newcomer: Sequence) -> bool:
        seats: Iterable[Sequence] = [*self.running, newcomer]
        pairs = [(max(seq.length - seq.depth, 0), self._left(seq)) for seq in seats]
        held = np.array([pair[0] for pair in pairs], np.int64)
        left = np.array([pair[1] for pair in pairs], np.int64)
        return self.cache.tree.locked + admission.peak(held, left) <= self.cache.capacity

    def _left(self, seq: Sequence) -> int:
        """Tokens that the sequence's op will still add, as far as one can tell."""
        task = seq.task
        if isinstance(task, Choosing):
            return len(task.trie.tokens)
        if task is None:
            return 0
        made = task.made + seq.flying
        if task.op.sampling.max_tokens is not None:
            return max(task.limit - made, 0)
        return max(min(task.limit, max(self.lengths.typical(), made + 16)) - made, 0)

    # -- sampling

    def masks(self, batch: Batch) -> Masks:
        """What sampling needs and only the collected previous step could tell: the histories that penalties look at."""
        notes: Notes = batch.owner
        history = []
        for r, draw in enumerate(notes.draws):
            s = draw.task.op.sampling
            if (
                s.frequency_penalty or s.presence_penalty or s.repetition_penalty != 1.0
            ) and draw.turn == draw.seq.turn:
                tokens = draw.seq.buffer[: draw.position].copy()
                history.append((r, tokens, draw.position - draw.task.start))
        return Masks(history=tuple(history))


def _age(seq: Sequence) -> tuple[int, int]:
    return (seq.program.order, seq.order)


def _rank(seq: Sequence) -> tuple[object, ...]:
    return (seq.task is None, not seq.program.steps, not _tiny(seq), *_age(seq))


def _tiny(seq: Sequence) -> bool:
    task = seq.task
    return isinstance(task, Choosing) or (isinstance(task, Generating) and task.limit <= TINY)


def _sampling(seq: Sequence) -> bool:
    """It has sampled, or is sampling, a token of its op: its prompt is behind it."""
    return bool(seq.flying) or (isinstance(seq.task, Generating) and seq.task.made > 0)


def _busy(seq: Sequence) -> bool:
    return isinstance(seq.task, Choosing) and seq.task.launched
