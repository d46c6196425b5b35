"""What a program must produce, recomputed sequence by sequence without an engine: no cache, no batches, no steps.

In: the ops of a program and a `Law`. Out: each op's outcome: tokens and why they ended, scores, or the kind of failure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramet.frontend.ir import ROOT
from ramet.runtime import messages as m
from ramet.runtime.batch import U32
from ramet.runtime.jump import run

from .law import Law
from .mazes import Maze, Words, number_of

Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`kind` is empty, or that of the failure. `tokens`: what the op added to its sequence (a Put: its value), for a
    Generate with `logprobs` and `tops` where asked for."""

    kind: str = ""
    tokens: tuple[int, ...] = ()
    reason: str = ""
    matched: int | None = None
    prompt: int = 0
    logprobs: tuple[float, ...] = ()
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    winner: int = -1
    scores: tuple[float, ...] = ()
    choice_logprobs: tuple[tuple[float, ...], ...] = ()


@dataclass(slots=True)
class _Branch:
    tokens: Tokens
    base: int
    failed: str = ""
    closed: bool = False


class _Failed(Exception):
    def __init__(self, kind: str) -> None:
        self.kind = kind


class Oracle:
    """Outcomes of one program, for sequences of up to `context` tokens and a pool of `capacity` slots (0: enough)."""

    def __init__(self, law: Law, context: int, capacity: int = 0) -> None:
        self.law = law
        self.context = context
        self.capacity = capacity or 1 << 30
        self.longest = min(context, self.capacity)
        self.outcomes: dict[str, Outcome] = {}
        self.branches: dict[str, _Branch] = {}
        self._values: dict[str, tuple[int, ...]] = {}
        self._pending: dict[str, deque[m.AnyOp]] = {}

    def run(self, ops: Sequence[m.AnyOp]) -> dict[str, Outcome]:
        """The outcome of every op with an id, from the whole op stream of a program that was ended after it."""
        self.outcomes, self.branches, self._values = {}, {ROOT: _Branch([], 0)}, {}
        pending: dict[str, deque[m.AnyOp]] = {}
        for op in ops:
            if isinstance(op, m.Put) and op.failed:
                self.outcomes[op.op] = Outcome(kind="generation")
            elif isinstance(op, m.Put):
                self._values[op.op] = op.tokens
                self.outcomes[op.op] = Outcome(tokens=op.tokens)
            else:
                pending.setdefault(op.seq, deque()).append(op)
        self._pending = pending
        while self._advance() or self._close() or self._unblock():
            pass
        for orphans in pending.values():  # their sequence never came to be
            for op in orphans:
                self.outcomes[op.op] = Outcome(kind="generation")
        return self.outcomes

    def _advance(self) -> bool:
        """Carry out every op that can be; False when none could."""
        moved = False
        for name, branch in list(self.branches.items()):
            ops = self._pending.get(name, deque())
            while ops and not self._blocked(branch, ops[0]):
                self._carry_out(branch, ops.popleft())
                moved = True
        return moved

    def _close(self) -> bool:
        """The program ends: branches without further ops are closed, which joins may wait for."""
        idle = [b for name, b in self.branches.items() if not b.closed and not self._pending.get(name)]
        for branch in idle:
            branch.closed = True
        return bool(idle)

    def _unblock(self) -> bool:
        """Fail an op that waits for what never comes."""
        for name, branch in self.branches.items():
            ops = self._pending.get(name)
            if ops:
                self._fail(branch, ops.popleft(), "generation")
                return True
        return False

    def _blocked(self, branch: _Branch, op: m.AnyOp) -> bool:
        if branch.failed or branch.closed:
            return False
        if isinstance(op, m.Append):
            return any(isinstance(p, str) and p not in self._values and not self._broken(p) for p in op.parts)
        if isinstance(op, m.Join):
            others = [self.branches[name] for name in op.branches if name in self.branches]
            return any(not other.closed and not other.failed for other in others)
        return False

    def _broken(self, op: str) -> bool:
        return op in self.outcomes and bool(self.outcomes[op].kind)

    def _fail(self, branch: _Branch, op: m.AnyOp, kind: str) -> None:
        branch.failed = branch.failed or kind
        self.outcomes[op.op] = Outcome(kind=kind)
        if isinstance(op, m.Fork):
            for name in op.into:
                self.branches[name] = _Branch([], 0, failed=branch.failed)

    def _carry_out(self, branch: _Branch, op: m.AnyOp) -> None:
        if isinstance(op, m.Close):
            branch.closed = True
        elif branch.closed:
            self.outcomes[op.op] = Outcome(kind="generation")
        elif branch.failed:
            self._fail(branch, op, branch.failed)
        else:
            try:
                self.outcomes[op.op] = self._outcome(branch, op)
            except _Failed as failure:
                self._fail(branch, op, failure.kind)

    def _outcome(self, branch: _Branch, op: m.AnyOp) -> Outcome:
        if isinstance(op, m.Append):
            parts = [self._value(p) if isinstance(p, str) else p for p in op.parts]
            return self._extend(branch, [t for part in parts for t in part])
        if isinstance(op, m.Join):
            return self._extend(branch, self._joined(op))
        if isinstance(op, m.Fork):
            for name in op.into:
                self.branches[name] = _Branch(list(branch.tokens), len(branch.tokens))
            return Outcome()
        if isinstance(op, m.Generate):
            return self._generate(branch, op)
        if isinstance(op, m.Choose):
            return self._choose(branch, op)
        if isinstance(op, m.Score):
            return self._score(branch, op)
        raise TypeError(f"the oracle knows no {type(op).__name__}")

    def _value(self, op: str) -> tuple[int, ...]:
        if op not in self._values:
            raise _Failed(self.outcomes[op].kind)
        return self._values[op]

    def _joined(self, op: m.Join) -> Tokens:
        tokens: Tokens = []
        for name in op.branches:
            branch = self.branches.get(name)
            if branch is None or branch.failed:
                raise _Failed(branch.failed if branch else "generation")
            tokens += branch.tokens[branch.base :]
        return tokens

    def _extend(self, branch: _Branch, tokens: Tokens) -> Outcome:
        if len(branch.tokens) + len(tokens) > self.longest:
            raise _Failed("context")
        branch.tokens += tokens
        return Outcome(tokens=tuple(tokens))

    def _generate(self, branch: _Branch, op: m.Generate) -> Outcome:
        sampling, prompt = op.sampling, len(branch.tokens)
        if sampling.stop:
            raise ValueError("the oracle has no text: stop strings are beyond it")
        if not prompt:
            raise _Failed("generation")
        if prompt >= self.longest:
            raise _Failed("context")
        limit = min(sampling.max_tokens or self.longest, self.longest - prompt)
        ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(self.law.eos))
        made: Tokens = []
        logprobs: list[float] = []
        tops: list[tuple[tuple[int, float], ...]] = []
        matched: int | None = None
        if op.grammar:
            return self._constrained(branch, op, limit, ends)
        prefix, draw = self._prefix(branch.tokens), _Draw(self.law, op)
        while len(made) < limit and matched is None:
            token = draw.at(prefix, prompt + len(made), len(made))
            if token < 0:
                raise _Failed("generation")
            if token in ends:
                matched = token
                break
            made.append(token)
            if sampling.logprobs >= 0:
                logprobs.append(self.law.own(prefix, token))
            if sampling.logprobs > 0:
                tops.append(self._top(prefix, sampling.logprobs))
            prefix = self.law.follow(prefix, token, prompt + len(made) - 1)
        branch.tokens += made
        self._values[op.op] = tuple(made)
        reason = "length" if matched is None else "stop"
        return Outcome("", tuple(made), reason, matched, prompt, tuple(logprobs), tuple(tops))

    def _constrained(self, branch: _Branch, op: m.Generate, limit: int, ends: set[int]) -> Outcome:
        text = _Text(op, Maze(number_of(op.grammar)), limit, ends)
        text.jump(fresh=False)
        draw, before = _Draw(self.law, op), self._prefix(branch.tokens)
        while text.reason == "":
            prefix = before
            for i, token in enumerate(text.made, len(branch.tokens)):
                prefix = self.law.follow(prefix, token, i)
            token = draw.at(prefix, len(branch.tokens) + len(text.made), len(text.made), text.allowed())
            if token < 0:
                raise _Failed("generation")
            text.take(token, self.law.own(prefix, token), self._top(prefix, max(op.sampling.logprobs, 0)))
        prompt = len(branch.tokens)
        branch.tokens += text.made
        self._values[op.op] = tuple(text.made)
        logprobs = tuple(text.logprobs) if op.sampling.logprobs >= 0 else ()
        tops = tuple(text.tops) if op.sampling.logprobs > 0 else ()
        return Outcome("", tuple(text.made), text.reason, text.matched, prompt, logprobs, tops)

    def _prefix(self, tokens: Sequence[int]) -> int:
        return int(self.law.prefix(np.array(tokens, np.int32)))

    def _top(self, prefix: int, count: int) -> tuple[tuple[int, float], ...]:
        if not count:
            return ()
        ids, values = self.law.top(np.uint64(prefix), count)
        return tuple(zip(ids.tolist(), values.tolist(), strict=True))

    def _choose(self, branch: _Branch, op: m.Choose) -> Outcome:
        prompt = len(branch.tokens)
        if not prompt:
            raise _Failed("generation")
        inner = len({choice[:i] for choice in op.choices for i in range(1, len(choice))})
        slots = prompt + inner + (inner + len(op.context) if op.context else 0)
        if prompt + max(map(len, op.choices)) > self.context or slots > self.capacity:
            raise _Failed("context")
        rows = [self._logprobs(branch.tokens, choice) for choice in op.choices]
        bare = [self._logprobs(op.context, choice) for choice in op.choices] if op.context else []
        winner, scores = _decide(op.method, rows, bare)
        branch.tokens += op.choices[winner]
        self._values[op.op] = op.choices[winner]
        choice_logprobs = tuple(tuple(row) for row in rows)
        return Outcome(
            tokens=op.choices[winner], prompt=prompt, winner=winner, scores=scores, choice_logprobs=choice_logprobs
        )

    def _score(self, branch: _Branch, op: m.Score) -> Outcome:
        tokens = branch.tokens
        if not tokens:
            raise _Failed("generation")
        self._values[op.op] = ()
        logprobs, tops = [], []
        prefix = self._prefix(tokens[: op.start])
        for p in range(op.start, len(tokens)):
            logprobs.append(self.law.own(prefix, tokens[p]) if p else math.nan)
            tops.append(self._top(prefix, op.top) if p else ())
            prefix = self.law.follow(prefix, tokens[p], p)
        return Outcome(
            tokens=tuple(tokens[op.start :]),
            reason="stop",
            prompt=len(tokens),
            logprobs=tuple(logprobs),
            tops=tuple(tops) if op.top else (),
        )

    def _logprobs(self, prompt: Sequence[int], choice: Sequence[int]) -> list[float]:
        values: list[float] = []
        prefix = self._prefix(prompt)
        for i, token in enumerate(choice, len(prompt)):
            values.append(self.law.own(prefix, token))
            prefix = self.law.follow(prefix, token, i)
        return values


