"""Memory of the native draws, kept from step to step. In: how many draws. Out: an array for each field of `RametDraws`,
and its address.
"""

from __future__ import annotations

import ctypes as c
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = (
    ("temperature", np.float32),
    ("top_p", np.float32),
    ("min_p", np.float32),
    ("top_k", np.int32),
    ("uniform", np.float64),
)


class Drawn(c.Structure):
    """`RametDraws`."""

    _fields_ = (
        *((name, c.c_int64) for name in ("count", "vocab")),
        *((name, c.c_void_p) for name in ("logits", "allowed", *(name for name, _ in DRAWS), "token", "normaliser")),
    )


class Room:
    """Arrays of up to `count` draws, filled anew for each call, with their addresses (see `ragged`)."""

    def __init__(self, count: int) -> None:
        kinds = (
            ("logits", np.uint64),
            ("allowed", np.uint64),
            *DRAWS,
            ("token", np.int32),
            ("normaliser", np.float64),
        )
        self.count = count
        self.arrays: dict[str, NDArray[Any]] = {name: np.zeros(count, kind) for name, kind in kinds}
        self.places = {name: array.ctypes.data for name, array in self.arrays.items()}
