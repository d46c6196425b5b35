"""What a program will need of the KV pool: its peak, from the operations that were received so far.

In: a live program, and what its call sites did before. Out: tokens. The peak is what is there, the constant text to
come, and what the generations to come may add, along the widest path: branches of a fork are alive together until they
are joined. A whole program declares all of this at once; of one that grows, what its sequences did behind the same call
in earlier runs is added.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ramet.runtime import messages as m
from ramet.runtime.lengths import Learned, site_of
from ramet.runtime.sequence import Choosing, Generating, Scoring, Sequence

if TYPE_CHECKING:
    from ramet.runtime.programs import Program

DEPTH = 64  # forks inside each other that are looked into
MARGIN = 16  # tokens that are expected of a generation that has outgrown what was


def left(seq: Sequence) -> int:
    """Tokens that a sequence's op will still add, as far as one can tell; for a Choose, KV slots."""
    task = seq.task
    if isinstance(task, Generating):
        made = task.made + seq.flying
        limit = min(task.limit, max(task.expected, made + MARGIN))
        return limit - made if limit > made else 0
    return len(task.trie.tokens) if isinstance(task, Choosing) else 0


def footprint(seq: Sequence) -> tuple[int, int]:
    """Slots that a sequence holds beyond the tree's, and tokens that its op will still add."""
    held = seq.known + seq.flying - (seq.node.depth if seq.node is not None else 0)
    return (held if held > 0 else 0, left(seq))


def resident(program: Program) -> int:
    """Tokens of a program's open sequences, those that several share counted once, computed or not."""
    if len(program.sequences) == 1:
        return sum(seq.known + seq.flying for seq in program.sequences.values())
    total = 0
    covered: dict[Sequence, int] = {}  # a closed ancestor → up to where its tokens are counted
    for seq in program.sequences.values():
        if _over(seq):
            continue
        total += seq.known + seq.flying - seq.base
        below, above = seq.base, seq.parent
        while above is not None and _over(above):
            counted = covered.get(above, above.base)
            if below <= counted:
                break
            total += below - counted
            covered[above] = below
            if counted > above.base:
                break
            below, above = above.base, above.parent
    return total


def peak(program: Program, learned: Learned, longest: int) -> int:
    """The most KV slots that a program will hold at once from now on, when its sequences have `longest` tokens at
    most."""
    return _Walk(program, learned, longest).peak()


def _over(seq: Sequence) -> bool:
    return seq.closed or seq.failed is not None


class _Walk:
    """One look at all that a program is going to do."""

    def __init__(self, program: Program, learned: Learned, longest: int) -> None:
        self._program = program
        self._learned = learned
        self._longest = longest
        self._values: dict[str, int] = {}  # what values to come will have
        self._seen: set[str] = set()  # branches that were looked into: each once
        self._open = {name: seq for name, seq in program.sequences.items() if not _over(seq)}

    def peak(self) -> int:
        """See the module's `peak`."""
        joined: set[str] = set()
        for seq in self._open.values():
            task = seq.task
            if isinstance(task, Generating):
                self._values[task.op.op] = task.made + seq.flying + left(seq)
            elif isinstance(task, Choosing):
                self._values[task.op.op] = max(map(len, task.op.choices))
            for op in seq.ops:
                if isinstance(op, m.Join):
                    joined.update(op.branches)
        for ops in [*(seq.ops for seq in self._open.values()), *self._program.early.values()]:
            for op in ops:
                if isinstance(op, m.Generate):
                    self._values[op.op] = self._expected(op)
                elif isinstance(op, m.Choose):
                    self._values[op.op] = max(map(len, op.choices))
        own = sum(seq.known + seq.flying - seq.base for seq in self._open.values())
        shared = resident(self._program) - own  # of ancestors that are closed
        return shared + sum(self._live(seq)[0] for name, seq in self._open.items() if name not in joined)

    def _expected(self, op: m.Generate) -> int:
        limit = op.sampling.max_tokens
        most = min(limit or self._longest, op.longest or self._longest, self._longest)
        return self._learned.call(site_of(self._program.name, op.op), most, limit)

    def _live(self, seq: Sequence, depth: int = 0) -> tuple[int, int]:
        """A sequence that exists: the most tokens that it and what is below it will have beyond its fork, and how many
        it will have itself at its end."""
        length = seq.known + seq.flying - seq.base
        live: dict[str, tuple[int, int]] = {}
        for op in seq.ops:
            for name in op.branches if isinstance(op, m.Join) else ():
                branch = self._open.get(name)
                if branch is not None and self._fresh(name, depth):
                    live[name] = self._live(branch, depth + 1)
                elif branch is None and name in self._program.sequences:
                    ended = self._program.sequences[name]
                    live[name] = (0, ended.known - ended.base)
        growing = left(seq)
        if isinstance(seq.task, Choosing):
            growing = max(growing, seq.task.size)
        elif isinstance(seq.task, Scoring):
            growing = seq.known
        most, end = self._follow(seq.ops, seq.base, length + growing, live, depth, seq.joined)
        if self._program.ended or not seq.marks:
            return most, end
        site, at = seq.marks[-1]
        final = min(at + (self._learned.growth.typical(site) or 0), self._longest) - seq.base
        return (max(most, final), final) if final > end else (most, end)

    def _follow(
        self,
        ops: Iterable[m.AnyOp],
        base: int,
        length: int,
        live: dict[str, tuple[int, int]],
        depth: int,
        joined: int = 0,
    ) -> tuple[int, int]:
        """Along ops, from `length` tokens beyond those of a fork at `base`; `live`: branches beside it. `joined`
        branches of the first op are part of the length."""
        beside = sum(most for most, _ in live.values())
        most = length + beside
        for op in ops:
            if isinstance(op, m.Append):
                length += sum(self._part(part) for part in op.parts)
            elif isinstance(op, m.Generate):
                length += self._values[op.op]
            elif isinstance(op, m.Choose):
                tries = (2 if op.context else 1) * sum(map(len, op.choices)) + len(op.context)
                most = max(most, length + beside + tries)
                length += self._values[op.op]
            elif isinstance(op, m.Score):  # it computes again what the tree has
                most = max(most, base + length + length + beside)
            elif isinstance(op, m.Fork):
                for name in op.into:
                    if self._fresh(name, depth):
                        live[name] = self._follow(self._program.early.get(name, ()), base + length, 0, {}, depth + 1)
                        beside += live[name][0]
            elif isinstance(op, m.Join):
                for place, name in enumerate(op.branches):
                    branch = live.pop(name, (0, 0))
                    beside -= branch[0]
                    length += branch[1] if place >= joined else 0
                joined = 0
            most = max(most, length + beside)
        return most, length

    def _fresh(self, name: str, depth: int) -> bool:
        if depth >= DEPTH or name in self._seen:
            return False
        self._seen.add(name)
        return True

    def _part(self, part: tuple[int, ...] | str) -> int:
        if not isinstance(part, str):
            return len(part)
        if part in self._program.values:
            return len(self._program.values[part])
        found = self._values.get(part)
        return self._learned.value(site_of(self._program.name, part)) if found is None else found
