"""The client's half of the simulation: real `EngineClient`s and plans, in front of engines that die.

In: a seed. Out: nothing, or the AssertionError of the first promise that a client saw broken: exactly one end of each
program, every value the oracle's, in every life the same. Engines are lost between two steps, in every way there is;
the client starts another for whoever comes next, and programs that were lost are run again.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import NoReturn

import numpy as np

from ramet.frontend.errors import DeviceLost
from ramet.frontend.ir import Header
from ramet.runtime import messages as m
from ramet.runtime.batch import Batch
from ramet.runtime.config import Limits
from ramet.runtime.engine import EngineCore

from .desk import CONTEXT, Desk, SimulatedClient, language, plans
from .law import Law
from .ledger import LedgerRunner
from .visitors import Visitor, script

CAPACITY, ROWS, AT_ONCE = 300, 6, 5
PATIENCE = 400  # steps without an event in which something must happen
PROGRAMS, CASES = 40, ("one", "a cat", "")


class Office:
    """A client, the engine that it has now, the programs in front, and the clock."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.law = Law(language()[0].vocab_size, eos=(0,), eos_rate=0.05, seed=seed)
        self.now = 0.0
        self.steps = self.finished = self.engines = self.quiet = 0
        self.seen: Counter[str] = Counter()
        self.visitors: list[Visitor] = []
        self.lowered: dict[str, list[m.AnyOp]] = {}
        self._values: dict[tuple[str, str], str] = {}  # of every life of a program
        self._results: dict[str, object] = {}
        self._again: list[str] = []  # programs whose engine was lost
        self._heard = 0
        self.client = SimulatedClient(self._open)
        self.desk.settle()

    def _open(self) -> Desk:
        """A new engine behind a new desk."""
        self.engines += 1
        self.runner = LedgerRunner(self.law, capacity=CAPACITY, rows=ROWS, context=CONTEXT)
        limits = Limits(batch_tokens=40, chunk_tokens=16, lease_seconds=2.0, overlap=self.rng.random() < 0.7)
        self.core = EngineCore(
            self.runner, self, limits=limits, eos=(0,), clock=lambda: self.now, tokenizer=language()[0]
        )
        self.desk = Desk(m.Ready("simulated", "none", CONTEXT, CAPACITY, 1, 0.0))
        return self.desk

    # -- the engine's port

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """What the client has sent; ops are kept for the oracle."""
        orders, self.desk.orders = self.desk.orders, []
        for order in orders:
            if isinstance(order, m.OrderOps):
                self.lowered.setdefault(order.program, []).extend(m.whole(order))
        return orders

    def send(self, step: m.Step) -> None:
        """News, read by the client before the engine goes on."""
        self.desk.give(step)

    # -- the world

    def run(self, steps: int) -> None:
        """Trouble for so many steps; then everything ends, and nothing may be left."""
        for _ in range(steps):
            self._trouble()
            self._step()
        while self.visitors:
            for visitor in self.visitors:
                self._speak(visitor, 1 << 30)
            self._step()
        self.client.start()
        self.client.flush()
        for _ in range(3):
            self._step()
        self.seen["leaked slots"] = CAPACITY - self.core.cache.slots.free
        assert not self.seen["leaked slots"], "slots leaked"
        assert not self.client._sessions, "the client keeps a program that is over"

    def close(self) -> None:
        """End the client and its thread."""
        self.client.close()

    def _trouble(self) -> None:
        rng = self.rng
        if len(self.visitors) < AT_ONCE and rng.random() < 0.3:
            self._arrive()
        for visitor in self.visitors:
            if rng.random() < 0.5:
                self._speak(visitor, rng.randint(1, 5))
            if rng.random() < 0.005 and not visitor.cancelled:
                self._cancel(visitor)
        if rng.random() < 0.02:
            self._lose_engine()

    def _arrive(self) -> None:
        """A new program, or the next life of one whose engine was lost."""
        number = self.rng.randrange(PROGRAMS)
        key = self._again.pop() if self._again else f"{self.rng.choice(('script', 'plan'))} {number}"
        kind, _, rest = key.partition(" ")
        if kind == "plan":
            plan = plans()[int(rest) % 2]
            run = plan.run(CASES[int(rest) % 3], backend=self.client, seed=int(rest))
            self.visitors.append(Visitor(key, self.engines, run=run, ended=True))
            self.seen["plans"] += 1
            return
        visitor = Visitor(key, 0, unsent=script(random.Random(int(rest))))
        visitor.session = self.client.open(Header(seed=int(rest), namespace=f"n{int(rest) % 2}"), visitor.events.append)
        visitor.engine = self.engines
        self.visitors.append(visitor)

    def _speak(self, visitor: Visitor, count: int) -> None:
        if visitor.session is None or visitor.ended:
            return
        ops, visitor.unsent = visitor.unsent[:count], visitor.unsent[count:]
        visitor.sent += ops
        visitor.session.send(ops)
        if not visitor.unsent:
            visitor.ended = True
            visitor.session.end()

    def _cancel(self, visitor: Visitor) -> None:
        visitor.cancelled = True
        self.seen["cancelled"] += 1
        act = visitor.run.cancel if visitor.run is not None else visitor.session.cancel  # type: ignore[union-attr]
        for _ in range(self.rng.randint(1, 2)):
            act()

    def _lose_engine(self) -> None:
        """Killed; broken by an error of its own; stopped in order; or its device is gone, which the next step finds."""
        if self.desk.gone:
            return
        how = self.rng.choice(("killed", "broken", "stopped", "device lost"))
        self.seen[f"engines {how}"] += 1
        if how == "device lost":
            self.runner.forward = _gone  # type: ignore[method-assign]
            return
        if how == "stopped":
            self.desk.orders.append(m.OrderStop())
            self.core.step()
        if how == "broken":
            self.desk.give(m.Broken("EngineError", "an invariant is broken"))
        self._end_engine()

    def _end_engine(self) -> None:
        self.desk.end()
        assert self.desk.released.wait(60.0), "the client does not notice that its engine is gone"

    def _step(self) -> None:
        self.now += self.rng.random()
        self.steps += 1
        self.quiet += 1
        if not self.desk.gone:
            self.desk.settle()
            try:
                self.core.step()
            except DeviceLost as error:
                self.desk.give(m.Broken(type(error).__name__, str(error)))
                self._end_engine()
        if not self.desk.gone:
            if self.runner.broken is not None:
                raise self.runner.broken
            self.core.check()
            free = self.core.cache.slots.is_free(np.arange(CAPACITY, dtype=np.int32))
            self.runner.poison(np.flatnonzero(free).astype(np.int32))
        self._look()

    def _look(self) -> None:
        """At the events that came."""
        heard = sum(len(visitor.told) for visitor in self.visitors)
        if heard != self._heard:
            self._heard, self.quiet = heard, 0
        waiting = any(not visitor.ended for visitor in self.visitors)
        assert self.quiet < PATIENCE or waiting or not self.visitors, f"no event for {self.quiet} steps"
        for visitor in [v for v in self.visitors if v.over]:
            self.visitors.remove(visitor)
            self.finished += 1
            self._judge(visitor)

    def _judge(self, visitor: Visitor) -> None:
        dead = visitor.engine < self.engines or self.desk.gone
        visitor.judge(self.lowered.pop(visitor.id, []), self.law, CAPACITY, dead=dead)
        for op, value in visitor.values().items():
            known = self._values.setdefault((visitor.key, op), value)
            assert known == value, f"{visitor.key}, {op}: {value!r} in this life, {known!r} before"
        lost = any(getattr(event, "kind", "") == "transport" for event in visitor.told)
        if lost:
            self.seen["programs that lost their engine"] += 1
            if not visitor.cancelled:
                self._again.append(visitor.key)
        elif visitor.run is not None and not visitor.cancelled:
            result = visitor.run.result(0)
            assert self._results.setdefault(visitor.key, result) == result, f"{visitor.key}: {result!r}"


def _lost(batch: Batch) -> NoReturn:
    raise DeviceLost("the device is gone")


_gone = partial(_lost)
