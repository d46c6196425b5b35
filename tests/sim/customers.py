"""A program as its client sees it, and what may become of it.

In: the ops that it sends, the oracle's outcomes, the news that came. Out: nothing, or the AssertionError of the first
answer that is wrong, missing, or not excused by what was done to this very program.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest

from ramet.runtime import messages as m

from .oracle import Outcome

EXCUSED = ("generation", "constraint")  # of ops in a program to which something was done
CUT_KINDS = ("aborted", "generation")  # of ops on a branch that was cut, and of what needs them


@dataclass(slots=True)
class Client:
    """`unsent` goes out in order. `late` are values of the host, with the times at which it gives them. Behind a gate
    (an op that has to be answered) its body has to read a value first. `cut`: the branches that it stops by force."""

    name: str
    ops: list[m.AnyOp]
    expected: dict[str, Outcome]
    unsent: deque[m.AnyOp]
    late: list[tuple[float, m.Put]] = field(default_factory=list)
    gates: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    ended: bool = False
    aborted: bool = False
    aborts_at: float = -1.0  # it has vanished; its server notices then
    over: m.Over | None = None
    began: dict[str, m.Began] = field(default_factory=dict)
    sampled: dict[str, list[m.Sampled | m.Scored]] = field(default_factory=dict)
    results: dict[str, m.AnyNews] = field(default_factory=dict)

    @property
    def vanished(self) -> bool:
        """Nothing is heard of it any more."""
        return self.aborts_at >= 0

    def hear(self, news: m.AnyNews) -> None:
        """One piece of news: in order, each thing once."""
        assert self.over is None, f"{news} after the end of its program"
        if isinstance(news, m.Over):
            self.over = news
        elif isinstance(news, m.Sampled | m.Scored):
            assert isinstance(news, m.Scored) or news.op in self.began, f"{news} before its beginning"
            assert news.op not in self.results, f"{news} after its end"
            self.sampled.setdefault(news.op, []).append(news)
        elif isinstance(news, m.Began):
            assert news.op not in self.began, f"{news} begins twice"
            self.began[news.op] = news
        else:
            assert news.op not in self.results, f"two results: {self.results[news.op]} and {news}"
            self.results[news.op] = news

    def next_ops(self, count: int, *, patient: bool = True) -> list[m.AnyOp]:
        """Up to so many ops that go out now; those behind a gate only when nobody is patient any more."""
        batch: list[m.AnyOp] = []
        while self.unsent and len(batch) < count:
            gate = self.gates.get(self.unsent[0].op)
            if patient and gate is not None and gate not in self.results:
                break
            batch.append(self.unsent.popleft())
        self.sent |= {op.op for op in batch}
        return batch

    def values_due(self, now: float) -> list[m.Put]:
        """The values of the host that are there by now."""
        due = [put for at, put in self.late if at <= now]
        self.late = [(at, put) for at, put in self.late if at > now]
        self.sent |= {put.op for put in due}
        return due

    def is_cut(self, seq: str) -> bool:
        """Whether a sequence is on, or below, a branch that was cut."""
        return any(seq == branch or seq.startswith(branch + ".") for branch in self.cut)

    # -- judgement

    def judge(self, excuse: str = "", *, steady: bool = True) -> None:
        """The program is over. `excuse`: why its ops may fail (a device error in a batch of it, a broken grammar of
        its own). Not `steady`: what it had computed was lost once, with all that the cache had."""
        over = self.over
        assert over is not None, f"{self.name} is not over"
        assert over.kind == ("aborted" if over.kind and self.aborted else ""), f"{over}"
        whole = not over.kind
        assert not (whole and (self.unsent or self.late)), "the program ended before its ops were sent"
        for op in self.ops:
            if op.op in self.sent:
                self._judge_op(op, whole, excuse, steady=steady)

    def _judge_op(self, op: m.AnyOp, whole: bool, excuse: str, *, steady: bool) -> None:
        result, expected = self.results.get(op.op), self.expected.get(op.op)
        if isinstance(result, m.Failure):
            allowed = {expected.kind} if expected is not None else set()
            allowed.update(CUT_KINDS if self.is_cut(op.seq) else (), EXCUSED if excuse else ())
            assert result.kind in allowed, f"{result}, not {expected}; {excuse or 'nothing was done to it'}"
        elif result is not None:
            assert expected is not None, f"{op}: {result}, and nothing was expected"
            assert not expected.kind, f"{op}: {result}, not {expected}"
            _compare(op, result, expected, self.sampled.get(op.op, []))
            if isinstance(result, m.Done | m.Chosen) and steady:
                began = self.began[op.op]
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


def cuttable(ops: list[m.AnyOp]) -> list[str]:
    """Branches on which nothing outside of them waits: neither a join nor a reference."""
    found = []
    for op in ops:
        for branch in op.into if isinstance(op, m.Fork) else ():
            inside = {o.op for o in ops if o.seq == branch or o.seq.startswith(branch + ".")}
            needed = [
                part for o in ops if isinstance(o, m.Append) and o.op not in inside for part in o.parts
            ]  # texts and names of values
            joined = [b for o in ops if isinstance(o, m.Join) and o.op not in inside for b in o.branches]
            below = [b for b in joined if b == branch or b.startswith(branch + ".")]
            if not below and not inside.intersection(part for part in needed if isinstance(part, str)):
                found.append(branch)
    return found


def gated(ops: list[m.AnyOp], rng: random.Random, rate: float) -> dict[str, str]:
    """Gates: before some ops the body reads what the last call before them gave."""
    gates: dict[str, str] = {}
    call = ""
    for op in ops:
        if call and rng.random() < rate:
            gates[op.op] = call
        if isinstance(op, (m.Generate, m.Choose)):
            call = op.op
    return gates


def trapped(ops: list[m.AnyOp], rng: random.Random, name: str) -> list[m.AnyOp]:
    """The same with a grammar of which one fails once, if there is one."""
    held = [i for i, op in enumerate(ops) if isinstance(op, m.Generate) and op.grammar]
    if not held:
        return ops
    i = rng.choice(held)
    op = ops[i]
    assert isinstance(op, m.Generate), "chosen among these"
    return [*ops[:i], replace_grammar(op, f"{op.grammar}@{rng.randint(0, 12)}@{name}"), *ops[i + 1 :]]


def replace_grammar(op: m.Generate, grammar: str) -> m.Generate:
    """The op under another grammar."""
    return m.Generate(op.op, op.seq, op.sampling, op.seed, grammar, op.jump, op.longest)
