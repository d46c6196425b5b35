"""Agents under memory pressure: private contexts, tools that take time, a pool that holds half of their peaks.

In: a policy and a seed. Out: what was computed and when each agent was done, in virtual seconds of a simple device: a
step takes `STEP_SECONDS`, and `TOKEN_SECONDS` for each token. Every answer is compared with the oracle's, and all
invariants are checked after every step. (The workload `agents_pressure`: 12 agents of 6 turns, tools of 50 to 300 ms.)
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.config import Limits, Policy
from ramet.runtime.engine import EngineCore

from .law import Law
from .ledger import LedgerRunner
from .oracle import Oracle

STEP_SECONDS, TOKEN_SECONDS = 0.008, 0.0005
SESSION, ACT, ANSWER, RESULT = 300, 3, 24, (8, 20)  # tokens of a session's text, before an act, of an act, of a result
TOOL_SECONDS = (0.05, 0.3)
VOCAB = 64


@dataclass(slots=True)
class Agent:
    """One agent. `turns` are its ops and the value of the tool that follows them; `told` counts those that were
    sent."""

    name: str
    turns: list[tuple[tuple[m.AnyOp, ...], m.Put]]
    told: int = 0
    answers: dict[str, list[int]] = field(default_factory=dict)
    finished: float = -1.0

    @property
    def ops(self) -> list[m.AnyOp]:
        """All that it does, as if the tools had answered before."""
        return [op for ops, put in self.turns for op in (*ops, put)]

    @property
    def peak(self) -> int:
        """Tokens that it has in the end."""
        parts = [
            len(part) for op in self.ops if isinstance(op, m.Append) for part in op.parts if not isinstance(part, str)
        ]
        return sum(parts) + sum(len(put.tokens) for _, put in self.turns[:-1]) + ANSWER * len(self.turns)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a policy did. `mean`: of the agents' completion times, in virtual seconds."""

    policy: str
    computed: int
    distinct: int
    steps: int
    mean: float
    last: float
    retractions: int
    revocations: int

    def __str__(self) -> str:
        return (
            f"{self.policy}: {self.computed} tokens computed, {self.waste:.2f} x the distinct ones; completion "
            f"{self.mean:.2f} s in the mean, {self.last:.2f} s of the last; {self.steps} steps; "
            f"{self.revocations} leases revoked, {self.retractions} retractions"
        )

    @property
    def waste(self) -> float:
        """Tokens computed for each distinct one."""
        return self.computed / self.distinct


