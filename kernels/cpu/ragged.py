"""Batches as the native kernels take them. In: the index arrays of a batch. Out: one structure that names them.

All but the KV indices are copied into one array, which is kept from step to step with its address: to ask numpy for an
address takes a microsecond, and ten after a forward, whose weights have taken the place of all code and data in the
caches.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramet.frontend.errors import EngineError
from ramet.kernels.cpu.room import address
from ramet.runtime.batch import I32

ARRAYS = (
    *("token", "position", "slot", "qo_indptr", "kv_indptr", "kv_indices", "row"),
    *("group_indptr", "group_segments", "group_start", "group_stop"),
)
_INDICES = ARRAYS.index("kv_indices")
_MEMBERS = ARRAYS.index("group_segments")


class Ragged(c.Structure):
    """`RametBatch`. It keeps what it points to: kv_indices in `large`, all others in `small`."""

    small: I32
    large: I32
    _fields_ = (
        *((name, c.c_int64) for name in ("tokens", "segments", "rows", "groups", "indices", "members")),
        *((name, c.c_void_p) for name in ARRAYS),
    )

    @property
    def arrays(self) -> list[I32]:
        """What it points to, in order."""
        parts = np.split(self.small, list(accumulate(_lengths(self)))[:-1])
        return [self.large if i == _INDICES else part for i, part in enumerate(parts)]


class Packer:
    """Makes structures one at a time: each is good until the next one is made."""

    def __init__(self) -> None:
        self._made = Ragged()
        self._counts: tuple[int, ...] = ()
        self._words: I32 = np.zeros(0, np.int32)
        self._at = 0

    def pack(self, tokens: int, segments: int, rows: int, groups: int, arrays: Sequence[NDArray[Any]]) -> Ragged:
        """A batch of `arrays` in the order of `RametBatch`: token, position, slot, qo_indptr, kv_indptr, kv_indices,
        row, group_indptr, group_segments, group_start, group_stop. Any integer type; the structure keeps copies, and
        kv_indices itself where it is int32. Raises `EngineError` for an array that has not the length which the counts
        say."""
        made, counts = self._made, (tokens, segments, rows, groups, len(arrays[_MEMBERS]))
        made.tokens, made.segments, made.rows, made.groups, made.members = counts
        made.indices = len(arrays[_INDICES])
        lengths = _lengths(made)
        for i, (name, array) in enumerate(zip(ARRAYS, arrays, strict=True)):
            length = made.indices if i == _INDICES else lengths[i]
            if array.shape != (length,):
                raise EngineError(f"{name}: has shape {list(array.shape)}, the batch says [{length}]")
        if counts != self._counts:
            self._place(lengths)
            self._counts = counts
        made.large = np.ascontiguousarray(arrays[_INDICES], np.int32)
        made.kv_indices = address(made.large)
        small = (*arrays[:_INDICES], *arrays[_INDICES + 1 :])
        np.concatenate(small, out=made.small, casting="unsafe")
        return made

    def _place(self, lengths: Sequence[int]) -> None:
        """Say where the arrays of a batch with other counts begin."""
        total = sum(lengths)
        if total > len(self._words):
            self._words = np.zeros(2 * total, np.int32)
            self._at = address(self._words)
        self._made.small = self._words[:total]
        for name, end, length in zip(ARRAYS, accumulate(lengths), lengths, strict=True):
            setattr(self._made, name, self._at + 4 * (end - length))


def ragged(tokens: int, segments: int, rows: int, groups: int, arrays: Sequence[NDArray[Any]]) -> Ragged:
    """One structure that is good for as long as it lives; see `Packer.pack`."""
    return Packer().pack(tokens, segments, rows, groups, arrays)


def _lengths(batch: Ragged) -> tuple[int, ...]:
    """Of the arrays in `small`: kv_indices has none."""
    three, two = (batch.tokens,) * 3, (batch.segments + 1,) * 2
    return (*three, *two, 0, batch.rows, batch.groups + 1, batch.members, batch.groups, batch.groups)
