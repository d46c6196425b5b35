"""Operations of small programs in tests, in one line each."""

from __future__ import annotations

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m


def seq_of(op: str) -> str:
    """The sequence of the operation `op`."""
    return op.rpartition(".")[0]


def text(op: str, count: int, first: int = 1) -> m.Append:
    """So many tokens; texts of another `first` begin otherwise."""
    return m.Append(op, seq_of(op), (tuple((first + i) % 11 + 1 for i in range(count)),))


def generate(op: str, count: int) -> m.Generate:
    """Exactly so many tokens."""
    return m.Generate(op, seq_of(op), Sampling(temperature=0.0, max_tokens=count, ignore_eos=True), 0)
