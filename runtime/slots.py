"""Who owns what in the KV pool: the free list of slots, and the rows that list each running sequence's slots.

In: requests for n slots, best beside a given one. Out: slot numbers as int32 arrays, in contiguous runs where possible
(a contiguous run reads 1.3-1.5 times faster on a CPU).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ramet.frontend.errors import EngineError
from ramet.runtime.batch import I32

BLOCK = 16  # slots that a fresh sequence finds free ahead of it, where the pool allows
_FEW = 32  # up to this many, a loop over bytes is faster than numpy calls


class Slots:
    """The free list of a pool of `capacity` slots; `free` of them are free.

    One byte per slot (0 free, 1 taken) and a count of taken slots per block of 16. Each is a bytearray, for single
    accesses, and a numpy view of the same memory, for runs. The last block is filled up with slots that are always
    taken. Arrays that `alloc` returns are read-only where they are views of a shared table of numbers.
    """

    def __init__(self, capacity: int) -> None:
        if not 1 <= capacity < 1 << 31:
            raise EngineError(f"capacity={capacity}: the KV pool needs 1 to 2**31 - 1 slots; change its memory")
        self.capacity = capacity
        self.free = capacity
        blocks = -(-capacity // BLOCK)
        self._taken = bytearray(blocks * BLOCK)
        self._fill = bytearray(blocks)
        self._taken_view = np.frombuffer(self._taken, np.uint8)
        self._fill_view = np.frombuffer(self._fill, np.uint8)
        self._taken_view[capacity:] = 1
        self._fill[-1] = blocks * BLOCK - capacity
        self._numbers = np.arange(capacity, dtype=np.int32)
        self._numbers.setflags(write=False)
        self._stamps = np.zeros(capacity, np.int32)  # scratch of `release`

    def alloc(self, n: int, after: int = -1) -> I32 | None:
        """Take n slots `[n] int32`; None, and nothing taken, when fewer are free.

        As many as possible continue at `after + 1`, where `after` is the last slot of the sequence (-1: none). The
        others start at a fully free block; more than 16 of them in as few runs of such blocks as possible. When no
        block is fully free, any free slots do.
        """
        if n > self.free:
            return None
        start = after + 1
        if n == 1 and 0 < start < self.capacity and not self._taken[start]:  # decoding: one slot per sequence and step
            self._taken[start] = 1
            self._fill[start >> 4] += 1
            self.free -= 1
            return self._numbers[start : start + 1]
        parts: list[I32] = []
        if after >= 0:
            parts.append(self._take(start, self._run(start, n)))
        missing = n - sum(map(len, parts))
        if missing > BLOCK:
            parts += self._take_blocks(missing)
            missing = n - sum(map(len, parts))
        parts += self._take_any(missing)
        return parts[0] if len(parts) == 1 else np.concatenate([p for p in parts if len(p)] or [self._numbers[:0]])

    def follow(self, after: I32) -> I32:
        """One slot for each of n sequences whose last ones are `after` `[n] int32`, as n calls of `alloc` would give;
        the slots `[n] int32`. AssertionError, and nothing taken, when fewer are free."""
        assert len(after) <= self.free, f"{len(after)} slots wanted, {self.free} are free"
        taken, fill, slots = self._taken, self._fill, []
        for last in after.tolist():
            slot = last + 1
            if slot >= self.capacity or taken[slot]:
                slot = taken.find(0, int(self._fill_view.argmin()) * BLOCK)
            taken[slot] = 1
            fill[slot >> 4] += 1
            slots.append(slot)
        self.free -= len(slots)
        return np.array(slots, np.int32)

    def release(self, slots: I32) -> None:
        """Give slots `[n] int32` back, in any order. AssertionError when one is free already, given twice, or none of
        the pool's: two owners of one slot would read each other's text, so this is checked under `python -O` too."""
        if len(slots) <= _FEW:
            for slot in slots.tolist():
                if not 0 <= slot < self.capacity or not self._taken[slot]:
                    raise AssertionError(f"release of slot {slot}, which is not taken")
                self._taken[slot] = 0
                self._fill[slot >> 4] -= 1
                self.free += 1
            return
        self._refuse_bad(slots)
        self._taken_view[slots] = 0
        self._fill_view -= np.bincount(slots >> 4, minlength=len(self._fill)).astype(np.uint8)
        self.free += len(slots)

    def is_free(self, slots: I32) -> NDArray[np.bool_]:
        """Which of `slots` `[n] int32` are free: `[n] bool`."""
        return np.equal(self._taken_view[slots], 0)

    def check(self) -> None:
        """Raise AssertionError unless the counts agree with the bytes."""
        assert self._taken_view.max() <= 1, "a slot is neither free nor taken"
        assert self._taken_view[self.capacity :].all(), "a slot beyond the capacity is free"
        free = int(np.count_nonzero(self._taken_view == 0))
        assert self.free == free, f"free is {self.free}, {free} slots are"
        fill = self._taken_view.reshape(-1, BLOCK).sum(1)
        assert np.array_equal(self._fill_view, fill), "a block's count differs from its slots"

    def _run(self, start: int, limit: int) -> int:
        """How many slots from `start` on are free, at most `limit`."""
        if start >= self.capacity:
            return 0
        end = self._taken.find(1, start, start + limit)
        return (end if end >= 0 else min(start + limit, self.capacity)) - start

    def _take(self, start: int, n: int) -> I32:
        """Take n free slots from `start` on."""
        self._taken_view[start : start + n] = 1
        self.free -= n
        slots = self._numbers[start : start + n]
        if n <= BLOCK:
            for block in range(start >> 4, (start + n + BLOCK - 1) >> 4):
                self._fill[block] += min(start + n, (block + 1) * BLOCK) - max(start, block * BLOCK)
        else:
            self._recount(start >> 4, -(-(start + n) // BLOCK))
        return slots

    def _recount(self, first: int, end: int) -> None:
        taken = self._taken_view[first * BLOCK : end * BLOCK]
        self._fill_view[first:end] = taken.reshape(-1, BLOCK).sum(1)

    def _take_blocks(self, n: int) -> list[I32]:
        """Take up to n slots in fully free blocks: the smallest run of blocks that holds them all (so that long runs
        stay whole), else the longest runs first."""
        empty = np.zeros(len(self._fill) + 2, np.bool_)
        np.equal(self._fill_view, 0, out=empty[1:-1])
        edges = np.flatnonzero(empty[1:] != empty[:-1]) * BLOCK
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        enough = np.flatnonzero(lengths >= n)
        if len(enough):
            return [self._take(int(starts[enough[lengths[enough].argmin()]]), n)]
        parts = []
        for run in np.argsort(-lengths, kind="stable"):
            parts.append(self._take(int(starts[run]), min(n, int(lengths[run]))))
            n -= len(parts[-1])
            if not n:
                break
        return parts

    def _take_any(self, n: int) -> list[I32]:
        """Take n slots: few from the emptiest blocks, each time as many as stand together; many in order of number."""
        if n > BLOCK:
            slots = np.flatnonzero(self._taken_view == 0)[:n].astype(np.int32)
            self._taken_view[slots] = 1
            self._fill_view += np.bincount(slots >> 4, minlength=len(self._fill)).astype(np.uint8)
            self.free -= n
            return [slots]
        parts = []
        while n:
            block = int(self._fill_view.argmin())
            start = self._taken.find(0, block * BLOCK)
            parts.append(self._take(start, self._run(start, n)))
            n -= len(parts[-1])
        return parts

    def _refuse_bad(self, slots: I32) -> None:
        if slots.min() < 0 or slots.max() >= self.capacity or not self._taken_view[slots].all():
            raise AssertionError("release of slots that are not taken")
        order = np.arange(len(slots), dtype=np.int32)
        self._stamps[slots] = order
        if not np.array_equal(self._stamps[slots], order):
            raise AssertionError("release of a slot twice in one call")


class Rows:
    """A fixed number of rows, one per running sequence: `table` `[count, context] int32`, the slots of its positions.

    Only the part that its sequence wrote may be read: a row is not cleaned when it changes hands. With `debug` a
    released row is overwritten with -1, so that a read of stale entries shows.
    """

    def __init__(self, count: int, context: int, debug: bool = False) -> None:
        if count < 1 or context < 1:
            raise EngineError(f"rows={count}, context={context}: both must be at least 1")
        self.table = np.full((count, context), -1, np.int32) if debug else np.zeros((count, context), np.int32)
        self._debug = debug
        self._free = list(range(count - 1, -1, -1))
        self._taken = bytearray(count)

    @property
    def free(self) -> int:
        """How many rows are free."""
        return len(self._free)

    def alloc(self) -> int | None:
        """Take a row; None when all are taken. Of the free ones the last released, which is warm in the CPU's cache."""
        if not self._free:
            return None
        row = self._free.pop()
        self._taken[row] = 1
        return row

    def release(self, row: int) -> None:
        """Give a row back; AssertionError when it is not taken (two owners would read each other's text)."""
        if not 0 <= row < len(self._taken) or not self._taken[row]:
            raise AssertionError(f"release of row {row}, which is not taken")
        self._taken[row] = 0
        self._free.append(row)
        if self._debug:
            self.table[row] = -1

    def check(self) -> None:
        """Raise AssertionError unless the free list and the flags agree."""
        free = [row for row, taken in enumerate(self._taken) if not taken]
        assert sorted(self._free) == free, f"free rows {sorted(self._free)}, not taken {free}"
