"""What programs sent and computed. In: a backend, its tokenizer. Out: submissions, first texts, distinct tokens.

Distinct tokens are the nodes of one tree over all sequences of a workload: every token that some call had to have in
the KV cache, once, however many calls and branches share it. No order of computing needs fewer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from ramet.frontend import ir
from ramet.frontend.backends.base import Backend, Deliver, Session
from ramet.frontend.backends.through import Through
from ramet.runtime import messages as m
from ramet.runtime.lower import Lowering

CALLS = (ir.Gen, ir.Select, ir.Score)


@dataclass(slots=True)
class Told:
    """One program: what was sent, each submission a list; values by op; seconds on `time.perf_counter`'s clock."""

    header: ir.Header
    began: float
    sent: list[tuple[ir.AnyOp, ...]] = field(default_factory=list)
    values: dict[str, list[int]] = field(default_factory=dict)
    usage: ir.Usage = field(default_factory=ir.Usage)
    first: float | None = None
    ended: float | None = None

    @property
    def submissions(self) -> int:
        """Submissions that ask for something."""
        return sum(any(isinstance(op, CALLS) for op in ops) for ops in self.sent)

    def note(self, event: ir.Event) -> None:
        """An event has come."""
        if isinstance(event, ir.Token):
            self.first = self.first or time.perf_counter()
            self.values.setdefault(event.op, []).extend(event.tokens)
        elif isinstance(event, ir.Finished):
            self.first = self.first or time.perf_counter()
            if event.meta.tokens:
                self.values[event.op] = list(event.meta.tokens)
        elif isinstance(event, ir.Ended):
            self.usage, self.ended = event.usage, time.perf_counter()


class _Listening:
    def __init__(self, session: Session, told: Told) -> None:
        self._session = session
        self._told = told

    def send(self, ops: Sequence[ir.AnyOp]) -> None:
        self._session.send(ops)
        self._told.sent.append(tuple(ops))

    def end(self) -> None:
        self._session.end()

    def cancel(self) -> None:
        self._session.cancel()


class Listener(Through):
    """A backend that remembers what passes on its way to another."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.programs: list[Told] = []

    def open(self, header: ir.Header, deliver: Deliver) -> Session:
        """See `Backend.open`."""
        told = Told(header, time.perf_counter())
        self.programs.append(told)

        def both(event: ir.Event) -> None:
            told.note(event)
            deliver(event)

        return _Listening(self.backend.open(header, both), told)

    def close(self) -> None:
        """Leaves the other open."""


# -- distinct tokens


@dataclass(slots=True)
class _Line:
    """A sequence: its tokens, where it was forked, the tree's nodes of those that were needed in the cache."""

    tokens: list[int] = field(default_factory=list)
    base: int = 0
    nodes: list[int] = field(default_factory=list)
    waiting: list[m.AnyOp] = field(default_factory=list)
    born: bool = False


class Forest:
    """Adds programs up; `size` is the number of distinct tokens."""

    def __init__(self, lowering: Callable[[int], Lowering]) -> None:
        self._lowering = lowering
        self._tree: dict[tuple[int, int], int] = {}

    @property
    def size(self) -> int:
        """See `Forest`."""
        return len(self._tree)

    def add(self, told: Told) -> None:
        """A program's sequences, as far as its values are known."""
        lowering = self._lowering(told.header.seed)
        ops: list[m.AnyOp] = []
        for sent in told.sent:
            ops += lowering.lower([_free(op) for op in sent])[0]
        ops += lowering.end()
        lines = {ir.ROOT: _Line(born=True)}
        for op in ops:
            if isinstance(op, m.Fork):
                lines.update((name, _Line()) for name in op.into)
            lines[op.seq].waiting.append(op)
        values = {op.op: list(op.tokens) for op in ops if isinstance(op, m.Put)}
        values |= told.values
        while any(self._advance(line, lines, values) for line in list(lines.values())):
            pass

    def _advance(self, line: _Line, lines: dict[str, _Line], values: dict[str, list[int]]) -> bool:
        """Carry out what can be; whether anything could."""
        if not line.born:
            return False
        count = 0
        for op in line.waiting:
            if not self._one(op, line, lines, values):
                break
            count += 1
        del line.waiting[:count]
        return count > 0

    def _one(self, op: m.AnyOp, line: _Line, lines: dict[str, _Line], values: dict[str, list[int]]) -> bool:
        if isinstance(op, m.Append):
            if any(isinstance(part, str) and part not in values for part in op.parts):
                return False
            for part in op.parts:
                line.tokens += values[part] if isinstance(part, str) else part
        elif isinstance(op, m.Generate | m.Choose):
            self._need(line, len(line.tokens))
            if isinstance(op, m.Choose):
                self._tries(line, op.choices)
            line.tokens += values.get(op.op, [])
            self._need(line, len(line.tokens) - 1)
        elif isinstance(op, m.Fork):
            for name in op.into:
                lines[name] = _Line(
                    list(line.tokens), len(line.tokens), list(line.nodes), lines[name].waiting, born=True
                )
        elif isinstance(op, m.Join):
            if any(not lines[name].born or lines[name].waiting for name in op.branches):
                return False
            for name in op.branches:
                line.tokens += lines[name].tokens[lines[name].base :]
        return True

    def _need(self, line: _Line, count: int) -> None:
        at = line.nodes[-1] if line.nodes else -1
        for token in line.tokens[len(line.nodes) : count]:
            at = self._tree.setdefault((at, token), len(self._tree))
            line.nodes.append(at)

    def _tries(self, line: _Line, choices: Iterable[tuple[int, ...]]) -> None:
        for choice in choices:
            at = line.nodes[-1]
            for token in choice[:-1]:
                at = self._tree.setdefault((at, token), len(self._tree))


def _free(op: ir.AnyOp) -> ir.AnyOp:
    """Without its constraint: its tokens are known."""
    return msgspec.structs.replace(op, constraint=None) if isinstance(op, ir.Gen) else op
