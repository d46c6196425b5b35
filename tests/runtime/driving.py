"""Drives an `EngineCore` step by step in tests: orders in, results by op out, invariants checked after every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import Runner
from ramet.runtime.config import Limits
from ramet.runtime.engine import EngineCore
from ramet.runtime.grammar.base import Grammars
from ramet.runtime.text import Tokenizer


class ListPort:
    """A port whose orders are a list; `receive` never blocks."""

    def __init__(self) -> None:
        self.orders: list[m.Order] = []
        self.steps: list[m.Step] = []

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        orders, self.orders = self.orders, []
        return orders

    def send(self, step: m.Step) -> None:
        self.steps.append(step)


@dataclass
class Result:
    """What became of an op."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    began: m.Began | None = None
    done: m.Done | m.Chosen | None = None
    failure: m.Failure | None = None

    @property
    def bits(self) -> tuple[object, ...]:
        """All that must be equal to the bit (None for nan, which equals nothing)."""
        logprobs = tuple(None if math.isnan(p) else p for p in self.logprobs)
        return (tuple(self.tokens), logprobs, tuple(self.tops), self.failure and self.failure.message)


class Drive:
    """An engine under test."""

    def __init__(
        self,
        runner: Runner,
        *,
        tokenizer: Tokenizer | None = None,
        eos: tuple[int, ...] = (),
        grammars: Grammars | None = None,
        **limits: object,
    ) -> None:
        self.port = ListPort()
        bounds = Limits(**limits)  # type: ignore[arg-type]
        self.core = EngineCore(runner, self.port, limits=bounds, eos=eos, tokenizer=tokenizer, grammars=grammars)
        self.results: dict[tuple[str, str], Result] = {}
        self.over: dict[str, m.Over] = {}
        self._ops: dict[tuple[str, str], m.AnyOp] = {}
        self._seen = 0
        self._names = 0

    def order(self, *orders: m.Order) -> None:
        """Hand orders over."""
        self.port.orders += orders
        for order in orders:
            if isinstance(order, m.OrderOps):
                self._ops |= {(order.program, op.op): op for op in order.ops}

    def program(self, *ops: m.AnyOp, end: bool = True, namespace: str = "") -> str:
        """Open a program with these ops; its id."""
        self._names += 1
        name = f"p{self._names}"
        self.order(m.OrderOpen(name, namespace), m.OrderOps(name, ops), *([m.OrderEnd(name)] if end else []))
        return name

    def completion(self, prompt: Sequence[int], sampling: Sampling, seed: int = 0) -> str:
        """The two-op program: text, gen."""
        return self.program(m.Append("0.0", "0", (tuple(prompt),)), m.Generate("0.1", "0", sampling, seed))

    def step(self) -> None:
        """One step, then all invariants."""
        self.core.step()
        self.core.check()
        for step in self.port.steps[self._seen :]:
            for news in step.news:
                self._note(news)
        self._seen = len(self.port.steps)

    def _note(self, news: m.AnyNews) -> None:
        if isinstance(news, m.Over):
            assert news.program not in self.over, "two terminal events"
            self.over[news.program] = news
            return
        result = self.results.setdefault((news.program, news.op), Result())
        if isinstance(news, m.Began):
            assert result.began is None, "an op begins twice"
            result.began = news
        elif isinstance(news, m.Sampled | m.Scored):
            result.tokens += news.tokens
            result.logprobs += news.logprobs
            result.tops += news.tops
        elif isinstance(news, m.Done):
            if not isinstance(self._ops.get((news.program, news.op)), m.Score):
                result.tokens = [*result.tokens[: news.keep], *news.tail]
            result.done = news
        elif isinstance(news, m.Chosen):
            result.done = news
            result.logprobs = [p for row in news.logprobs for p in row]
        elif isinstance(news, m.Failure):
            result.failure = news

    def run(self, *programs: str, before: Callable[[int], None] | None = None, limit: int = 5000) -> None:
        """Step until these programs (or all that are live) are over; `before(n)` is called before the n-th step."""
        for n in range(limit):
            wanted = programs or tuple(self.core.programs.live)
            if not self.port.orders and all(name in self.over for name in wanted):
                break
            if before is not None:
                before(n)
            self.step()
        else:
            raise AssertionError(f"not over after {limit} steps: {self.core.stats()}")
        self.step()  # collect the flight that is still in the air

    def __getitem__(self, key: tuple[str, str]) -> Result:
        return self.results[key]
