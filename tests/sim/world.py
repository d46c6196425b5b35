"""The simulation: random programs through the real step loop on a ledger, with a virtual clock and injected trouble.

In: a seed and a `Scene`. Out: nothing, or the AssertionError of the first broken invariant or wrong answer.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from ramet.runtime import messages as m
from ramet.runtime.config import Limits
from ramet.runtime.engine import EngineCore

from .law import Law
from .ledger import LedgerRunner
from .mazes import Mazes, Words
from .oracle import Oracle, Outcome
from .programs import Shape, program


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of trouble. Rates are per step: a new program, an abort, a flush, a forced retraction, an eviction."""

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
    faults: float = 0.0
    namespaces: int = 2


@dataclass(slots=True)
class Client:
    """A program as its client sees it."""

    name: str
    ops: list[m.AnyOp]
    expected: dict[str, Outcome]
    unsent: deque[m.AnyOp]
    sent: set[str] = field(default_factory=set)
    ended: bool = False
    aborted: bool = False
    over: m.Over | None = None
    began: dict[str, m.Began] = field(default_factory=dict)
    sampled: dict[str, list[m.Sampled | m.Scored]] = field(default_factory=dict)
    results: dict[str, m.AnyNews] = field(default_factory=dict)


class World:
    """An engine core, its runner, its clients, and the clock."""

    def __init__(self, seed: int, scene: Scene) -> None:
        self.rng = random.Random(seed)
        self.scene = scene
        self.law = Law(scene.shape.vocab, eos=(0,), eos_rate=scene.eos_rate, seed=seed)
        calls = range(100_000) if scene.faults else ()
        faults: Mapping[str, Collection[int]] = {
            kind: {c for c in calls if self.rng.random() < scene.faults} for kind in ("forward", "sample", "read")
        }
        self.runner = LedgerRunner(
            self.law, capacity=scene.capacity, rows=scene.rows, context=scene.context, faults=faults
        )
        self.now = 0.0
        self.inbox: list[m.Order] = []
        self.clients: dict[str, Client] = {}
        self.finished = 0
        self.steps = 0
        self.quiet = 0  # steps without news
        self.core = EngineCore(
            self.runner,
            self,
            limits=scene.limits,
            eos=(0,),
            clock=lambda: self.now,
            tokenizer=Words() if scene.shape.grammars else None,  # type: ignore[arg-type]
            grammars=Mazes(late=seed % 4),
        )

    # -- the engine's port

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """All orders since the last call; an engine that would block sees none."""
        orders, self.inbox = self.inbox, []
        return orders

    def send(self, step: m.Step) -> None:
        """News: checked for order as it comes."""
        self.quiet = 0
        for news in step.news:
            client = self.clients[news.program]
            assert client.over is None, f"{news} after the end of its program"
            if isinstance(news, m.Over):
                client.over = news
            elif isinstance(news, m.Sampled | m.Scored):
                assert isinstance(news, m.Scored) or news.op in client.began, f"{news} before its beginning"
                client.sampled.setdefault(news.op, []).append(news)
            elif isinstance(news, m.Began):
                assert news.op not in client.began, f"{news} begins twice"
                client.began[news.op] = news
            else:
                assert news.op not in client.results, f"two results: {client.results[news.op]} and {news}"
                client.results[news.op] = news

    # -- the world

    def run(self, steps: int) -> None:
        """Make trouble for so many steps, then let everything end, and look for leaks."""
        for _ in range(steps):
            self._trouble()
            self._step()
        while self.clients:
            for client in self.clients.values():
                self._say(client, len(client.unsent))
            self._step()
        self._step()
        self._step()
        assert not self.core.programs.live
        self.inbox.append(m.OrderFlush())
        self._step()
        assert self.core.cache.slots.free == self.runner.capacity, "slots leaked"

    def _trouble(self) -> None:
        rng, scene = self.rng, self.scene
        if len(self.clients) < scene.at_once and rng.random() < scene.arrive:
            self._arrive()
        for client in list(self.clients.values()):
            if rng.random() < 0.4:
                self._say(client, rng.randint(1, 6))
            if rng.random() < scene.abort / max(len(self.clients), 1):
                client.aborted = True
                self.inbox += [m.OrderAbort(client.name)] * rng.randint(1, 2)
        if rng.random() < scene.flush:
            self.inbox.append(m.OrderFlush())
        if rng.random() < scene.retract and self.core.scheduler.running:
            victim = rng.choice(list(self.core.scheduler.running))
            if not getattr(victim.task, "launched", False) and not len(getattr(victim.task, "lent", ())):
                self.core.scheduler.retract(victim)
        if rng.random() < scene.evict:
            self._evict(rng.randint(1, scene.capacity))

    def _evict(self, count: int) -> None:
        gone = self.core.cache.tree.evict(count)
        if len(gone):
            self.core.cache.slots.release(gone)

    def _arrive(self) -> None:
        name = f"p{self.finished + len(self.clients)}-{self.steps}"
        ops = program(self.rng, self.scene.shape)
        expected = Oracle(self.law, self.scene.context, self.scene.capacity).run(ops)
        self.clients[name] = Client(name, ops, expected, deque(ops))
        space = f"ns{self.rng.randrange(self.scene.namespaces)}"
        self.inbox.append(m.OrderOpen(name, space, self.rng.randrange(2), ("", "a", "b")[len(ops) % 3]))

    def _say(self, client: Client, count: int) -> None:
        batch = [client.unsent.popleft() for _ in range(min(count, len(client.unsent)))]
        if batch:
            client.sent |= {op.op for op in batch}
            self.inbox.append(m.OrderOps(client.name, tuple(batch)))
        if not client.unsent and not client.ended:
            client.ended = True
            self.inbox.append(m.OrderEnd(client.name))

    def _step(self) -> None:
        self.now += self.rng.random()
        self.steps += 1
        self.quiet += 1
        self.core.step()
        if self.runner.broken is not None:
            raise self.runner.broken
        self.core.check()
        free = self.core.cache.slots.is_free(np.arange(self.runner.capacity, dtype=np.int32))
        self.runner.poison(np.flatnonzero(free).astype(np.int32))
        if self.steps % 16 == 0:
            self._check_tree()
        waiting = any(not c.ended for c in self.clients.values())
        assert self.quiet < 300 or waiting or not self.clients, f"no news for {self.quiet} steps: {list(self.clients)}"
        for client in [c for c in self.clients.values() if c.over is not None]:
            del self.clients[client.name]
            self.finished += 1
            self._judge(client)

    def _check_tree(self) -> None:
        tree = self.core.cache.tree
        for node in tree.nodes():
            if not node.children:
                assert self.runner.spells(tree.path_slots(node), tree.path_tokens(node)), f"{node} holds other tokens"

    # -- answers

    def _judge(self, client: Client) -> None:
        over = client.over
        assert over is not None
        assert over.kind == ("aborted" if over.kind and client.aborted else ""), f"{over}"
        whole = not over.kind
        assert not (whole and client.unsent), "the program ended before its ops were sent"
        for op in client.ops:
            if op.op not in client.sent:
                continue
            result, expected = client.results.get(op.op), client.expected.get(op.op)
            if isinstance(result, m.Failure):
                faulty = self.scene.faults > 0
                assert faulty or (expected is not None and expected.kind == result.kind), f"{result}, not {expected}"
            elif result is not None:
                assert expected is not None
                assert not expected.kind, f"{op}: {result}, not {expected}"
                _compare(op, result, expected, client.sampled.get(op.op, []))
                if isinstance(result, m.Done | m.Chosen) and not self.scene.faults:  # which make it compute again
                    began = client.began[op.op]
                    assert (began.prompt, began.cached) == (result.prompt, result.cached), f"{began}, and {result}"
            elif whole and expected is not None:
                silent = isinstance(op, (m.Append, m.Put, m.Close)) and not expected.kind
                assert silent, f"{op} has no result, expected {expected}"


