"""The simulation: random programs through the real step loop on a ledger, with a virtual clock and injected trouble.

In: a seed and a `Scene`. Out: nothing, or the AssertionError of the first broken invariant or wrong answer; `seen`
counts what was done to it.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from ramet.runtime import messages as m
from ramet.runtime.batch import I32
from ramet.runtime.config import Limits
from ramet.runtime.engine import EngineCore

from .customers import Client, cuttable, gated, trapped
from .law import Law
from .ledger import LedgerRunner
from .mazes import Mazes, Words
from .oracle import Oracle
from .programs import Shape, program

PATIENCE = 300  # steps without news in which something must happen, unless a client is what is waited for


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of trouble. Rates per step: a new program, an abort, a flush, a forced retraction, an eviction, a storm
    of aborts, a branch that is cut, a client that vanishes, orders about programs that are over. Rates per call: a
    failed allocation, a device fault. Of the host's values: those that come late, and those that never come. Of the
    ops: those before which the body reads a value. Of the programs: those with a grammar that fails once."""

    capacity: int = 96
    rows: int = 6
    context: int = 64
    limits: Limits = field(default_factory=lambda: Limits(batch_tokens=16, chunk_tokens=8, lease_seconds=3.0))
    shape: Shape = field(default_factory=Shape)
    eos_rate: float = 0.1
    at_once: int = 5
    arrive: float = 0.3
    abort: float = 0.0
    flush: float = 0.0
    retract: float = 0.0
    evict: float = 0.0
    storm: float = 0.0
    cut: float = 0.0
    vanish: float = 0.0
    echo: float = 0.0
    alloc: float = 0.0
    faults: float = 0.0
    late: float = 0.0
    never: float = 0.0
    gates: float = 0.0
    traps: float = 0.0
    namespaces: int = 2


