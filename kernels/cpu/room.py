"""Memory of the native draws, kept from step to step. In: how many draws. Out: an array for each field of `RametDraws`,
and the structures that name them.
"""

from __future__ import annotations

import ctypes as c
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.batch import WORDS

ARRAYS = (
    ("row", np.dtype(np.int32)),
    ("edited", np.dtype(np.uint64)),
    ("allowed", np.dtype(np.uint64)),
    ("draw", np.dtype((np.uint64, WORDS))),
    ("position", np.dtype(np.int64)),
    ("uniform", np.dtype(np.float64)),
    ("token", np.dtype(np.int32)),
    ("normaliser", np.dtype(np.float64)),
)


class Drawn(c.Structure):
    """`RametDraws`."""

    _fields_ = (
        *((name, c.c_int64) for name in ("count", "vocab", "rows")),
        *((name, c.c_void_p) for name in ("logits", *(name for name, _ in ARRAYS))),
    )


class Room:
    """Arrays of up to `count` draws, and two structures with their addresses: to ask numpy for an address takes longer
    than to draw (see `ragged`). `drawn` asks for tokens, `scored` for normalisers.

    Batches of a steady run share arrays, and arrays of a batch never change: what was copied last is not copied again.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.arrays: dict[str, NDArray[Any]] = {name: np.zeros(count, kind) for name, kind in ARRAYS}
        self.places = {name: array.ctypes.data for name, array in self.arrays.items()}
        places = self.places
        self.drawn = Drawn(**{name: places[name] for name in ("row", "draw", "position", "token")})
        self.scored = Drawn(row=places["row"], normaliser=places["normaliser"])
        self._held: dict[str, NDArray[Any] | None] = {"row": None, "draw": None}

    def hold(self, name: str, values: NDArray[Any]) -> None:
        """Copy `values` to the beginning of an array, unless they are there."""
        if self._held[name] is not values:
            self.arrays[name][: len(values)] = values
            self._held[name] = values


def address(array: NDArray[Any]) -> int:
    """Where an array's first element lies; faster than numpy's own answer where it can be written to."""
    if array.nbytes and array.flags.writeable:
        buffer: Any = array
        return c.addressof(c.c_char.from_buffer(buffer))
    return int(array.ctypes.data)
