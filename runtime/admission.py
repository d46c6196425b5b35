"""Whose turn it is and what fits: functions of plain data.

In: slots held, tokens to come, groups of waiting ones. Out: a peak, an order, and yes or no.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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
        return self._total + sum(newcomer) <= room or self.peak(newcomer) <= room

    def peak(self, newcomer: tuple[int, int]) -> int:
        """The most slots that all of them and a newcomer will hold at once."""
        pairs = np.array([*self._pairs, newcomer], np.int64)
        return peak(pairs[:, 0], pairs[:, 1])

    def add(self, pair: tuple[int, int]) -> None:
        """One more is seated."""
        self._pairs.append(pair)
        self._total += sum(pair)
