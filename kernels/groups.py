"""Which segments of a batch share a prefix of KV slots.

In: the index arrays of a `Batch`. Out: `Group`s, at most two nested levels, in whole blocks of positions; attention may
then read a shared block once for all members. Numpy alone: every device can use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.batch import I32, Batch

I64 = NDArray[np.int64]

_NESTED = 8  # branchings on one path that are considered; deeper ones are left ungrouped


@dataclass(frozen=True, slots=True)
class Group:
    """`segments` `[m] int64`, m >= 2, list the same slots at positions start..stop-1, all of them older than every new
    token of the members. Groups whose start is 0 are disjoint; a group with start > 0 is nested: its members are all in
    one group that stops where it starts."""

    segments: I64
    start: int
    stop: int


@dataclass(slots=True)
class _Node:
    """Members first..last-1 (in sorted order) share `depth` blocks, and no member outside shares as many."""

    depth: int
    first: int
    last: int = 0
    children: list[_Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Spans (node, first block) to group, and the block reads that they save."""

    saved: int = 0
    spans: tuple[tuple[_Node, int], ...] = ()


def find(batch: Batch, *, block: int, most: int, pays: int = 0) -> tuple[Group, ...]:
    """Groups of segments with up to `most` new tokens, in multiples of `block` positions; none where all together save
    fewer than `pays` block reads (those of one layer and KV head).

    A slot holds K and V of one token after one prefix, so segments that list the same slot at the same position share
    all that is before it (invariants 1 and 3 of the cache): only the last slot of each block is compared, O(segments x
    blocks). Of all ways to group on at most two levels, the one that saves the most block reads is taken.
    """
    qo, kv = batch.qo_indptr, batch.kv_indptr
    count, first = qo[1:] - qo[:-1], kv[:-1].astype(np.int64)
    depth = (kv[1:] - kv[:-1] - count) // block
    chosen = np.flatnonzero((count > 0) & (count <= most) & (depth > 0))
    if len(chosen) < 2:
        return ()
    key = batch.kv_indices[first[chosen] + (block - 1)]
    order = np.argsort(key, kind="stable")
    equal = key[order[1:]] == key[order[:-1]]
    if not equal.any():
        return ()
    twin = np.zeros(len(order), bool)
    twin[1:] |= equal
    twin[:-1] |= equal
    chosen = chosen[order[twin]]
    if int(depth[chosen].sum() - depth[chosen].max()) < pays:  # before the costlier part: more cannot be saved
        return ()
    keys = _keys(batch.kv_indices, first[chosen], depth[chosen], block)
    varying = keys[:, (keys != keys[0]).any(0)]
    if varying.shape[1]:
        order = np.lexsort(varying.T[::-1])
        chosen, keys = chosen[order], keys[order]
    same = np.logical_and.accumulate(keys[1:] == keys[:-1], axis=1).sum(1)
    choices = [_outer(root, 1) for root in _forest(same)]
    if sum(choice.saved for choice in choices) < pays:
        return ()
    return tuple(
        Group(np.sort(chosen[node.first : node.last]), start * block, node.depth * block)
        for choice in choices
        for node, start in choice.spans
    )


def _keys(slots: I32, first: I64, depth: NDArray[np.int32], block: int) -> I64:
    """The last slot of every whole block `[members, blocks]`; beyond a member's depth a negative number of its own."""
    column = np.arange(int(depth.max()), dtype=np.int64)
    inside = column < depth[:, None]
    at = np.where(inside, first[:, None] + (column + 1) * block - 1, 0)
    return np.where(inside, slots[at], -1 - np.arange(len(first))[:, None])


def _forest(same: NDArray[np.int64]) -> list[_Node]:
    """The tree of shared prefixes from `same` `[members - 1]`, blocks that neighbours in sorted order share (the
    interval tree of an LCP array, Abouelhoda et al. 2004); one step per run of equal values."""
    members = len(same) + 1
    starts = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(same[1:] != same[:-1]) + 1))
    roots: list[_Node] = []
    stack: list[_Node] = []
    for at, depth in [*zip(starts.tolist(), same[starts].tolist(), strict=True), (members - 1, 0)]:
        left, orphan = at, None
        while stack and stack[-1].depth > depth:
            node = stack.pop()
            node.last, left = at + 1, node.first
            if stack and stack[-1].depth >= depth:
                stack[-1].children.append(node)
            else:
                orphan = node
        if depth and (not stack or stack[-1].depth < depth):
            stack.append(_Node(depth, left, children=[orphan] if orphan else []))
        elif orphan:
            roots.append(orphan)
    return roots


def _outer(node: _Node, level: int) -> _Choice:
    """The best grouping of a subtree whose members are in no group yet."""
    if level > _NESTED:
        return _Choice()
    own = _Choice((node.last - node.first - 1) * node.depth, ((node, 0),))
    if not node.children:
        return own
    here = _sum([own, *(_inner(child, node.depth, level + 1) for child in node.children)])
    below = _sum([_outer(child, level + 1) for child in node.children])
    return here if here.saved >= below.saved else below


def _inner(node: _Node, start: int, level: int) -> _Choice:
    """The best grouping of a subtree whose members are in a group up to block `start`."""
    if level > _NESTED:
        return _Choice()
    own = _Choice((node.last - node.first - 1) * (node.depth - start), ((node, start),))
    below = _sum([_inner(child, start, level + 1) for child in node.children])
    return own if own.saved >= below.saved else below


def _sum(choices: list[_Choice]) -> _Choice:
    return _Choice(sum(c.saved for c in choices), tuple(span for c in choices for span in c.spans))
