"""Plans one batch per step under a token budget, and says who holds KV meanwhile.

In: sequences that want work (from `Programs`). Out: `plan() → Batch`, `masks(batch) → Masks`. It knows no phases: a
sequence has tokens known and tokens computed, a step computes some of the difference. Running sequences go first,
then waiting ones in admission order. When memory runs out it evicts what nobody holds, then revokes leases, then
retracts the youngest sequence; the oldest one is never retracted for another, so one sequence can always finish. Under
the policy "peak" a `Bank` says whom memory is lent to, and leases are taken from younger programs only.
"""

from __future__ import annotations

from collections.abc import Callable

from ramet.runtime import admission, decode
from ramet.runtime.bank import Bank
from ramet.runtime.batch import I32, Batch, Masks
from ramet.runtime.cache import Cache
from ramet.runtime.config import Limits
from ramet.runtime.decode import Steady
from ramet.runtime.draft import Draft, Notes
from ramet.runtime.extension import Extension
from ramet.runtime.footprint import footprint
from ramet.runtime.lack import Lack
from ramet.runtime.leases import Leases, Pace
from ramet.runtime.lengths import Learned
from ramet.runtime.parameters import Parameters
from ramet.runtime.sequence import NO_SLOTS, Generating, Sequence
from ramet.runtime.victims import AGE, Victims
from ramet.runtime.waiting import Waiting

FEW = 3  # so many decoding sequences are planned together rather than one by one


