"""An explanation as a tree of rows: what text and pages show, in what order, under what.

In: an `Explanation`. Out: rows; runs of role edges and texts are one row, and of many branches that are alike the first
ones and those of the critical path are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ramet.frontend.explained import Branch, Explanation, Op

SHOWN = 12  # branches of a fork that are shown one by one
QUIET = ("role", "text", "tokens", "tools")


@dataclass
class Row:
    """An operation, or a run of quiet ones (`text` is theirs), or a branch (`branch`), or `more` branches that are left
    out (`hidden` are their operations)."""

    op: Op | None = None
    text: str = ""
    critical: bool = False
    branch: Branch | None = None
    more: int = 0
    hidden: list[Op] = field(default_factory=list)
    children: list[Row] = field(default_factory=list)


@dataclass
class _Maker:
    shown: Explanation
    most: int

    def __post_init__(self) -> None:
        self.ops: dict[str, list[Op]] = {}
        self.marked: set[str] = set()  # branches with critical operations, on them or below
        for op in self.shown.ops:
            self.ops.setdefault(op.seq, []).append(op)
            seq = op.seq if op.critical else ""
            while seq and seq not in self.marked:
                self.marked.add(seq)
                seq = seq.rpartition(".")[0].rpartition(".")[0]
        self.branches: dict[str, list[Branch]] = {}
        for branch in self.shown.branches:
            fork = branch.seq.rpartition(".")[0] if branch.parent else ""
            self.branches.setdefault(fork, []).append(branch)

    def rows(self, seq: str) -> list[Row]:
        out: list[Row] = []
        quiet: list[Op] = []
        for op in self.ops.get(seq, ()):
            if op.kind in QUIET and op.status != "failed":
                quiet.append(op)
                continue
            out += _folded(quiet)
            quiet = []
            out.append(Row(op, critical=op.critical, children=self.forked(op.id)))
        return [*out, *_folded(quiet)]

    def forked(self, fork: str) -> list[Row]:
        branches = self.branches.get(fork, [])
        kept: list[Branch] = []
        left: list[Branch] = []
        for index, branch in enumerate(branches):
            room = len(branches) <= self.most or index < self.most - 1
            (kept if room or branch.seq in self.marked else left).append(branch)
        rows = [Row(branch=b, children=self.rows(b.seq), critical=b.seq in self.marked) for b in kept]
        if left:
            paths = tuple(f"{b.seq}." for b in left)
            hidden = [op for op in self.shown.ops if op.id.startswith(paths)]
            rows.append(Row(more=len(left), hidden=hidden))
        return rows


def _folded(quiet: Sequence[Op]) -> list[Row]:
    text = " ".join("".join(" " if op.kind == "role" else op.text for op in quiet).split())
    return [Row(text=text)] if text else []


def tree(shown: Explanation, most: int = SHOWN) -> list[Row]:
    """The rows of the root branch; `most` branches of a fork are shown."""
    return _Maker(shown, most).rows("0")
