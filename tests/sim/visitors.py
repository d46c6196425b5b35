"""Programs in the world of text, and what their clients may hear of them.

In: a random generator. Out: operations of `frontend.ir`; a `Visitor` that keeps the events of one life of a program
and compares them with the oracle, and with its other lives.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from ramet.frontend import ir
from ramet.frontend.backends.base import Session
from ramet.frontend.plan_run import PlanRun
from ramet.runtime import messages as m

from .desk import CONTEXT, language
from .law import Law
from .oracle import Oracle

WORDS = ("a tree", " and", " one more", "\n", "é", " of 7", " the", "", " sky. ")
TERMINAL = (ir.Finished, ir.Failed, ir.Forked, ir.Joined)


@dataclass(slots=True)
class Visitor:
    """One life of a program: `key` says which program it is, `unsent` what it has still to send (nothing for a plan,
    which `run` is). `engine` is the number of the engine that it was opened on."""

    key: str
    engine: int
    session: Session | None = None
    run: PlanRun[object] | None = None
    unsent: list[ir.AnyOp] = field(default_factory=list)
    sent: list[ir.AnyOp] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False
    events: list[ir.Event] = field(default_factory=list)

    @property
    def told(self) -> list[ir.Event]:
        """What was heard of it."""
        return self.events if self.run is None else self.run.told

    @property
    def over(self) -> bool:
        """It has had a terminal event."""
        return any(isinstance(event, ir.Ended) for event in self.told)

    @property
    def id(self) -> str:
        """The engine's name for it."""
        session = self.session if self.run is None else self.run._session
        return str(getattr(session, "id", ""))

    def judge(self, lowered: list[m.AnyOp], law: Law, capacity: int, *, dead: bool) -> None:
        """Every promise about its events. `lowered` are its ops as the engine got them; `dead`: its engine is gone."""
        *before, last = self.told
        assert isinstance(last, ir.Ended), f"{self.key}: {last} is not its end"
        assert not any(isinstance(event, ir.Ended) for event in before), f"{self.key}: two ends"
        allowed = {"", "aborted"} if self.cancelled else {""}
        assert last.kind in (allowed | {"transport"} if dead else allowed), f"{self.key}: {last}"
        ends = Counter(event.op for event in before if isinstance(event, TERMINAL))
        asked = [op.id for op in self.sent if isinstance(op, ir.Gen | ir.Select | ir.Fork | ir.Join)]
        assert all(ends[op] == 1 for op in asked), f"{self.key}: ends {ends} of {asked}"
        self._compare(Oracle(law, CONTEXT, capacity), lowered)
        if self.run is None and not last.kind:
            assert not any(isinstance(event, ir.Failed) for event in before), f"{self.key}: {before}"

    def _compare(self, oracle: Oracle, lowered: list[m.AnyOp]) -> None:
        expected, texts = oracle.run(lowered), dict[str, str]()
        for event in self.told:
            if isinstance(event, ir.Token):
                texts[event.op] = texts.get(event.op, "") + event.text
            elif isinstance(event, ir.Finished):
                value = language()[0].decode(expected[event.op].tokens)
                if event.op in texts:
                    assert texts[event.op] == event.value, f"{self.key}: {event.op} streamed {texts[event.op]!r}"
                assert event.value == value, f"{self.key}: {event}, not {value!r}"

    def values(self) -> dict[str, str]:
        """What its calls gave, by operation."""
        return {event.op: event.value for event in self.told if isinstance(event, ir.Finished)}


def script(rng: random.Random) -> list[ir.AnyOp]:
    """A random program in text: calls, branches, joins, and values of the host."""
    ops: list[ir.AnyOp] = [ir.Text(id="0.0", seq="0", parts=("It was " + rng.choice(WORDS),))]
    refs: list[str] = []
    for k in range(1, rng.randint(2, 7)):
        ops += _step(rng, f"0.{k}", k, refs)
    due = [op for op in ops if isinstance(op, ir.Put) and op.due]
    return [*ops, *(ir.Put(id=op.id, seq="0", var=op.var, value="late") for op in due)]


def _step(rng: random.Random, name: str, k: int, refs: list[str]) -> list[ir.AnyOp]:
    kind = rng.random()
    if kind < 0.3:
        parts = (rng.choice(WORDS) + rng.choice(WORDS), *(ir.Ref(ref) for ref in refs[-1:] if rng.random() < 0.5))
        return [ir.Text(id=name, seq="0", parts=parts)]
    if kind < 0.6:
        refs.append(name)
        return [ir.Gen(id=name, seq="0", var=f"v{k}", sampling=_sampling(rng))]
    if kind < 0.75:
        refs.append(name)
        choices = tuple(rng.sample([" yes", " no", " maybe so", " never"], rng.randint(2, 4)))
        return [ir.Select(id=name, seq="0", var=f"v{k}", choices=choices)]
    if kind < 0.85:
        refs.append(name)
        if rng.random() < 0.5:
            return [ir.Put(id=name, seq="0", var=f"v{k}", value="", due=True)]
        return [ir.Put(id=name, seq="0", var=f"v{k}", value=rng.choice(("7", "", "a tool said so")))]
    into = tuple(f"{name}.b{i}" for i in range(rng.randint(1, 3)))
    ops: list[ir.AnyOp] = [ir.Fork(id=name, seq="0", into=into)]
    for i, child in enumerate(into):
        ops.append(ir.Text(id=f"{child}.0", seq=child, parts=(f" {i}: ",)))
        ops.append(ir.Gen(id=f"{child}.1", seq=child, var="said", sampling=_sampling(rng)))
        ops.append(ir.Close(id=f"{child}.2", seq=child))
    if rng.random() < 0.6:
        ops.append(ir.Join(id=f"{name}j", seq="0", branches=into))
    return ops


def _sampling(rng: random.Random) -> ir.Sampling:
    temperature = rng.choice((0.0, 0.8))
    return ir.Sampling(temperature=temperature, max_tokens=rng.randint(1, 6), logprobs=rng.choice((-1, -1, 2)))
