"""What lowering remembers: sequences as far as text knows them, and the changes of a call that may yet be refused.

In: nothing. Out: plain records that `lower.Lowering` alone changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ramet.frontend import ir
from ramet.runtime import messages as m


@dataclass(slots=True)
class Sequence:
    """One sequence as far as text knows it. `pending` is constant text that is not tokenised yet, `tail` the end of the
    segment that a fork cut off, `tokens` a lower bound of its length: what the engine alone knows (generated values,
    joined text) counts nothing, but makes it `grown`."""

    path: str
    pending: str = ""
    pending_op: str = ""
    tail: str = ""
    history: tuple[str, ...] = ()
    role: str = ""
    began: tuple[tuple[str, ...], str] = ((), "")  # history and open role at its fork
    tools: tuple[ir.Tool, ...] = ()  # that the chat template tells of
    tokens: int = 0
    grown: bool = False
    started: bool = False
    bos: bool = False
    closed: bool = False
    joined: bool = False


@dataclass(slots=True)
class Call:
    """The changes of one `lower` call, kept apart until all of it is valid."""

    sequences: dict[str, Sequence] = field(default_factory=dict)
    ops: set[str] = field(default_factory=set)
    values: dict[str, int] = field(default_factory=dict)
    out: list[m.AnyOp] = field(default_factory=list)
    rendered: list[ir.Rendered] = field(default_factory=list)
