"""Constraints compiled before anything of them reaches the engine: in processes that can be killed, each once (R4).

In: constraints, from any thread. Out: `Compiled`, or a `ConstraintError` that says what is wrong or which limit it is.
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
from ramet.frontend.errors import ConstraintError, EngineError
from ramet.runtime.grammar.base import Compiled
from ramet.runtime.grammar.child import Hello, Refused, over_memory
from ramet.runtime.grammar.limits import SpecLimits, check_size, label
from ramet.runtime.grammar.tokens import token_bytes
from ramet.runtime.grammar.worker import Lost, Worker

if TYPE_CHECKING:
    from ramet.runtime.text import Tokenizer

LARGE = 384 << 20  # bytes; a process that has held more is not used again, so that memory returns
RETRY_SECONDS = 30.0  # until a constraint that was killed is tried again: the machine may just have been busy
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
    """Compiles for one vocabulary; may be used from any thread, and in a process that was forked. At most `workers`
    processes run, started when they are needed; what was compiled or refused is kept up to `most_bytes`."""

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
        self._inherited: list[set[Worker]] = []
        self._begin()

    def _own(self) -> None:
        """A forked process leaves its parent's workers and locks alone, and starts anew."""
        if os.getpid() != self._pid:
            self._inherited.append(self._alive)
            self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._free = threading.Semaphore(self._workers)
        self._idle: list[Worker] = []
        self._alive: set[Worker] = set()
        self._flying: dict[bytes, Future[_Outcome]] = {}
        self._kept: OrderedDict[bytes, _Outcome] = OrderedDict()
        self.bytes = 0
        self.compilations = 0
        self._end = weakref.finalize(self, _end_all, self._alive)

    def compile(self, constraint: ir.Constraint) -> Compiled:
        """Blocks for milliseconds usually, the wall limit at most once a process is free. Raises `ConstraintError`, and
        `EngineError` when no process can be started or the compiler is closed."""
        self._own()
        check_size(constraint, self._limits)
        payload = msgspec.msgpack.encode(constraint)
        key = blake2b(payload, digest_size=20).digest()
        outcome = self._once(key, lambda: self._work(constraint, payload))
        if outcome.compiled is None:
            raise ConstraintError(outcome.message)
        return outcome.compiled

    def warm(self) -> None:
        """Start a process and wait until it has the vocabulary (some 0.3 s), so that the first compilation need not."""
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
        for worker in busy:
            worker.kill()  # the thread that uses it does the rest
        for worker in idle:
            worker.end()

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

    def _work(self, constraint: ir.Constraint, payload: bytes) -> _Outcome:
        self.compilations += 1
        for last in (False, True):
            with self._worker() as worker:
                try:
                    reply = worker.ask(payload, self._limits.wall_seconds)
                except Lost as lost:
                    worker.kill()
                    if self._closed:
                        raise EngineError("the grammar compiler was closed") from None
                    if lost.signal == signal.SIGKILL and not last:  # by someone else: the limits do not end it so
                        continue
                    message = self._lost(label(constraint), lost.signal)
                    return _Outcome(None, message, time.monotonic() + RETRY_SECONDS)
                if reply.peak > LARGE:
                    worker.kill()
            break
        return _Outcome(None, reply.message) if isinstance(reply, Refused) else _Outcome(reply.compiled)

    def _lost(self, name: str, ended_by: int) -> str:
        if ended_by == 0:
            return (
                f"{name}: takes more than {self._limits.wall_seconds:g} s to compile (limit: compile time); simplify it"
            )
        if ended_by == signal.SIGXCPU:
            return f"{name}: takes more than {self._limits.cpu_seconds} s of CPU time to compile (limit); simplify it"
        return over_memory(name, self._limits)

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """A process that is ready; it is kept for the next one unless it has ended or something went wrong."""
        with self._free:
            worker = self._take()
            sound = False
            try:
                worker.wait_ready()
                yield worker
                sound = worker.alive
            finally:
                with self._lock:
                    sound = sound and not self._closed
                    if sound:
                        self._idle.append(worker)
                if not sound:
                    self._drop(worker)

    def _take(self) -> Worker:
        """An idle process that still runs, or a new one."""
        while True:
            with self._lock:
                if self._closed:
                    raise EngineError("the grammar compiler is closed")
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                break
            if worker.alive:
                return worker
            self._drop(worker)
        worker = Worker(self._greeting())
        with self._lock:
            self._alive.add(worker)
            closed = self._closed
        if closed:
            self._drop(worker)
            raise EngineError("the grammar compiler is closed")
        return worker

    def _drop(self, worker: Worker) -> None:
        with self._lock:
            self._alive.discard(worker)
        worker.end()

    def _greeting(self) -> bytes:
        if not self._hello:
            tokens = token_bytes(self._tokens() if callable(self._tokens) else self._tokens)
            self._hello = msgspec.msgpack.encode(Hello(list(tokens), self._eos, self._vocab, self._limits))
        return self._hello


def _end_all(workers: set[Worker]) -> None:
    while workers:
        workers.pop().end()
