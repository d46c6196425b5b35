"""Live programs: their sequences, their pending ops, and what each step's results mean for them.

In: orders from the client, and the results of flights. Out: work for the scheduler, and news for the client. When op
n of a sequence ends, op n + 1 begins in the same call, so its constant tokens join the very next batch. A failed op
poisons its own sequence and what refers to its value, nothing else; a program ends with exactly one `Over`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ramet.runtime import joins
from ramet.runtime import messages as m
from ramet.runtime.batch import I32
from ramet.runtime.boundary import blame
from ramet.runtime.calls import Bounds, Refused, automaton, begin
from ramet.runtime.grammar.base import Grammars
from ramet.runtime.lengths import site_of
from ramet.runtime.program import Program as Program
from ramet.runtime.scheduler import Scheduler
from ramet.runtime.sequence import Generating, Scoring, Sequence
from ramet.runtime.text import Tokenizer

MARKS = 64  # calls of a sequence behind which its growth is learned
GRAMMAR = "grammar"  # under this key of `waiters` sequences wait for grammars that are being built


class Programs:
    """The live programs of an engine. `receive` takes orders, `collect` a flight's results; `news` is what to tell
    the client."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        context: int,
        tokenizer: Tokenizer | None,
        clock: Callable[[], float],
        grammars: Grammars | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.foresee: Callable[[Sequence, Generating], None] = lambda seq, task: None  # the collector's
        self._grammars = grammars
        self._beginning: Sequence | None = None  # its op is just being begun, and may end at once
        self.live: dict[str, Program] = {}
        self.news: list[m.AnyNews] = []
        self._bounds = Bounds(context, scheduler.cache.capacity)
        self._tokenizer = tokenizer
        self._clock = clock
        self._born = 0
        self._grown = 0

    # -- orders

    def receive(self, order: m.Order) -> None:
        """Carry out an order about one program; orders about programs that are over change nothing. One that cannot be
        carried out ends its program."""
        try:
            self._receive(order)
        except BaseException as error:  # noqa: BLE001 (the request boundary)
            message = blame(error)
            program = self.live.get(getattr(order, "program", ""))
            if program is not None:
                self.end(program, "generation", message)

    def _receive(self, order: m.Order) -> None:
        if isinstance(order, m.OrderOpen):
            if order.program not in self.live:
                program = Program(order.program, order.namespace, order.priority, self._born, self._clock(), order.name)
                self._born += 1
                self.live[order.program] = program
                self._sequence(program, "0")
            return
        program_or_none = self.live.get(getattr(order, "program", ""))
        if program_or_none is None:
            return
        program = program_or_none
        if isinstance(order, m.OrderOps):
            for op in m.whole(order):
                self._accept(program, op)
        elif isinstance(order, m.OrderEnd):
            program.ended = True
            for seq in list(program.sequences.values()):
                seq.ops.append(m.Close("", seq.name))
                self._guarded(seq)
        elif isinstance(order, m.OrderAbort):  # pragma: no branch (no other order is about a program)
            self.end(program, "aborted", "the program was cancelled")
            return
        self.conclude(program)

    def _accept(self, program: Program, op: m.AnyOp) -> None:
        program.changed = True
        if isinstance(op, m.Put) and op.failed:
            self._break(program, op.op, "generation", op.failed)
        elif isinstance(op, m.Put):
            self.scheduler.learned.values.add(site_of(program.name, op.op), len(op.tokens))
            self._define(program, op.op, np.array(op.tokens, np.int32))
        elif isinstance(op, m.Close) and op.now:
            self._cut(program, op.seq)
        else:
            program.open += bool(op.op)
            seq = program.sequences.get(op.seq)
            if seq is None:
                program.early.setdefault(op.seq, []).append(op)
            else:
                seq.ops.append(op)
                self._guarded(seq)

    def _cut(self, program: Program, branch: str) -> None:
        """Stop a sequence and all that were forked below it: what is queued or under way there fails as aborted."""
        message = "the branch was cancelled"
        for name, seq in list(program.sequences.items()):
            if name == branch or name.startswith(branch + "."):
                if seq.failed is None and (seq.task is not None or any(op.op for op in seq.ops)):
                    self.fail(seq, seq.task.op.op if seq.task is not None else "", "aborted", message)
                seq.closed = True
                self.scheduler.leave(seq)
                self._notify(program, name)
        for name in [n for n in program.early if n == branch or n.startswith(branch + ".")]:
            for op in [op for op in program.early.pop(name) if op.op]:
                program.open -= 1
                self._break(program, op.op, "aborted", message)
        if branch not in program.sequences:  # it overtook the fork: what comes after it must find no living branch
            program.early[branch] = [m.Close("", branch)]

    def _sequence(self, program: Program, name: str) -> Sequence:
        seq = Sequence(program, name, self._grown)
        self._grown += 1
        program.sequences[name] = seq
        seq.ops.extend(program.early.pop(name, ()))
        if program.ended:
            seq.ops.append(m.Close("", name))
        return seq

    # -- ops

    def _guarded(self, seq: Sequence) -> None:
        """Advance a sequence inside the boundary around everything derived from a request: its errors end it alone."""
        try:
            self._advance(seq)
        except BaseException as error:  # noqa: BLE001 (the request boundary)
            op = seq.task.op.op if seq.task else seq.ops[0].op if seq.ops else ""
            self.fail(seq, op, "generation", blame(error))

    def _advance(self, seq: Sequence) -> None:
        """Begin ops until one takes time or has to wait."""
        while seq.task is None and seq.ops and (seq.failed is not None or not self._blocked(seq, seq.ops[0])):
            op = seq.ops.popleft()
            seq.program.changed = True
            if seq.closed:
                if not isinstance(op, m.Close):
                    self._break(seq.program, op.op, "generation", f"sequence {seq.name} is closed")
            elif seq.failed is not None:
                self._poisoned(seq, op)
            else:
                try:
                    self._begin(seq, op)
                except BaseException as error:  # noqa: BLE001 (the request boundary)
                    seq.task = None  # the line below counts the op
                    self.fail(seq, op.op, "generation", blame(error))
            if seq.task is None and op.op:
                seq.program.open -= 1
        if seq.failed is None and not seq.closed:
            self.scheduler.wake(seq)

    def _blocked(self, seq: Sequence, op: m.AnyOp) -> bool:
        """True, and the sequence is told later, when the op needs a value or the end of a branch that is still to
        come."""
        program = seq.program
        if isinstance(op, m.Append):
            missing = [
                p for p in op.parts if isinstance(p, str) and p not in program.values and p not in program.broken
            ]
        elif isinstance(op, m.Join):
            branches = ((name, program.sequences.get(name)) for name in op.branches)
            missing = [name for name, branch in branches if branch and not branch.closed and branch.failed is None]
            if missing:
                joins.begin(seq, op, self._bounds.longest)
        elif isinstance(op, m.Generate) and op.grammar and self._grammars is not None:
            missing = [] if self._grammars.prepare(op.grammar, program.id) else [GRAMMAR]
        else:
            return False
        for key in missing[:1]:
            waiting = program.waiters.setdefault(key, [])
            if seq not in waiting:
                waiting.append(seq)
        return bool(missing)

    def _begin(self, seq: Sequence, op: m.AnyOp) -> None:
        """Carry out an op, or make it the sequence's task."""
        if isinstance(op, m.Append):
            self._append(seq, op)
        elif isinstance(op, (m.Generate, m.Choose, m.Score)):
            self._call(seq, op)
        elif isinstance(op, m.Fork):
            self._fork(seq, op)
        elif isinstance(op, m.Join):
            self._join(seq, op)
        elif isinstance(op, m.Close):  # pragma: no branch (a Put does not come here)
            seq.closed = True
            for site, at in seq.marks:
                self.scheduler.learned.growth.add(site, seq.known - at)
            self.scheduler.leave(seq)
            self._notify(seq.program, seq.name)

    def _append(self, seq: Sequence, op: m.Append) -> None:
        parts: list[I32] = [np.zeros(0, np.int32)]
        for part in op.parts:
            if not isinstance(part, str):
                parts.append(np.array(part, np.int32))
            elif part in seq.program.values:
                parts.append(seq.program.values[part])
            else:
                kind, message = seq.program.broken[part]
                self.fail(seq, op.op, kind, f"needs the value of {part}, which failed: {message}")
                return
        self._extend(seq, op.op, np.concatenate(parts))

    def _extend(self, seq: Sequence, op: str, tokens: I32) -> None:
        total = seq.known + len(tokens)
        if total > self._bounds.longest:
            self.fail(seq, op, "context", self._bounds.too_long(f"{total} tokens"))
        else:
            seq.append(tokens)

    def _call(self, seq: Sequence, op: m.Generate | m.Choose | m.Score) -> None:
        now = self._clock()
        self.scheduler.arrive(seq)
        try:
            task = begin(op, seq.known, self._bounds, eos=self.scheduler.eos, tokenizer=self._tokenizer, now=now)
            if isinstance(task, Generating) and task.op.grammar:
                task.automaton = automaton(self._grammars, task.op.grammar)
        except Refused as refused:
            self.fail(seq, op.op, refused.kind, refused.message)
            return
        task.lack = self.scheduler.lack.total(now)
        seq.task = task
        seq.program.calls += 1
        seq.program.prompt += task.prompt
        site = site_of(seq.program.name, op.op)
        if seq.program.name and len(seq.marks) < MARKS:
            seq.marks.append((site, seq.known))
        if isinstance(task, Generating):
            task.expected = self.scheduler.learned.call(site, task.limit, task.op.sampling.max_tokens)
        if isinstance(task, Generating) and task.automaton is not None:
            before, self._beginning = self._beginning, seq
            try:
                self.foresee(seq, task)
            finally:
                self._beginning = before
        elif isinstance(task, Scoring):
            self.scheduler.cache.retreat(seq, task.at)

    def announce(self, begun: Iterable[Sequence]) -> None:
        """Tell of the calls whose prompt is computed with the batch that was just planned."""
        for seq in begun:
            assert seq.task is not None, "a call has begun"
            seq.task.announced = True
            self.news.append(m.Began(seq.program.id, seq.task.op.op, seq.task.prompt, seq.task.cached))
            if isinstance(seq.task, Generating):
                self.news += seq.task.held

    def _fork(self, seq: Sequence, op: m.Fork) -> None:
        for name in op.into:
            child = self._sequence(seq.program, name)
            child.append(seq.tokens(0, seq.known))
            child.base, child.parent = seq.known, seq
            self.scheduler.cache.fork(seq, child)
            if child.node is not None:
                self.scheduler.rest(child)
            self._guarded(child)
        self.news.append(m.Branched(seq.program.id, op.op, seq.known))

    def _join(self, seq: Sequence, op: m.Join) -> None:
        failure = joins.failure(seq, op)
        if failure is not None:
            self.fail(seq, op.op, *failure)
            return
        self._extend(seq, op.op, np.array(joins.tokens_of(seq, op, seq.joined), np.int32))
        seq.joined = 0
        if seq.failed is None:
            self.news.append(m.Merged(seq.program.id, op.op, tuple(joins.tokens_of(seq, op))))

    # -- values and waiting

    def _notify(self, program: Program, key: str) -> None:
        for seq in program.waiters.pop(key, ()):
            self._guarded(seq)

    def resume(self) -> None:
        """Begin the ops whose grammars have been built since the last step."""
        for owner in self._grammars.built() if self._grammars is not None else ():
            program = self.live.get(owner)
            if program is not None:
                self._notify(program, GRAMMAR)
                self.conclude(program)

    def _define(self, program: Program, op: str, tokens: I32) -> None:
        program.values[op] = tokens
        self._notify(program, op)

    def finish(self, seq: Sequence, value: I32) -> None:
        """The sequence's task ended with `value`, which is in the sequence already: the next op begins."""
        assert seq.task is not None, "only a task ends"
        op = seq.task.op.op
        seq.task = None
        seq.fresh = seq.again = 0
        seq.lost = min(seq.lost, seq.known - 1)  # whatever stood behind is another text now
        seq.program.changed = True
        if seq is self._beginning:  # who begins it goes on with the next op
            self._define(seq.program, op, value)
            return
        seq.program.open -= 1
        self._define(seq.program, op, value)
        self._guarded(seq)

    # -- failure and the end

    def _break(self, program: Program, op: str, kind: str, message: str) -> None:
        if op in program.broken:  # several Appends may carry one op's id
            return
        program.broken[op] = (kind, message)
        self.news.append(m.Failure(program.id, op, kind, message))
        self._notify(program, op)

    def fail(self, seq: Sequence, op: str, kind: str, message: str) -> None:
        """An op failed: its sequence is poisoned, later ops on it fail too, what waits for its value is told."""
        program = seq.program
        first = seq.failed is None
        seq.failed = seq.failed or (kind, message)
        seq.turn += 1
        seq.flying = 0
        self.scheduler.leave(seq)
        if seq.task is not None:
            seq.task = None
            program.open -= 1
        if op:
            self._break(program, op, kind, message)
        if first:  # pragma: no branch (a poisoned sequence begins nothing that could fail)
            self._notify(program, seq.name)
        self._advance(seq)

    def _poisoned(self, seq: Sequence, op: m.AnyOp) -> None:
        """An op on a poisoned sequence fails for the same reason; children of a fork are born poisoned."""
        assert seq.failed is not None, "poisoned"
        if isinstance(op, m.Close):
            seq.closed = True
            return
        if isinstance(op, m.Fork):
            for name in op.into:
                child = self._sequence(seq.program, name)
                child.failed = seq.failed
                self._advance(child)
        kind, message = seq.failed
        self._break(seq.program, op.op, kind, f"an earlier operation of this branch failed: {message}")

    def end(self, program: Program, kind: str = "", message: str = "") -> None:
        """The program's one terminal event; whatever it holds is given up."""
        del self.live[program.id]
        if self.scheduler.bank is not None:
            self.scheduler.bank.forget(program)
        if self._grammars is not None:
            self._grammars.forget(program.id)
        for seq in program.sequences.values():
            seq.turn += 1
            seq.flying = 0
            self.scheduler.leave(seq)
            seq.task = None
            seq.ops.clear()
        p = program
        spent = (p.calls, p.prompt, p.cached, p.forced, p.generated, p.computed, p.steps, self._clock() - p.began)
        self.news.append(m.Over(p.id, "", kind, message, *spent))
        p.sequences, p.waiters = {}, {}  # sequences name their program: nothing may be left to the garbage collector

    def conclude(self, program: Program) -> None:
        """End a program that has nothing left to do; fail ops that wait for what will never come."""
        if not program.ended or program.id not in self.live:
            return
        while program.open and GRAMMAR not in program.waiters and not any(s.task for s in program.sequences.values()):
            self._give_up(program)
        if not program.open:
            self.end(program)

    def _give_up(self, program: Program) -> None:
        """Fail the first op that waits for what never comes: a value, the end of a branch, or the fork that makes its
        sequence."""
        for seq in program.sequences.values():
            for op in [op for op in seq.ops if op.op][:1]:
                seq.ops.remove(op)
                program.open -= 1
                message = f"operation {op.op} waits for a value or a branch that never comes"
                self.fail(seq, op.op, "generation", message)
                return
        for op in [op for ops in program.early.values() for op in ops if op.op]:
            program.open -= 1
            self._break(program, op.op, "generation", f"operation {op.op}: sequence {op.seq} does not exist")
        program.early.clear()
        assert not program.open, "an operation is counted that nobody holds"
