"""Groups of segments that share a prefix of slots: exact on hand-made trees, sound on any tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.kernels.groups import Group, find
from ramet.runtime.batch import Batch

from .forest import Tree, forests
from .ragged import Part, batch

BLOCK = 4


def made(*paths: tuple[int, ...], new: int = 1) -> Batch:
    """One segment per path; equal numbers are equal nodes of 4 slots each, and each has `new` slots of its own."""
    parts = []
    for number, path in enumerate(paths):
        own = 10_000 + number * new + np.arange(new)
        slots = np.concatenate([*(node * BLOCK + np.arange(BLOCK) for node in path), own]).astype(np.int32)
        parts.append(Part(np.zeros(len(slots), np.int32), slots, len(slots) - new, len(slots)))
    return batch(parts)


def shapes(groups: tuple[Group, ...]) -> list[tuple[list[int], int, int]]:
    return sorted((group.segments.tolist(), group.start, group.stop) for group in groups)


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        ([(1, 2), (3, 4)], []),
        ([(1,)], []),
        ([(1, 2), (1, 3)], [([0, 1], 0, 4)]),
        ([(1, 2, 3), (9,), (1, 2, 4), (1, 2)], [([0, 2, 3], 0, 8)]),
        # two levels: all share 1, then two pairs share more
        (
            [(1, 2, 3), (1, 4, 5), (1, 2, 3), (1, 4, 5)],
            [([0, 1, 2, 3], 0, 4), ([0, 2], 4, 12), ([1, 3], 4, 12)],
        ),
        # three levels do not fit two: the outermost shared by one more member is worth the least
        (
            [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3), (1, 2, 3), (1,)],
            [([0, 1, 2], 12, 16), ([0, 1, 2, 3, 4], 0, 12)],
        ),
        # the second level passes over a node to the pairs below it
        (
            [(1,), (1, 2, 3, 4, 5), (1, 2, 6, 7, 8), (1, 2, 3, 4, 5), (1, 2, 6, 7, 8), (1,)],
            [([0, 1, 2, 3, 4, 5], 0, 4), ([1, 3], 4, 20), ([2, 4], 4, 20)],
        ),
        ([(1, 5), (2, 6), (1, 7), (2, 8)], [([0, 2], 0, 4), ([1, 3], 0, 4)]),
    ],
)
def test_hand_made(paths: list[tuple[int, ...]], wanted: list[tuple[list[int], int, int]]) -> None:
    found = shapes(find(made(*paths), block=BLOCK, most=1))
    assert found == sorted(wanted)


def test_only_history_is_shared() -> None:
    """A block that holds a new token of a member is not grouped for it, even when another segment lists it too."""
    slots = np.arange(9, dtype=np.int32)
    whole = Part(np.zeros(9, np.int32), slots, 8, 9)
    first = Part(np.zeros(8, np.int32), slots[:8], 7, 8)
    assert shapes(find(batch([whole, first]), block=BLOCK, most=1)) == [([0, 1], 0, 4)]


def test_long_segments_take_no_part() -> None:
    made_batch = made((1, 2), (1, 2), (1, 2), new=3)
    assert shapes(find(made_batch, block=BLOCK, most=3)) == [([0, 1, 2], 0, 8)]
    assert find(made_batch, block=BLOCK, most=2) == ()


def test_a_long_chain_of_branchings_is_bounded() -> None:
    """One segment leaves the chain at every block: the work does not explode, and what is found is right."""
    path = tuple(range(1, 200))
    batch_ = made(*[path[: n + 1] for n in range(1, 199)])
    groups = find(batch_, block=BLOCK, most=1)
    assert 1 <= len(groups) <= 2
    check(groups, batch_, BLOCK)


def check(groups: tuple[Group, ...], made_batch: Batch, block: int) -> None:
    """The promises of `Group`."""
    kv, qo = made_batch.kv_indptr, made_batch.qo_indptr
    parent: dict[int, Group] = {}
    for group in sorted(groups, key=lambda g: g.start):
        assert len(group.segments) >= 2 and (np.diff(group.segments) > 0).all()
        assert group.start % block == group.stop % block == 0 and group.start < group.stop
        lists = [made_batch.kv_indices[kv[s] : kv[s] + group.stop] for s in group.segments]
        assert all(np.array_equal(lists[0], other) for other in lists[1:])
        for s in group.segments.tolist():
            assert group.stop <= kv[s + 1] - kv[s] - (qo[s + 1] - qo[s])
            if group.start == 0:
                assert s not in parent
                parent[s] = group
        if group.start:
            above = {id(parent[s]) for s in group.segments.tolist()}
            assert len(above) == 1 and parent[int(group.segments[0])].stop == group.start
    nested = [s for group in groups if group.start for s in group.segments.tolist()]
    assert len(nested) == len(set(nested))


@settings(max_examples=80, deadline=None)
@given(forests(lengths=st.integers(1, 13)), st.integers(1, 6), st.integers(1, 3))
def test_any_forest(tree: Tree, block: int, most: int) -> None:
    made_batch = tree.batch()
    groups = find(made_batch, block=block, most=most)
    check(groups, made_batch, block)
    count = np.diff(made_batch.qo_indptr)
    assert all((count[group.segments] <= most).all() for group in groups)
    if not groups:  # then no two segments that may take part share a block
        history = np.diff(made_batch.kv_indptr) - count
        heads = [
            int(made_batch.kv_indices[made_batch.kv_indptr[s] + block - 1])
            for s in range(made_batch.segments)
            if 0 < count[s] <= most and history[s] >= block
        ]
        assert len(heads) == len(set(heads))


def saved(groups: tuple[Group, ...], block: int) -> int:
    """Block reads that they save."""
    return sum((len(group.segments) - 1) * (group.stop - group.start) // block for group in groups)


@settings(max_examples=80, deadline=None)
@given(forests(lengths=st.integers(1, 13)), st.integers(1, 4), st.integers(0, 12))
def test_groups_that_do_not_pay_are_left_out(tree: Tree, block: int, pays: int) -> None:
    made_batch = tree.batch()
    every = find(made_batch, block=block, most=2)
    wanted = every if saved(every, block) >= pays else ()
    assert shapes(find(made_batch, block=block, most=2, pays=pays)) == shapes(wanted)


def test_what_pays_is_counted_over_the_batch() -> None:
    apart = made((1, 2), (1, 2), (3, 4), (3, 4))
    assert [len(find(apart, block=BLOCK, most=1, pays=pays)) for pays in (0, 4, 5)] == [2, 2, 0]
