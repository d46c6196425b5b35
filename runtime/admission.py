"""Who goes next and whether it fits: functions of plain data.

In: lengths, limits and ages. Out: an order, and yes or no.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ramet.runtime import sequence as q

I64 = NDArray[np.int64]
T = TypeVar("T")


def peak(held: I64, left: I64) -> int:
    """The most KV slots that a set of sequences will ever hold at once, `held[i]` slots now and `left[i]` tokens
    still to come, if all decode in step: sorted by what is left, the k with the most left are all alive when the
    k-th of them ends. (The estimate that LightLLM's scheduler uses, Gong et al. 2025.)"""
    if not len(held):
        return 0
    order = np.argsort(-left, kind="stable")
    count = np.arange(1, len(held) + 1)
    return int((np.cumsum(held[order]) + left[order] * count).max())


def interleave(groups: Sequence[tuple[int, Sequence[T]]], limit: int) -> list[T]:
    """At most `limit` members, groups of the lowest rank first, groups of one rank in turn. `groups` holds (rank,
    members), sorted by rank."""
    out: list[T] = []
    for rank in sorted({rank for rank, _ in groups}):
        for turn in zip_longest(*(members for r, members in groups if r == rank), fillvalue=None):
            out += [member for member in turn if member is not None]
            if len(out) >= limit:
                return out[:limit]
    return out


class Footprints:
    """What the seated sequences may hold at their peak: `pairs` of (slots held beyond the tree's, tokens to come)."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self._pairs = pairs
        self._total = sum(held + left for held, left in pairs)

    def fits(self, newcomer: tuple[int, int], room: int) -> bool:
        """True when all of them and a newcomer find room in `room` slots. The sum of all is a bound of the peak, and
        usually it does."""
        if self._total + sum(newcomer) <= room:
            return True
        pairs = np.array([*self._pairs, newcomer], np.int64)
        return peak(pairs[:, 0], pairs[:, 1]) <= room

    def add(self, pair: tuple[int, int]) -> None:
        """One more is seated."""
        self._pairs.append(pair)
        self._total += sum(pair)


class Lengths:
    """How long generations without max_tokens tend to get: a high quantile of the last ones, `default` before there
    are any."""

    def __init__(self, default: int = 128, window: int = 256, quantile: float = 0.9) -> None:
        self._seen: deque[int] = deque(maxlen=window)
        self._typical: int | None = default  # None: to be computed
        self._quantile = quantile

    def add(self, length: int) -> None:
        """Record a finished generation's length in tokens."""
        self._seen.append(length)
        self._typical = None

    def typical(self) -> int:
        """Tokens to expect of a generation without a limit."""
        if self._typical is None:
            self._typical = int(np.quantile(np.fromiter(self._seen, np.int64), self._quantile)) + 1
        return self._typical


def footprint(seq: q.Sequence, lengths: Lengths) -> tuple[int, int]:
    """Slots that a sequence holds beyond the tree's, and tokens that its op will still add, as far as one can tell."""
    node, task, flying = seq.node, seq.task, seq.flying
    held = seq.known + flying - (node.depth if node is not None else 0)
    left = 0
    if isinstance(task, q.Choosing):
        left = len(task.trie.tokens)
    elif isinstance(task, q.Generating):
        made, limit = task.made + flying, task.limit
        if task.op.sampling.max_tokens is None:
            limit = min(limit, max(lengths.typical(), made + 16))
        left = limit - made
    return (held if held > 0 else 0, left if left > 0 else 0)
