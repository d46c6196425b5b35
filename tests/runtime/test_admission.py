"""Peak footprints, and turns between namespaces."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramet.runtime.admission import Footprints, interleave, peak

PAIRS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8)


def brute_force(pairs: list[tuple[int, int]]) -> int:
    """Step all sequences together and note the most slots held: one that has t tokens left is gone after t steps."""
    most = sum(held for held, _ in pairs)
    for step in range(1, max((left for _, left in pairs), default=0) + 1):
        most = max(most, sum(held + step for held, left in pairs if left >= step))
    return most


@given(PAIRS)
def test_peak_is_what_stepping_together_holds_at_most(pairs: list[tuple[int, int]]) -> None:
    held = np.array([p[0] for p in pairs], np.int64)
    left = np.array([p[1] for p in pairs], np.int64)
    assert peak(held, left) == brute_force(pairs)


@given(PAIRS, PAIRS, st.integers(0, 300))
def test_what_fits_is_what_peaks_below_the_room(
    seated: list[tuple[int, int]], coming: list[tuple[int, int]], room: int
) -> None:
    footprints = Footprints(list(seated))
    for pair in coming:
        assert footprints.fits(pair, room) == (brute_force([*seated, pair]) <= room)
        footprints.add(pair)
        seated = [*seated, pair]


def test_namespaces_take_turns_inside_a_priority() -> None:
    assert interleave([(0, ["a", "b"]), (0, ["x", "y", "z"]), (1, ["low"])], 9) == ["a", "x", "b", "y", "z", "low"]
    assert interleave([(0, ["a", "b"]), (0, ["x", "y"])], 3) == ["a", "x", "b"]