class Scheduler:
    """Decides what the next step computes. Public: `plan`, `masks`; of a sequence `arrive`, `wake`, `rest`, `leave`."""

    def __init__(
        self, cache: Cache, limits: Limits, eos: tuple[int, ...], clock: Callable[[], float], *, vocab: int = 0
    ) -> None:
        self.cache = cache
        self.vocab = vocab  # of the logits, for masks
        self.limits = limits
        self.clock = clock
        self.learned = Learned()
        self.aware = limits.policy != "lru-fcfs"  # of programs
        self.bank = Bank(cache, self.learned) if limits.policy == "peak" else None
        self.running: dict[Sequence, None] = {}  # seated, oldest first once planned
        self.waiting = Waiting(cache.tree, aware=self.aware)  # want work, have no row
        self.leases = Leases(limits.lease_seconds, clock)
        self.resting = self.leases.resting  # want nothing, hold a lease; coldest first
        self._victims = Victims(self.running, self.waiting, self.leases, self.bank)
        self.patience: float | None = None  # seconds after which to plan again, if nothing else happens before
        self.served: dict[str, int] = {}  # tokens computed per namespace, for fairness
        self.extension = Extension(cache, limits, clock, self.served, self._reserve)
        self.steps = 0
        self.computed = 0
        self.retractions = 0
        self.revocations = 0  # leases taken back
        self.lack = Lack()
        self.eos = eos
        self.parameters = Parameters(len(cache.rows.table))
        self._oldest_first: list[Sequence] | None = []  # `running` in order; None: to be sorted
        self._steady: Steady | None = None  # the last batch, if the next one may follow from it
        self._sated: dict[Sequence, None] = {}  # waiting, and want nothing any more
        self._pace = Pace()
        self._idle_since: float | None = None
        self._calls = 0
        self._seats = admission.Footprints([])

    # -- who is where

    def arrive(self, seq: Sequence) -> None:
        """A call of the sequence is about to begin. Where nothing is known of programs it has lost its place and its
        lock with the last one, and is as old as its call."""
        if not self.aware:
            self._calls += 1
            self._forget(seq)
            seq.lose()
            self.cache.park(seq)
            seq.age = (self._calls, seq.order)

    def wake(self, seq: Sequence) -> None:
        """The sequence may want work: queue it unless it is seated."""
        over = seq.closed or seq.failed is not None
        if seq in self.waiting:
            self.waiting.update(seq)
            if not seq.wants_work():
                self._sated[seq] = None
        elif seq.row is None and not over and self._wants(seq):
            self.leases.drop(seq)
            seq.since = self.clock()
            self.waiting.add(seq)

    def _wants(self, seq: Sequence) -> bool:
        return seq.wants_work() and (self.aware or seq.task is not None)

    def rest(self, seq: Sequence) -> None:
        """It wants nothing now (Python or a tool runs): it keeps a lease on its prefix, not its row."""
        self._unseat(seq)
        self.waiting.discard(seq)
        self.cache.rest(seq)
        if not self.aware:
            self.cache.park(seq)
        elif seq.node is not None:
            self.leases.add(seq)

    def leave(self, seq: Sequence) -> None:
        """It is done, failed or aborted: what it computed stays as long as nobody needs the room."""
        self._forget(seq)
        self.cache.park(seq)

    def discard(self, seq: Sequence) -> None:
        """Its KV cannot be trusted, nor what is in the air; if it still wants work it begins anew."""
        self._forget(seq)
        seq.lose()
        seq.void()
        self.cache.discard(seq)
        self._suspend(seq)
        self.wake(seq)

    def _forget(self, seq: Sequence) -> None:
        self._unseat(seq)
        self.waiting.discard(seq)
        self.leases.drop(seq)
        self.cache.drop(seq)

    def _suspend(self, seq: Sequence) -> None:
        """It has lost its KV: when its program holds no more, it is not admitted any longer."""
        if self.bank is not None and all(other.node is None for other in seq.program.sequences.values()):
            self.bank.forget(seq.program)

    def _seat(self, seq: Sequence) -> None:
        if self.bank is not None:
            self.bank.admit(seq.program, self.steps)
        self.waiting.discard(seq)
        if seq.task is not None:
            seq.task.seated(self.lack, self.clock())
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
        self._expire()
        self.patience = None
        batch = self._next()
        if batch is None:
            batch = self._plan()
        self._pace.note(self.clock(), 0 if batch is None else len(batch))
        if batch is None:
            self._starve()
            return None
        self._idle_since = None
        self.steps += 1
        self._account(batch, batch.owner)
        return batch

    def _next(self) -> Batch | None:
        """The batch that follows from the last one, if it does and nobody waits."""
        if self._steady is None or self._oldest_first is None or self.waiting or self._sated:
            return None
        batch = self._steady.next(self.steps, self._oldest_first, self.cache)
        if batch is not None:
            self.lack.note(False, self.clock())
            for seq in self._oldest_first:
                self.served[seq.program.namespace] += 1
        return batch

    def _plan(self) -> Batch | None:
        """A batch from nothing."""
        draft = Draft(self.steps, self.limits.batch_tokens, self.parameters)
        decoding, others = self._ready()
        self._decode(decoding, draft)
        if len(draft.members) < len(decoding):  # who got nothing tries again in its turn
            others = sorted([*(seq for seq in decoding if seq not in draft.members), *others], key=AGE)
        for seq in others:
            self._try(seq, draft)
        self.lack.note(self._admit(draft), self.clock())
        batch, order = draft.launch(), self._oldest_first
        self._steady = Steady(batch, order) if batch and order and Steady.fits(batch, order) else None
        return batch

    def _ready(self) -> tuple[list[Sequence], list[Sequence]]:
        """Seated sequences that want work, oldest first: those that are sampling, and the others. Those that want
        nothing and have no op go to rest."""
        if self._oldest_first is None:
            self._oldest_first = sorted(self.running, key=AGE)
        decoding: list[Sequence] = []
        others: list[Sequence] = []
        idle = False
        for seq in self._oldest_first:
            task = seq.task
            if isinstance(task, Generating) and task.drawn:
                if task.made + seq.flying < task.limit:
                    decoding.append(seq)
            elif self._wants(seq):
                others.append(seq)
            else:
                idle = idle or task is None
        if idle:
            for seq in [s for s in self.running if s.task is None and not self._wants(s)]:
                self.rest(seq)
        return decoding, others

    def _decode(self, decoding: list[Sequence], draft: Draft) -> None:
        """Runs of sequences that only want their next token go together, as long as nobody has to give way."""
        for steady, run in decode.runs(decoding, self.parameters.tasks):
            if not steady or len(run) < FEW or len(run) > min(self.cache.slots.free, draft.left):
                for seq in run:
                    self._try(seq, draft)
            else:
                decode.advance(run, self.cache, draft, self.parameters.tasks)
                for seq in run:
                    self.served[seq.program.namespace] += 1

    def _try(self, seq: Sequence, draft: Draft) -> None:
        if seq in self.running and seq not in draft.members:  # not retracted meanwhile for an older one
            self.extension.schedule(seq, draft)

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
            if not self._revoke(seq) and not self._retract(seq, draft):
                return None

    def _revoke(self, needy: Sequence) -> bool:
        """Take back one lease; False when there is none to take."""
        victim = self._victims.lease(needy)
        if victim is not None:
            self._take_lease(victim)
        return victim is not None

    def _take_lease(self, seq: Sequence) -> None:
        self.revocations += 1
        self.leases.drop(seq)
        seq.lose()
        self.cache.park(seq)
        self._suspend(seq)

    def _expire(self) -> None:
        while (seq := self.leases.expired()) is not None:
            self._take_lease(seq)

    def _starve(self) -> None:
        """Nothing could be computed. If leases stand in the way of somebody, and nothing is in the air, they are taken
        after a while: a program may wait for another that waits for its lease. If it is who waits first that has the
        only one, then the youngest gives up its place."""
        if self._idle_since is None:
            self._idle_since = self.clock()
            return
        if self.bank is None or not (self.waiting or any(self._wants(seq) for seq in self.running)):
            return
        victim = self._victims.any_lease(next(iter(self.waiting.next(self.served)), None))
        if victim is None:
            seated = self._victims.any_place()
            if seated is not None:
                self.patience = 0.0
                self.retract(seated)
            return
        price = self.leases.price(victim, self._pace.seconds)
        self.patience = max(self._idle_since + price - self.clock(), 0.0)
        if not self.patience:
            self._take_lease(victim)

    def _retract(self, needy: Sequence, draft: Draft) -> bool:
        """Send a younger sequence back to the queue; False when there is none."""
        victim = self._victims.place(needy, draft.members)
        if victim is not None:
            self.retract(victim)
        return victim is not None

    def retract(self, seq: Sequence) -> None:
        """Take a sequence's row and lock; what it computed is the first to be evicted. It loses time, nothing else."""
        self.retractions += 1
        seq.lose()
        if seq.task is not None:
            seq.task.retractions += 1
            seq.task.away = self.clock()
        self._forget(seq)
        self.cache.park(seq, cold=True)
        self._suspend(seq)
        self.wake(seq)

    # -- admission

    def _admit(self, draft: Draft) -> bool:
        """Seat waiting sequences, best first, while rows, budget and memory allow. Who has begun may still be let in
        when a newcomer may not. True when memory kept somebody out."""
        for seq in self._sated:
            if seq in self.waiting and not self._wants(seq) and not seq.flying:
                self.rest(seq)
        self._sated.clear()
        if not self.waiting or draft.left <= 0 or not self.cache.rows.free:
            return False
        self._seats, retractions = self._footprints(), self.retractions
        shut, put_off = False, None
        for seq in self.waiting.next(self.served):
            if draft.left <= 0:
                return shut
            begun = self.bank is not None and seq.program in self.bank.admitted
            if seq.flying or (shut and not begun):
                continue
            if self.retractions != retractions:
                self._seats, retractions = self._footprints(), self.retractions
            if not self._fits(seq):
                shut = True
                put_off = put_off or (seq if begun else None)
                if self.bank is None or not self.cache.rows.free:
                    return shut
            elif not self._begin(seq, draft):
                return shut
        if put_off is not None and not self.running:
            self._begin(put_off, draft)
        return shut

    def _fits(self, seq: Sequence) -> bool:
        """True when there is memory for a sequence's op. Gives it a lock on what is cached of it, and takes that from a
        newcomer for whom there is none."""
        begun = self.bank is not None and seq.program in self.bank.admitted
        others = self.running if self.bank is None else len(self.bank.admitted) > begun
        if not others:
            return True
        locked = seq.node is not None
        self.cache.attach(seq)
        room = self.cache.capacity - self.cache.tree.locked
        fits = self._seats.fits(footprint(seq), room)
        if fits and self.bank is not None and begun:
            fits = self.bank.lends(seq, self.running, self._seats, room, self.steps)
        elif fits and self.bank is not None:
            fits = self.bank.affords(seq.program, room, self.steps)
        if not fits and not locked:
            self.cache.park(seq)
        return fits

    def _begin(self, seq: Sequence, draft: Draft) -> bool:
        """Seat a waiting sequence and schedule it; False when it must go on waiting, and so must all."""
        locked = seq.node is not None
        if not self.cache.seat(seq):
            return False
        self._seat(seq)
        if not self.extension.schedule(seq, draft) and not draft.count:
            self._unseat(seq)
            if locked and self.bank is not None:
                self.cache.rest(seq)
            else:
                self.cache.park(seq)
                self._suspend(seq)
            self.waiting.add(seq)
            return False
        self._seats.add(footprint(seq))
        return True

    def _footprints(self) -> admission.Footprints:
        return admission.Footprints([footprint(seq) for seq in self.running])

    # -- sampling

    def masks(self, batch: Batch) -> Masks:
        """What sampling needs and only the collected previous step could tell."""
        notes: Notes = batch.owner
        return notes.masks(batch.draws.positions, self.vocab, self.eos)
