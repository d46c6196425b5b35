"""Constraints compiled before anything of them reaches the engine: in processes that can be killed, each once (R4).

In: constraints, from any thread. Out: `Compiled`, a `ConstraintError` that says what is wrong or which limit it is, or
an `OverloadedError`: too many others are being compiled, try again. The answer comes within 2 s; ordinary constraints
pass those that take long, which give up their place after a moment and run on beside it, at a lower priority.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, EngineError, OverloadedError
from ramet.runtime.grammar.base import Compiled
from ramet.runtime.grammar.child import Done, Hello, Refused, over_memory
from ramet.runtime.grammar.limits import SpecLimits, check_size, label
from ramet.runtime.grammar.tokens import token_bytes
from ramet.runtime.grammar.worker import Lost, Nursery, Worker

if TYPE_CHECKING:
    from ramet.runtime.text import Tokenizer

LARGE = 384 << 20  # bytes; a process that has held more is not used again, so that memory returns
RETRY_SECONDS = 30.0  # until a constraint that was killed is tried again: the machine may just have been busy
QUICK_SECONDS = 0.1  # after which a compilation is one that takes long
HARDLY = 0.1  # of its wall time: who has had less of a processor was kept from it
MOST_LONG = 4  # of these run beside the others; more keep their places
ENDING_SECONDS = 0.1  # of the answer's time, for ending a process and telling
CLOSING_SECONDS = 5.0  # that threads may take to let go of their processes
_ENTRY = 512  # bytes of a cache entry besides its texts


@dataclass(frozen=True)
class _Outcome:
    """What became of a constraint: `compiled`, or why not. Past `until` (0: never) it is tried again."""

    compiled: Compiled | None
    message: str = ""
    until: float = 0.0

    @property
    def bytes(self) -> int:
        program = "" if self.compiled is None else self.compiled.program
        return _ENTRY + len(program) + len(self.message)


class Compiler:
    """Compiles for one vocabulary; may be used from any thread, and in a process that was forked. `workers` compile at
    a time, and up to `MOST_LONG` that take long beside them; what was compiled or refused is kept up to
    `most_bytes`."""

    def __init__(
        self,
        tokens: Tokenizer | Callable[[], Sequence[bytes]],
        *,
        eos: Iterable[int],
        vocab: int | None = None,
        limits: SpecLimits | None = None,
        workers: int = 2,
        most_bytes: int = 16 << 20,
    ) -> None:
        if workers < 1:
            raise EngineError(f"workers={workers}: at least one process must compile")
        self._tokens = tokens
        self._eos, self._vocab = tuple(eos), vocab
        self._limits = limits or SpecLimits()
        self._workers = workers
        self._most_bytes = most_bytes
        self._hello = b""
        self._closed = False
        self._inherited: list[object] = []
        self._begin()

    def _own(self) -> None:
        """A forked process leaves its parent's processes and locks alone, and starts anew."""
        if os.getpid() != self._pid:
            self._inherited += [self._alive, self._nurseries]
            self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._places = threading.Condition(self._lock)
        self._quick = self._long = 0  # compilations under way, by what they hold
        self._idle: list[Worker] = []
        self._alive: set[Worker] = set()
        self._nurseries: list[Nursery] = []  # the one that serves, once there is one
        self._ready = 0.0  # since when it does, by the monotonic clock
        self._flying: dict[bytes, Future[_Outcome]] = {}
        self._kept: OrderedDict[bytes, _Outcome] = OrderedDict()
        self.bytes = 0
        self.compilations = 0
        self._end = weakref.finalize(self, _end_all, self._alive, self._nurseries)

    def compile(self, constraint: ir.Constraint, since: float | None = None) -> Compiled:
        """Blocks for milliseconds usually, and at most until `SpecLimits.answer_seconds` after `since` (of the
        monotonic clock; now) or after the first process is ready. Raises `ConstraintError`, `OverloadedError` when it
        had to wait too long for others, and `EngineError` when no process can be started or the compiler is closed."""
        self._own()
        check_size(constraint, self._limits)
        payload = msgspec.msgpack.encode(constraint)
        key = blake2b(payload, digest_size=20).digest()
        began = time.monotonic() if since is None else since
        outcome = self._once(key, lambda: self._work(constraint, payload, began))
        if outcome.compiled is None:
            raise ConstraintError(outcome.message)
        return outcome.compiled

    def warm(self) -> None:
        """Have a process ready (some 0.5 s), so that the first compilation need not wait for it."""
        self._own()
        with self._worker():
            pass

    def close(self) -> None:
        """End the processes. Compilations that run or wait raise `EngineError`."""
        self._own()
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._alive.difference_update(idle)
            busy = list(self._alive)
            self._places.notify_all()
        for worker in busy:
            worker.kill()  # the thread that uses it does the rest
        for worker in idle:
            worker.end()
        with self._lock:
            self._places.wait_for(lambda: not self._alive, CLOSING_SECONDS)
            nurseries, self._nurseries[:] = list(self._nurseries), []
        for nursery in nurseries:
            nursery.end()

    def _once(self, key: bytes, work: Callable[[], _Outcome]) -> _Outcome:
        """Single flight: whoever asks for what is being compiled waits for that."""
        with self._lock:
            kept = self._recall(key)
            if kept is not None:
                return kept
            flying = self._flying.get(key)
            mine: Future[_Outcome] = Future()
            if flying is None:
                self._flying[key] = mine
        if flying is not None:
            return flying.result()
        try:
            outcome = work()
        except BaseException as error:
            with self._lock:
                del self._flying[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._flying[key]
            self._keep(key, outcome)
        mine.set_result(outcome)
        return outcome

    def _recall(self, key: bytes) -> _Outcome | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if found.until and time.monotonic() > found.until:
            del self._kept[key]
            self.bytes -= found.bytes
            return None
        self._kept.move_to_end(key)
        return found

    def _keep(self, key: bytes, outcome: _Outcome) -> None:
        self._kept[key] = outcome
        self.bytes += outcome.bytes
        while self.bytes > self._most_bytes:
            _, old = self._kept.popitem(last=False)
            self.bytes -= old.bytes

    def _work(self, constraint: ir.Constraint, payload: bytes, began: float) -> _Outcome:
        self.compilations += 1
        ready = self._nursery()[1]
        deadline = max(began, ready) + self._limits.answer_seconds - ENDING_SECONDS
        for last in (False, True):
            with self._worker(deadline) as worker:
                limit, before = time.monotonic() + self._limits.wall_seconds, worker.seconds()
                try:
                    reply = self._ask(worker, payload, min(limit, deadline))
                except Lost as lost:
                    starved = self._starved(before, worker.seconds())
                    worker.kill()
                    if self._closed:
                        raise EngineError("the grammar compiler was closed") from None
                    if lost.signal == signal.SIGKILL and not last:  # by someone else: the limits do not end it so
                        continue
                    if lost.signal == 0 and (deadline < limit or starved):
                        raise self._put_off() from None
                    message = self._lost(label(constraint), lost.signal)
                    return _Outcome(None, message, time.monotonic() + RETRY_SECONDS)
                if reply.peak > LARGE:
                    worker.kill()
            break
        return _Outcome(None, reply.message) if isinstance(reply, Refused) else _Outcome(reply.compiled)

    def _ask(self, worker: Worker, payload: bytes, deadline: float) -> Done | Refused:
        """Who takes long lets the next one begin, if there is room for more that do."""
        worker.ask(payload, deadline)
        if worker.answered(min(deadline, time.monotonic() + QUICK_SECONDS)):
            return worker.answer(deadline)
        with self._places:
            beside = self._long < MOST_LONG
            if beside:
                self._quick, self._long = self._quick - 1, self._long + 1
                self._places.notify()
        if not beside:
            return worker.answer(deadline)
        worker.yield_to_others()
        try:
            return worker.answer(deadline)
        finally:
            worker.kill()  # its priority cannot be raised again
            with self._places:
                self._quick, self._long = self._quick + 1, self._long - 1

    def _starved(self, before: float | None, after: float | None) -> bool:
        """True when a process that was not done in time has hardly run: the machine is busy, and that is not what the
        constraint costs."""
        return before is not None and after is not None and after - before < HARDLY * self._limits.wall_seconds

    def _put_off(self) -> OverloadedError:
        return OverloadedError(
            f"the constraint was not compiled within {self._limits.answer_seconds:g} s, because others that take long "
            "are being compiled, or the machine is busy; try again"
        )

    def _lost(self, name: str, ended_by: int) -> str:
        if ended_by == 0:
            return (
                f"{name}: takes more than {self._limits.wall_seconds:g} s to compile (limit: compile time); simplify it"
            )
        if ended_by == signal.SIGXCPU:
            return f"{name}: takes more than {self._limits.cpu_seconds} s of CPU time to compile (limit); simplify it"
        return over_memory(name, self._limits)

    @contextmanager
    def _worker(self, deadline: float | None = None) -> Iterator[Worker]:
        """A place, and a process; it is kept for the next one unless it has ended or something went wrong. Raises
        `OverloadedError` when there is no place by `deadline`."""
        nursery = self._nursery()[0]
        with self._places:
            seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._places.wait_for(lambda: self._closed or self._quick < self._workers, seconds):
                raise self._put_off()
            self._refuse_if_closed()
            self._quick += 1
        worker: Worker | None = None
        sound = False
        try:
            worker = self._take(nursery)
            yield worker
            sound = worker.alive
        finally:
            with self._places:
                self._quick -= 1
                sound = sound and not self._closed
                if sound and worker is not None:
                    self._idle.append(worker)
                self._places.notify()
            if worker is not None and not sound:
                self._drop(worker)

    def _take(self, nursery: Nursery) -> Worker:
        """An idle process that still runs, or a new one."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                break
            if worker.alive:
                return worker
            self._drop(worker)
        worker = Worker(nursery)
        with self._lock:
            self._alive.add(worker)
            closed = self._closed
        if closed:
            self._drop(worker)
            raise EngineError("the grammar compiler is closed")
        return worker

    def _drop(self, worker: Worker) -> None:
        worker.end()
        with self._places:
            self._alive.discard(worker)
            self._places.notify_all()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineError("the grammar compiler is closed")

    def _nursery(self) -> tuple[Nursery, float]:
        """The process that others are forked from, started unless it runs; and since when it is ready."""
        with self._starting:
            self._refuse_if_closed()
            if self._nurseries and not self._nurseries[0].alive:
                self._nurseries.pop().end()
            if not self._nurseries:
                nursery = Nursery(self._greeting())
                with self._lock:
                    closed = self._closed
                    if not closed:
                        self._nurseries.append(nursery)
                if closed:
                    nursery.end()
                self._refuse_if_closed()
                self._ready = time.monotonic()
            return self._nurseries[0], self._ready

    def _greeting(self) -> bytes:
        if not self._hello:
            tokens = token_bytes(self._tokens() if callable(self._tokens) else self._tokens)
            self._hello = msgspec.msgpack.encode(Hello(list(tokens), self._eos, self._vocab, self._limits))
        return self._hello


def _end_all(workers: set[Worker], nurseries: list[Nursery]) -> None:
    while workers:
        workers.pop().end()
    while nurseries:
        nurseries.pop().end()
