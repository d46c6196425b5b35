"""A live program as the engine keeps it: its sequences, its values, who waits for what, and what it has used.

In: nothing. Out: a record that `Programs` writes and the scheduler reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ramet.runtime import messages as m
from ramet.runtime.batch import I32
from ramet.runtime.sequence import Sequence

Failure = tuple[str, str]  # kind and message


@dataclass(eq=False, slots=True)
class Program:
    """One live program. `open` counts ops that were received and did not end; `waiters` maps an op (whose value is
    awaited) or a branch (whose end is) to the sequences that wait. `peak` is the most KV slots that it will need, -1
    when nobody has asked; `changed`: it may be another since its ops have changed, though not before step `peak_until`
    is it looked at again."""

    id: str
    namespace: str
    priority: int
    order: int
    began: float
    name: str = ""
    sequences: dict[str, Sequence] = field(default_factory=dict)
    values: dict[str, I32] = field(default_factory=dict)
    broken: dict[str, Failure] = field(default_factory=dict)
    waiters: dict[str, list[Sequence]] = field(default_factory=dict)
    early: dict[str, list[m.AnyOp]] = field(default_factory=dict)
    ended: bool = False
    open: int = 0
    calls: int = 0
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    forced: int = 0
    computed: int = 0
    steps: int = 0
    last_step: int = -1
    peak: int = -1
    peak_until: int = 0
    changed: bool = True
