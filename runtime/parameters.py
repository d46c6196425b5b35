"""Sampling parameters by row: written when a row's op changes, gathered by every step.

In: the Generate that holds a row. Out: the `Draws` of a step, one gather whatever their number.
"""

from __future__ import annotations

import numpy as np

from ramet.runtime.batch import F32, I32, RECORD, WORDS, Draws
from ramet.runtime.sequence import Generating

_SEED_BITS = (1 << 64) - 1

Bias = tuple[int, I32, F32]  # a draw's index, token ids, what is added to their logits


class Parameters:
    """A record for each of `count` rows. `tasks[row]` is the op whose parameters a row holds."""

    def __init__(self, count: int) -> None:
        self.tasks: list[Generating | None] = [None] * count
        self._records = np.zeros(count, RECORD)
        self._words = self._records.view(np.uint64).reshape(count, WORDS)

    def hold(self, row: int, task: Generating) -> None:
        """The row's next draws are the task's."""
        if self.tasks[row] is task:
            return
        self.tasks[row] = task
        s = task.op.sampling
        penalties = (s.frequency_penalty, s.presence_penalty, s.repetition_penalty)
        cuts = (s.top_p, s.min_p, s.top_k)
        self._records[row] = (task.op.seed & _SEED_BITS, s.temperature, *cuts, *penalties, s.logprobs)

    def draws(self, rows: I32, into: I32, positions: I32, bias: tuple[Bias, ...]) -> Draws:
        """The draws of one step; `rows`, `into`, `positions` `[R] int32` and `bias` as in `Draws`."""
        return Draws(rows, into, positions.astype(np.int64), self._words.take(into, axis=0), bias)
