"""Batches for tests. In: sequences as lists of slots, and which of their tokens are new. Out: `Batch`, `Draws`,
`Targets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.batch import F32, I32, Batch, Draws, Targets

EMPTY = np.zeros(0, np.int32)
NO_TARGETS = Targets(EMPTY, EMPTY)


@dataclass(frozen=True)
class Part:
    """New tokens start..stop-1 of a sequence with these token ids and slots."""

    tokens: NDArray[np.int32]
    slots: NDArray[np.int32]
    start: int
    stop: int


def draws(rows: Sequence[int], **fields: object) -> Draws:
    """Draws from `rows`; greedy and without any option unless `fields` says otherwise (a scalar is used for all)."""
    n = len(rows)
    positions = np.zeros(n, np.int64) + np.array(fields.pop("positions", 0), np.int64)
    into = np.zeros(n, np.int32) + np.array(fields.pop("into", range(n)), np.int32)
    return Draws.of(np.array(rows, np.int32), into, positions, **fields)


def batch(
    parts: Sequence[Part],
    *,
    drawn: Draws | None = None,
    targets: Targets = NO_TARGETS,
    feeds: dict[int, int] | None = None,
) -> Batch:
    """One batch of `parts`, drawing greedily from every new token unless `drawn` is given; `feeds`: token index →
    row."""

    def flat(arrays: list[I32]) -> I32:
        return np.concatenate([EMPTY, *arrays]).astype(np.int32)

    counts = [part.stop - part.start for part in parts]
    tokens = flat([part.tokens[part.start : part.stop] for part in parts])
    feed = feeds or {}
    tokens[list(feed)] = -1
    return Batch(
        step=0,
        tokens=tokens,
        positions=flat([np.arange(part.start, part.stop) for part in parts]),
        slots=flat([part.slots[part.start : part.stop] for part in parts]),
        qo_indptr=np.array([0, *np.cumsum(counts)], np.int32),
        kv_indptr=np.array([0, *np.cumsum([part.stop for part in parts])], np.int32),
        kv_indices=flat([part.slots[: part.stop] for part in parts]),
        feed=np.array(list(feed), np.int32),
        feed_rows=np.array(list(feed.values()), np.int32),
        draws=draws(range(len(tokens)), into=0) if drawn is None else drawn,
        targets=targets,
    )


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def uniform_logits(values: Sequence[float]) -> F32:
    """Logits whose softmax is `values`."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(values)).astype(np.float32)