def _compare(op: m.AnyOp, result: m.AnyNews, expected: Outcome, sampled: list[m.Sampled | m.Scored]) -> None:
    if isinstance(result, m.Done):
        said = tuple(t for news in sampled for t in news.tokens)
        tokens = said if isinstance(op, m.Score) else said[: result.keep] + result.tail
        assert tokens == expected.tokens, f"{op}: sampled {tokens}, not {expected.tokens}"
        assert (result.reason, result.matched) == (expected.reason, expected.matched)
        assert result.prompt == expected.prompt
        assert 0 <= result.cached <= result.prompt, f"{result}"
        logprobs = [v for news in sampled for v in news.logprobs]
        assert np.array_equal(logprobs, expected.logprobs, equal_nan=True), f"{op}: {logprobs}, not {expected.logprobs}"
        assert tuple(row for news in sampled for row in news.tops) == expected.tops
    elif isinstance(result, m.Chosen):
        assert result.winner == expected.winner, f"{op}: chose {result}, not {expected}"
        assert result.logprobs == expected.choice_logprobs
        if expected.scores:
            assert result.scores == pytest.approx(expected.scores, abs=1e-6)
        assert result.prompt == expected.prompt
    elif isinstance(result, m.Merged):
        assert result.tokens == expected.tokens
    else:
        assert isinstance(result, m.Branched), f"{result} for {op}"
