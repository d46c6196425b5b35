"""Plans one batch per step under a token budget, and says who holds KV meanwhile.

In: sequences that want work (from `Programs`). Out: `plan() → Batch`, `masks(batch) → Masks`. It knows no phases: a
sequence has tokens known and tokens computed, a step computes some of the difference. Running sequences go first,
then waiting ones in admission order. When memory runs out it evicts what nobody holds, then revokes leases, then
retracts the youngest sequence; the oldest one is never retracted for another, so one sequence can always finish.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import numpy as np

from ramet.runtime import admission, asking, decode, scoring
from ramet.runtime.batch import I32, Batch, Masks
from ramet.runtime.cache import Cache
from ramet.runtime.config import Limits
from ramet.runtime.draft import Draft, Notes
from ramet.runtime.parameters import Parameters
from ramet.runtime.sequence import NO_SLOTS, Choosing, Generating, Scoring, Sequence
from ramet.runtime.waiting import Waiting

FEW = 3  # so many decoding sequences are planned together rather than one by one
_AGE = attrgetter("age")


class Scheduler:
    """Decides what the next step computes. Public: `wake`, `plan`, `masks`, `rest`, `park`, `leave`."""

    def __init__(
        self, cache: Cache, limits: Limits, eos: tuple[int, ...], clock: Callable[[], float], *, vocab: int = 0
    ) -> None:
        self.cache = cache
        self.vocab = vocab  # of the logits, for masks
        self.limits = limits
        self.clock = clock
        self.lengths = admission.Lengths()
        self.running: dict[Sequence, None] = {}  # seated, oldest first once planned
        self.waiting = Waiting(cache.tree)  # want work, have no row
        self.resting: dict[Sequence, None] = {}  # want nothing, hold a lease; coldest first
        self.served: dict[str, int] = {}  # tokens computed per namespace, for fairness
        self.steps = 0
        self.computed = 0
        self.retractions = 0
        self.eos = eos
        self.parameters = Parameters(len(cache.rows.table))
        self._oldest_first: list[Sequence] | None = []  # `running` in order; None: to be sorted
        self._sated: dict[Sequence, None] = {}  # waiting, and want nothing any more

    # -- who is where

    def wake(self, seq: Sequence) -> None:
        """The sequence may want work: queue it unless it is seated."""
        over = seq.closed or seq.failed is not None
        if seq in self.waiting:
            self.waiting.update(seq)
            if not seq.wants_work():
                self._sated[seq] = None
        elif seq.row is None and not over and seq.wants_work():
            self.resting.pop(seq, None)
            seq.since = self.clock()
            self.waiting.add(seq)

    def rest(self, seq: Sequence) -> None:
        """It wants nothing now (Python or a tool runs): it keeps a lease on its prefix, not its row."""
        self._unseat(seq)
        self.waiting.discard(seq)
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
        if isinstance(seq.task, Choosing):
            seq.task.launched = False
        self.wake(seq)

    def _forget(self, seq: Sequence) -> None:
        self._unseat(seq)
        self.waiting.discard(seq)
        self.resting.pop(seq, None)
        self.cache.drop(seq)

    def _seat(self, seq: Sequence) -> None:
        self.waiting.discard(seq)
        self.running[seq] = None
        self._oldest_first = None

    def _unseat(self, seq: Sequence) -> None:
        if seq in self.running:
            del self.running[seq]
            self._oldest_first = None

    # -- the plan

    def plan(self) -> Batch | None:
        """The next batch, or None. Prompt tokens that it computes are in the tree when it returns (insert at
        launch)."""
        draft = Draft(self.steps, self.limits.batch_tokens, self.parameters)
        self._expire()
        decoding, others = self._ready()
        self._decode(decoding, draft)
        if len(draft.members) < len(decoding):  # who got nothing tries again in its turn
            others = sorted([*(seq for seq in decoding if seq not in draft.members), *others], key=_AGE)
        for seq in others:
            self._try(seq, draft)
        self._admit(draft)
        batch = draft.launch()
        if batch is not None:
            self.steps += 1
            self._account(batch, draft.notes)
        return batch

    def _ready(self) -> tuple[list[Sequence], list[Sequence]]:
        """Seated sequences that want work, oldest first: those that are sampling, and the others. Those that want
        nothing and have no op go to rest."""
        if self._oldest_first is None:
            self._oldest_first = sorted(self.running, key=_AGE)
        decoding: list[Sequence] = []
        others: list[Sequence] = []
        idle = False
        for seq in self._oldest_first:
            task = seq.task
            if isinstance(task, Generating) and task.drawn:
                if task.made + seq.flying < task.limit:
                    decoding.append(seq)
            elif seq.wants_work():
                others.append(seq)
            else:
                idle = idle or task is None
        if idle:
            for seq in [s for s in self.running if s.task is None and not s.wants_work()]:
                self.rest(seq)
        return decoding, others

    def _decode(self, decoding: list[Sequence], draft: Draft) -> None:
        """Runs of sequences that only want their next token go together, as long as nobody has to give way."""
        held = self.parameters.tasks
        run: list[Sequence] = []
        for seq in decoding:
            if decode.is_steady(seq, held):
                run.append(seq)
            else:
                self._together(run, draft)
                self._try(seq, draft)
                run = []
        self._together(run, draft)

    def _together(self, run: list[Sequence], draft: Draft) -> None:
        if len(run) < FEW or len(run) > min(self.cache.slots.free, draft.left):
            for seq in run:
                self._try(seq, draft)
        else:
            decode.advance(run, self.cache, draft, self.parameters.tasks)
            for seq in run:
                self.served[seq.program.namespace] += 1

    def _try(self, seq: Sequence, draft: Draft) -> None:
        if seq in self.running and seq not in draft.members:  # not retracted meanwhile for an older one
            self._schedule(seq, draft)

    def _account(self, batch: Batch, notes: Notes) -> None:
        self.computed += len(batch)
        for seq in notes.members:
            program = seq.program
            if program.last_step != batch.step:
                program.last_step = batch.step
                program.steps += 1
                if program.steps == 1:  # it runs: what waits of it goes before programs that do not
                    for other in program.sequences.values():
                        self.waiting.update(other)

    def _schedule(self, seq: Sequence, draft: Draft) -> bool:
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
        if complete and not seq.is_sampling():
            task.computed = min(seq.fresh, task.prompt)
            if not task.announced:
                draft.notes.begun.append(seq)

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
            seq = max((s for s in self.waiting if s.node is not None), key=_AGE, default=None)
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
        victim = max(held, key=_AGE, default=None)
        if victim is None or victim.age < needy.age:
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
        for seq in self._sated:
            if seq in self.waiting and not seq.wants_work() and not seq.flying:
                self.rest(seq)
        self._sated.clear()
        if not self.waiting or draft.left <= 0 or not self.cache.rows.free:
            return
        footprints, retractions = self._footprints(), self.retractions
        for seq in self.waiting.next(self.served):
            if draft.left <= 0:
                return
            if seq.flying:
                continue
            if not self.cache.seat(seq):
                return
            if self.retractions != retractions:
                footprints, retractions = self._footprints(), self.retractions
            room = self.cache.capacity - self.cache.tree.locked
            if self.running and not footprints.fits(admission.footprint(seq, self.lengths), room):
                self.cache.park(seq)
                return
            self._seat(seq)
            if not self._schedule(seq, draft) and not draft.count:
                self._unseat(seq)
                self.cache.park(seq)
                self.waiting.add(seq)
                return
            footprints.add(admission.footprint(seq, self.lengths))

    def _footprints(self) -> admission.Footprints:
        return admission.Footprints([admission.footprint(seq, self.lengths) for seq in self.running])

    # -- sampling

    def masks(self, batch: Batch) -> Masks:
        """What sampling needs and only the collected previous step could tell."""
        notes: Notes = batch.owner
        return notes.masks(batch.draws.positions, self.vocab, self.eos)


def _busy(seq: Sequence) -> bool:
    return isinstance(seq.task, Choosing) and seq.task.launched