class World:
    """An engine core, its runner, its clients, and the clock."""

    def __init__(self, seed: int, scene: Scene) -> None:
        self.rng = random.Random(seed)
        self.scene = scene
        self.law = Law(scene.shape.vocab, eos=(0,), eos_rate=scene.eos_rate, seed=seed)
        faults = {kind: _calls(self.rng, scene.faults) for kind in ("forward", "sample", "read")}
        self.runner = LedgerRunner(
            self.law, capacity=scene.capacity, rows=scene.rows, context=scene.context, faults=faults
        )
        self.now = 0.0
        self.inbox: list[m.Order] = []
        self.clients: dict[str, Client] = {}
        self.finished = 0
        self.steps = 0
        self.quiet = 0  # steps without news
        self.seen: Counter[str] = Counter()
        self._past: deque[str] = deque(maxlen=8)  # programs that are over
        self._mazes = Mazes(late=seed % 4)
        self.core = EngineCore(
            self.runner,
            self,
            limits=scene.limits,
            eos=(0,),
            clock=lambda: self.now,
            tokenizer=Words() if scene.shape.grammars else None,  # type: ignore[arg-type]
            grammars=self._mazes,
        )
        if scene.alloc:
            self._take = self.core.cache.take
            self.core.cache.take = self._take_or_fail  # type: ignore[method-assign]

    # -- the engine's port

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """All orders since the last call; an engine that would block sees none."""
        orders, self.inbox = self.inbox, []
        return orders

    def send(self, step: m.Step) -> None:
        """News: checked for order as it comes."""
        self.quiet = 0
        for news in step.news:
            client = self.clients.get(news.program)
            assert client is not None, f"{news} of a program that is over"
            client.hear(news)

    # -- the world

    def run(self, steps: int) -> None:
        """Make trouble for so many steps, then let everything end, and look for leaks."""
        for _ in range(steps):
            self._trouble()
            self._step()
        while self.clients:
            for client in self.clients.values():
                self._finish(client)
            self._step()
        self._step()
        self._step()
        assert not self.core.programs.live, "a program that is over is kept"
        self.inbox.append(m.OrderFlush())
        self._step()
        self._count()
        assert not self.seen["leaked slots"], f"{self.seen['leaked slots']} slots leaked"

    def _count(self) -> None:
        scheduler, cache = self.core.scheduler, self.core.cache
        self.seen["leaked slots"] = cache.capacity - cache.slots.free
        self.seen["leases lost"] = scheduler.revocations
        self.seen["retractions"] = scheduler.retractions
        self.seen["tokens evicted"] += cache.evicted
        self.seen["broken grammars"] = len(self._mazes.sprung)
        self.seen["device faults"] = self.runner.faulted

    def _trouble(self) -> None:
        rng, scene = self.rng, self.scene
        if len(self.clients) < scene.at_once and rng.random() < scene.arrive:
            self._arrive()
        for client in list(self.clients.values()):
            self._live(client)
        if rng.random() < scene.storm:
            self.seen["cancel storms"] += 1
            for client in self.clients.values():
                if rng.random() < 0.7:
                    self._abort(client)
        if rng.random() < scene.flush:
            self.seen["flushes"] += 1
            self.inbox.append(m.OrderFlush())
        if rng.random() < scene.retract and self.core.scheduler.running:
            self._retract(rng.choice(list(self.core.scheduler.running)))
        if rng.random() < scene.evict:
            self._evict(rng.randint(1, scene.capacity))
        if rng.random() < scene.echo:
            self._echo()

    def _live(self, client: Client) -> None:
        """What a client does in a step: it speaks, or vanishes, or changes its mind."""
        rng, scene, many = self.rng, self.scene, max(len(self.clients), 1)
        if client.vanished:
            if self.now >= client.aborts_at and not client.aborted:
                self._abort(client)
            return
        if rng.random() < 0.4:
            self._say(client, client.next_ops(rng.randint(1, 6)))
        self._say(client, client.values_due(self.now))
        if rng.random() < scene.abort / many:
            self._abort(client)
        if rng.random() < scene.vanish / many:
            self.seen["clients vanished"] += 1
            client.aborts_at = self.now + rng.uniform(0, 8)
        if rng.random() < scene.cut / many:
            self._cut(client)

    def _abort(self, client: Client) -> None:
        client.aborted = True
        times = self.rng.randint(1, 2)
        self.seen["aborts"] += 1
        self.seen["double aborts"] += times - 1
        self.inbox += [m.OrderAbort(client.name)] * times

    def _cut(self, client: Client) -> None:
        branches = [b for b in cuttable(client.ops) if b not in client.cut]
        if branches:
            branch = self.rng.choice(branches)
            client.cut.add(branch)
            self.seen["branches cut"] += 1
            self.inbox.append(m.OrderOps(client.name, (m.Close(f"{branch}.cut", branch, now=True),)))

    def _retract(self, victim: object) -> None:
        task = getattr(victim, "task", None)
        if not getattr(task, "launched", False) and not len(getattr(task, "lent", ())):
            self.seen["forced retractions"] += 1
            self.core.scheduler.retract(victim)  # type: ignore[arg-type]

    def _evict(self, count: int) -> None:
        gone = self.core.cache.tree.evict(count)
        self.seen["forced evictions"] += 1
        self.seen["tokens evicted"] += len(gone)
        if len(gone):
            self.core.cache.slots.release(gone)

    def _take_or_fail(self, count: int, after: int = -1) -> I32 | None:
        if self.rng.random() < self.scene.alloc:
            self.seen["failed allocations"] += 1
            return None
        return self._take(count, after)

    def _echo(self) -> None:
        """Orders that come late, or name nobody: no program may notice."""
        old = self.rng.choice([*self._past, "nobody"])
        alive = [name[:-1] for name in self.clients]
        strange = self.rng.choice([old, *(name for name in alive if name not in self.clients)])
        self.seen["late orders"] += 1
        self.inbox.append(
            self.rng.choice(
                (
                    m.OrderAbort(strange),
                    m.OrderEnd(strange),
                    m.OrderOps(strange, (m.Append("0.0", "0", ((1, 2, 3),)), m.Close("0.1", "0", now=True))),
                )
            )
        )

    # -- clients

    def _arrive(self) -> None:
        rng, scene = self.rng, self.scene
        name = f"p{self.finished + len(self.clients)}-{self.steps}"
        ops = program(rng, scene.shape)
        late = {op.op for op in ops if isinstance(op, m.Put) and rng.random() < scene.late}
        never = {op for op in late if rng.random() < scene.never}
        self.seen["late values"] += len(late - never)
        self.seen["values that never came"] += len(never)
        if rng.random() < scene.traps:
            ops = trapped(ops, rng, name)
        ops = [op for op in ops if op.op not in never]
        expected = Oracle(self.law, scene.context, scene.capacity).run(ops)
        client = Client(name, ops, expected, deque(op for op in ops if op.op not in late))
        client.late = [(self.now + rng.uniform(0, 12), op) for op in ops if isinstance(op, m.Put) and op.op in late]
        client.gates = gated(ops, rng, scene.gates)
        self.clients[name] = client
        space = f"ns{rng.randrange(scene.namespaces)}"
        self.inbox.append(m.OrderOpen(name, space, rng.randrange(2), ("", "a", "b")[len(ops) % 3]))

    def _say(self, client: Client, ops: list[m.AnyOp] | list[m.Put]) -> None:
        if ops:
            self.inbox.append(m.OrderOps(client.name, tuple(ops)))
        if not (client.unsent or client.late or client.ended):
            client.ended = True
            self.inbox.append(m.OrderEnd(client.name))

    def _finish(self, client: Client) -> None:
        """Nobody waits any more: all that is left goes out."""
        if client.vanished:
            if not client.aborted:
                self._abort(client)
        elif not client.ended:
            self._say(client, [*client.next_ops(1 << 30, patient=False), *client.values_due(math.inf)])

    # -- after each step

    def _step(self) -> None:
        self.now += self.rng.random()
        self.steps += 1
        self.quiet += 1
        self.core.step()
        if self.runner.broken is not None:
            raise self.runner.broken
        self._check()
        for client in [c for c in self.clients.values() if c.over is not None]:
            del self.clients[client.name]
            self._past.append(client.name)
            self.finished += 1
            client.judge(self._excuse(client), steady=not self.runner.faulted)

    def _check(self) -> None:
        self.core.check()
        free = self.core.cache.slots.is_free(np.arange(self.runner.capacity, dtype=np.int32))
        self.runner.poison(np.flatnonzero(free).astype(np.int32))
        if self.steps % 16 == 0:
            self._check_tree()
        self._check_leases()
        waiting = any(not c.ended for c in self.clients.values())
        assert self.quiet < PATIENCE or waiting or not self.clients, (
            f"no news for {self.quiet} steps: {list(self.clients)}"
        )

    def _check_leases(self) -> None:
        """Who holds KV is somewhere where it can be taken back, and nobody rests for longer than its lease."""
        scheduler, most = self.core.scheduler, self.scene.limits.lease_seconds
        for live in self.core.programs.live.values():
            for seq in live.sequences.values():
                if seq.node is not None:
                    known = seq in scheduler.running or seq in scheduler.waiting or seq in scheduler.resting
                    assert known, f"{seq.name} of {live.id} holds KV, and nobody knows"
        for seq in scheduler.resting:
            assert self.now - seq.since <= most, f"{seq.name} rests for {self.now - seq.since} s, its lease is {most} s"

    def _check_tree(self) -> None:
        tree = self.core.cache.tree
        for node in tree.nodes():
            if not node.children:
                assert self.runner.spells(tree.path_slots(node), tree.path_tokens(node)), f"{node} holds other tokens"
        stats = self.core.stats()
        assert min(stats.kv_free, stats.kv_cached, stats.kv_used) >= 0, f"{stats}"
        assert stats.kv_free + stats.kv_cached + stats.kv_used == stats.kv_total, f"{stats}"

    def _excuse(self, client: Client) -> str:
        if client.name in self.runner.struck:
            return "a batch of it failed"
        return "a grammar of it failed" if client.name in self._mazes.sprung else ""


def _calls(rng: random.Random, rate: float) -> set[int]:
    """The calls that fail, of the first 20,000: each with probability `rate`."""
    calls: set[int] = set()
    at = -1
    while rate and at < 20_000:
        at += 1 + int(math.log(1.0 - rng.random()) / math.log(1.0 - rate))
        calls.add(at)
    return calls