class _Text:
    """A constrained text, one token after the other."""

    def __init__(self, op: m.Generate, automaton: Maze, limit: int, ends: set[int]) -> None:
        self.op = op
        self.automaton = automaton
        self.made: Tokens = []
        self.logprobs: list[float] = []
        self.tops: list[tuple[tuple[int, float], ...]] = []
        self.reason = ""
        self.matched: int | None = None
        self._limit = limit
        self._ends = ends

    def allowed(self) -> U32:
        """The bitmask of what may be sampled."""
        bits = np.zeros(1, np.uint32)
        self.automaton.mask(bits)
        return bits & ~np.uint32(1) if self.op.sampling.ignore_eos else bits

    def take(self, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        """A sampled token, and what is forced behind it."""
        if token in self._ends:
            self.reason, self.matched = "stop", token
            return
        self.automaton.advance([token])
        self._add(token, logprob, top)
        self.jump(fresh=True)

    def _add(self, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        self.made.append(token)
        self.logprobs.append(logprob)
        self.tops.append(top)

    def jump(self, *, fresh: bool) -> None:
        """What follows for certain; only where the promise is that of canonical jumps."""
        if self.op.jump == "canonical" and not self.automaton.complete:
            known = run(self, self.made, Words(), fresh=fresh)  # type: ignore[arg-type]
            if known.instead:
                del self.made[-1], self.logprobs[-1], self.tops[-1]
            for token in known.tokens:
                if token in self._ends or len(self.made) == self._limit:
                    self.reason = "stop" if len(self.made) < self._limit else "length"
                    self.matched = token if self.reason == "stop" else None
                    return
                self._add(token, math.nan, ())
        if self.automaton.complete:
            self.reason = "stop"
        elif len(self.made) >= self._limit:
            self.reason = "length"


class _Draw:
    """The draws of one Generate."""

    def __init__(self, law: Law, op: m.Generate) -> None:
        s = op.sampling
        self._law = law
        self._seed = op.seed & (1 << 64) - 1
        plain = (s.temperature, s.top_p, float(s.top_k), s.min_p)
        penalties = (s.frequency_penalty, s.presence_penalty, s.repetition_penalty)
        self._parameters = tuple(np.array((*plain, *penalties), np.float32).tolist())
        self._penalised = penalties != (0.0, 0.0, 1.0)
        self._bias = []
        if s.logit_bias:
            self._bias.append((np.fromiter(s.logit_bias, np.int32), np.fromiter(s.logit_bias.values(), np.float32)))
        banned = np.array([*law.eos, *s.stop_token_ids], np.int32)
        self._banned = (banned, np.full(len(banned), -np.inf, np.float32))
        self._least = s.min_tokens

    def at(self, prefix: int, position: int, made: int, allowed: U32 | None = None) -> int:
        """The token at `position`, when the op has made so many before."""
        bias = [*self._bias, self._banned] if made < self._least else self._bias
        counted = made if self._penalised else None
        return self._law.pick(prefix, self._parameters, self._seed, position, counted, bias, allowed)


def _decide(method: str, rows: list[list[float]], bare: list[list[float]]) -> tuple[int, tuple[float, ...]]:
    """The winner and, but for the greedy method (whose scores are a matter of presentation), the scores."""
    if method == "greedy_token_selection":
        return _greedy(rows), ()
    gains = (
        [[a - b for a, b in zip(row, base, strict=True)] for row, base in zip(rows, bare, strict=True)]
        if bare
        else rows
    )
    scores = tuple(float(np.mean(row)) for row in (gains if method == "unconditional_likelihood_normalized" else rows))
    return int(np.argmax(scores)), scores


def _greedy(rows: list[list[float]]) -> int:
    """Token by token the most likely choices stay in; one that has ended stands in with its mean. As a matrix."""
    width = max(map(len, rows))
    table = np.array([row + [float(np.mean(row))] * (width - len(row)) for row in rows])
    alive = np.ones(len(rows), bool)
    for column in table.T:
        alive &= column == column[alive].max()
    return int(alive.argmax())