def agent(rng: random.Random, number: int, turns: int) -> Agent:
    """An agent with a text of its own."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCAB) for _ in range(count))

    made: list[tuple[tuple[m.AnyOp, ...], m.Put]] = []
    before: m.Put | None = None
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    for turn in range(turns):
        base = 4 * turn
        text: tuple[tuple[int, ...] | str, ...] = ((number + 1, *tokens(SESSION)),)
        heard = [m.Append(f"0.{base}", "0", text if before is None else (before.op,))]
        act = m.Append(f"0.{base + 1}", "0", (tokens(ACT),))
        before = m.Put(f"0.{base + 3}", "0", tokens(rng.randint(*RESULT)))
        made.append(((*heard, act, m.Generate(f"0.{base + 2}", "0", sampling, rng.getrandbits(63))), before))
    return Agent(f"agent {number}", made)


class Pressure:
    """The engine, its agents and the clock. With `declared` an agent sends all its ops at once, else turn by turn."""

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int = 0,
        count: int = 12,
        turns: int = 6,
        share: float = 0.45,
        declared: bool = True,
        batch: int = 512,
    ) -> None:
        self._rng = random.Random(seed)
        self._declared = declared
        self._turns, self._count = turns, count
        self.law = Law(VOCAB, seed=seed)
        self.agents = [agent(self._rng, i, turns) for i in range(count)]
        capacity = int(share * sum(each.peak for each in self.agents))
        self.runner = LedgerRunner(self.law, capacity=capacity, rows=32, context=1024)
        self.now = 0.0
        self._inbox: list[m.Order] = []
        self._tools: list[tuple[float, str, m.Put]] = []
        limits = Limits(batch_tokens=batch, chunk_tokens=batch, policy=policy)
        self.core = EngineCore(self.runner, self, limits=limits, clock=lambda: self.now)
        self._policy = policy

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """The engine's port. An engine that waits, waits for the next tool, or for so many seconds."""
        if block and not self._inbox:
            ends = [end for end, _, _ in self._tools]
            self.now = max(
                self.now, min([*ends, *([self.now + seconds] if seconds is not None else [])], default=self.now)
            )
        for tool in sorted(each for each in self._tools if each[0] <= self.now):
            self._tools.remove(tool)
            self._heard(tool[1], tool[2])
        orders, self._inbox = self._inbox, []
        return orders

    def _heard(self, name: str, put: m.Put) -> None:
        each = next(a for a in self.agents if a.name == name)
        self._inbox.append(m.OrderOps(name, (put,)))
        self._tell(each)

    def _tell(self, each: Agent) -> None:
        """The next turn, or all of them, and the end when no tool is left to answer."""
        if each.told == 0 or not self._declared:
            turns = each.turns if self._declared else each.turns[each.told : each.told + 1]
            self._inbox.append(m.OrderOps(each.name, tuple(op for ops, _ in turns for op in ops)))
        each.told += 1
        if each.told == len(each.turns):
            self._inbox.append(m.OrderEnd(each.name))

    def send(self, step: m.Step) -> None:
        """The engine's port: answers, and the tools that they call."""
        for news in step.news:
            each = next(a for a in self.agents if a.name == news.program)
            if isinstance(news, m.Sampled):
                each.answers.setdefault(news.op, []).extend(news.tokens)
            elif isinstance(news, m.Done):
                turn = next(i for i, (ops, _) in enumerate(each.turns) if ops[-1].op == news.op)
                if turn + 1 < len(each.turns):
                    self._tools.append((self.now + self._rng.uniform(*TOOL_SECONDS), each.name, each.turns[turn][1]))
            elif isinstance(news, m.Over):
                assert not news.kind, news
                each.finished = self.now

    def run(self) -> Figures:
        """All agents, to their ends."""
        self._rng.seed(1)  # the tools take the same time, whatever was made before
        for each in self.agents:
            self._inbox.append(m.OrderOpen(each.name, name="agent"))
            self._tell(each)
        start, computed, steps = self.now, self.core.scheduler.computed, self.core.scheduler.steps
        while any(each.finished < 0 for each in self.agents):
            before = self.core.scheduler.computed
            self.core.step()
            self.core.check()
            tokens = self.core.scheduler.computed - before
            self.now += STEP_SECONDS + TOKEN_SECONDS * tokens if tokens else 0.0
        for _ in range(2):
            self.core.step()
        self._judge()
        scheduler, ends = self.core.scheduler, [each.finished - start for each in self.agents]
        return Figures(
            self._policy,
            scheduler.computed - computed,
            sum(each.peak - 1 for each in self.agents),
            scheduler.steps - steps,
            sum(ends) / len(ends),
            max(ends),
            scheduler.retractions,
            scheduler.revocations,
        )

    def again(self) -> Figures:
        """Other agents of the same kind on the same engine, which has learned from the first ones."""
        self.agents = [agent(self._rng, i, self._turns) for i in range(self._count)]
        for each in self.agents:
            each.name += " again"
        self.core.cache.flush()
        return self.run()

    def _judge(self) -> None:
        for each in self.agents:
            expected = Oracle(self.law, 1024, self.runner.capacity).run(each.ops)
            for op, tokens in each.answers.items():
                assert tuple(tokens) == expected[op].tokens, f"{each.name}, {op}"
            assert len(each.answers) == len(each.turns), f"{each.name}: {sorted(each.answers)}"
