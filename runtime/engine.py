"""The step loop: orders in, batches to the runner, results to programs, news out.

In: a `Port` that brings orders, a `Runner` that computes. Out: one `Step` of news per step. `EngineCore.step` is all
there is: in the engine's process, in a thread (`in_process=True`) and in tests the same code runs. Results of step N
are read while step N + 1 is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ramet.frontend.errors import DeviceLost
from ramet.runtime import messages as m
from ramet.runtime.audit import Audit
from ramet.runtime.batch import Batch, Flight, Runner
from ramet.runtime.cache import Cache
from ramet.runtime.collect import Collector
from ramet.runtime.config import Limits
from ramet.runtime.draft import Notes
from ramet.runtime.grammar.base import Grammars
from ramet.runtime.programs import Programs
from ramet.runtime.scheduler import Scheduler
from ramet.runtime.snapshot import Snapshots
from ramet.runtime.text import Tokenizer


class Port(Protocol):
    """Where orders come from and news go to."""

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """All orders that have arrived; waits for one when `block`, though not longer than `seconds`. Never polls."""

    def send(self, step: m.Step) -> None:
        """Hand news to the client; never blocks."""


class EngineCore:
    """One model, one device, one loop. `check()` asserts every invariant of RELIABILITY's list between two steps."""

    def __init__(
        self,
        runner: Runner,
        port: Port,
        *,
        limits: Limits | None = None,
        eos: tuple[int, ...] = (),
        tokenizer: Tokenizer | None = None,
        model: str = "",
        clock: Callable[[], float] = time.monotonic,
        grammars: Grammars | None = None,
    ) -> None:
        limits = (limits or Limits()).on("cpu")  # what is chosen stays as it is
        self.runner = runner
        self.port = port
        self.cache = Cache(runner.capacity, runner.rows, runner.context)
        self.scheduler = Scheduler(self.cache, limits, eos, clock, vocab=runner.vocab)
        self.programs = Programs(
            self.scheduler, context=runner.context, tokenizer=tokenizer, clock=clock, grammars=grammars
        )
        self.collector = Collector(self.programs, self.scheduler, tokenizer=tokenizer, clock=clock)
        self.snapshots = Snapshots(self.cache.tree, self.programs, self.scheduler, clock)
        self.audit = Audit(self.check)
        self.stopping = False
        self._grammars = grammars
        self._looks: list[m.OrderSnapshot] = []  # asked for in this step
        self._overlap = limits.overlap
        self._last: Flight | None = None
        self._idle = True
        self._clock = clock
        self._model = model
        self._steps = 0
        self._seconds = 0.0

    def run(self) -> None:
        """Step until told to stop."""
        while not self.stopping:
            self.step()

    def close(self) -> None:
        """End what runs beside the loop. Idempotent."""
        if self._grammars is not None:
            self._grammars.close()

    def step(self) -> None:
        """Take orders, launch the next batch, collect the last one, sample, tell. A last one whose results may make
        tokens known (`Notes.eager`) is collected first, so that these join the very next batch."""
        stats = self._receive()
        self.programs.resume()
        began = self._clock()
        done = self._collect() if self._last is not None and self._last.batch.owner.eager else (0, 0)
        batch = self.scheduler.plan()
        if batch is not None:
            self.programs.announce(batch.owner.begun)
        flight = self._forward(batch) if batch is not None else None
        self._idle = batch is None and self._last is None
        done = self._collect() if self._last is not None else done
        if flight is not None:
            flight = self._sample(flight)
        if not self._overlap:
            self._last, flight = flight, None
            done = self._collect() or done
        self._last = flight
        if batch is not None:
            self._seconds += self._clock() - began
        news = tuple(self.programs.news)
        self.programs.news.clear()
        if news or stats or self._looks:
            self._steps += 1
            looks = tuple(map(self.snapshots.take, self._looks))
            self._looks.clear()
            self.port.send(m.Step(self._steps, news, tuple(self.stats(token) for token in stats), done, looks))
        self.audit.after(self.scheduler.steps, self._idle)

    def _receive(self) -> list[int]:
        stats: list[int] = []
        patience = self.scheduler.patience if self._idle else None
        for order in self.port.receive(self._idle) if patience is None else self.port.receive(True, patience):
            if isinstance(order, m.OrderStats):
                stats.append(order.token)
            elif isinstance(order, m.OrderSnapshot):
                self._looks.append(order)
            elif isinstance(order, m.OrderWarm):
                if self._grammars is not None:
                    self._grammars.warm()
            elif isinstance(order, m.OrderFlush):
                for seq in list(self.scheduler.resting):
                    self.scheduler.leave(seq)
                self.cache.flush()
            elif isinstance(order, m.OrderStop):
                self.stopping = True
                for program in list(self.programs.live.values()):
                    self.programs.end(program, "transport", "the engine was stopped")
            else:
                self.programs.receive(order)
        return stats

    # -- the runner, with what happens when it fails

    def _forward(self, batch: Batch) -> Flight | None:
        try:
            return self.runner.forward(batch)
        except Exception as error:  # noqa: BLE001 (a device error ends the batch, not the engine)
            self._crash(batch, error)
            return None

    def _sample(self, flight: Flight) -> Flight | None:
        try:
            self.runner.sample(flight, self.scheduler.masks(flight.batch))
        except Exception as error:  # noqa: BLE001
            self._crash(flight.batch, error)
            return None
        return flight

    def _collect(self) -> tuple[int, int]:
        flight, self._last = self._last, None
        if flight is None:
            return (0, 0)
        try:
            samples = self.runner.read(flight)
        except Exception as error:  # noqa: BLE001
            self._crash(flight.batch, error)
            return (0, 0)
        self.collector.collect(flight.batch.owner, samples, flight.batch.step)
        return (len(flight.batch), flight.batch.segments)

    def _crash(self, batch: Batch, error: Exception) -> None:
        """A batch failed: its sequences fail, and since its KV may be garbage and is in the tree, nothing cached is
        trusted. A device that is lost ends the loop instead: its programs are failed by the client, which restarts."""
        if isinstance(error, DeviceLost):
            raise error
        notes: Notes = batch.owner
        hit = [seq for seq in notes.members if seq.failed is None and not seq.closed]
        for program in list(self.programs.live.values()):
            for seq in program.sequences.values():
                self.scheduler.discard(seq)
        self.cache.flush()
        for seq in hit:
            if seq.program.id in self.programs.live:
                op = seq.task.op.op if seq.task is not None else ""
                self.programs.fail(seq, op, "generation", f"the forward pass failed: {type(error).__name__}: {error}")
                self.programs.conclude(seq.program)

    # -- what is seen from outside

    def stats(self, token: int = 0) -> m.Stats:
        """Gauges and counters now."""
        cache, scheduler = self.cache, self.scheduler
        cached = cache.tree.size - cache.tree.locked
        return m.Stats(
            token=token,
            kv_total=cache.capacity,
            kv_free=cache.slots.free,
            kv_cached=cached,
            kv_used=cache.capacity - cache.slots.free - cached,
            programs=len(self.programs.live),
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            steps=scheduler.steps,
            computed_tokens=scheduler.computed,
            generated_tokens=self.collector.generated,
            evicted_tokens=cache.evicted,
            retractions=scheduler.retractions,
            step_seconds=self._seconds,
            checks=self.audit.checks,
            broken=self.audit.broken,
            model=self._model,
            context_length=self.runner.context,
        )

    def check(self) -> None:
        """Assert the invariants; O(everything), for tests and, by `audit`, now and then in production."""
        sequences = [seq for program in self.programs.live.values() for seq in program.sequences.values()]
        self.cache.check(sequences)
        for seq in sequences:
            assert seq.computed <= seq.length, f"{seq.name}: more computed than exists"
            assert (seq.row is not None) == (seq in self.scheduler.running), f"{seq.name}: row and place differ"
            places = [
                seq in group for group in (self.scheduler.running, self.scheduler.waiting, self.scheduler.resting)
            ]
            assert sum(places) <= 1, f"{seq.name}: in two places"
            assert not (seq.closed or seq.failed) or seq.node is None, f"{seq.name}: over, and still holds KV"
        if not self.programs.live:
            assert not (self.scheduler.running or self.scheduler.waiting or self.scheduler.resting), (
                "a dead sequence is kept"
            )
            assert self.cache.tree.locked == 0, "a lock outlives its program"
            assert self.cache.slots.free + self.cache.tree.size == self.cache.capacity, (
                "private slots without a program"
            )
