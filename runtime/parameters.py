"""Sampling parameters by row: written when a row's op changes, gathered by every step.

In: the Generate that holds a row. Out: the `Draws` of a step, a few gathers whatever their number.
"""

from __future__ import annotations

import numpy as np

from ramet.runtime.batch import F32, I32, Draws
from ramet.runtime.sequence import Generating

_SEED_BITS = (1 << 64) - 1

Bias = tuple[int, I32, F32]  # a draw's index, token ids, what is added to their logits


class Parameters:
    """Columns of `count` rows. `tasks[row]` is the op whose parameters a row holds."""

    def __init__(self, count: int) -> None:
        self.tasks: list[Generating | None] = [None] * count
        self._floats = np.zeros((6, count), np.float32)
        self._ints = np.zeros((2, count), np.int32)
        self._seeds = np.zeros(count, np.uint64)

    def hold(self, row: int, task: Generating) -> None:
        """The row's next draws are the task's."""
        if self.tasks[row] is task:
            return
        self.tasks[row] = task
        s = task.op.sampling
        penalties = (s.frequency_penalty, s.presence_penalty, s.repetition_penalty)
        self._floats[:, row] = (s.temperature, s.top_p, s.min_p, *penalties)
        self._ints[:, row] = (s.top_k, s.logprobs)
        self._seeds[row] = task.op.seed & _SEED_BITS

    def draws(self, rows: I32, into: I32, positions: I32, bias: tuple[Bias, ...]) -> Draws:
        """The draws of one step; `rows`, `into`, `positions` `[R] int32` and `bias` as in `Draws`."""
        temperature, top_p, min_p, frequency, presence, repetition = self._floats.take(into, axis=1)
        top_k, logprobs = self._ints.take(into, axis=1)
        return Draws(
            rows=rows,
            into=into,
            positions=positions.astype(np.int64),
            seeds=self._seeds.take(into),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            frequency=frequency,
            presence=presence,
            repetition=repetition,
            logprobs=logprobs,
            bias=bias,
        )
