"""Batches over trees of shared slots, for tests. In: choices of hypothesis. Out: a `Tree`: nodes of slots, and segments
that end in some of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from ramet.runtime.batch import I32, Batch

from .ragged import Part, batch

CAPACITY = 20_000


@dataclass(frozen=True)
class Tree:
    """Node i hangs under parents[i] (-1: a root) and has lengths[i] slots; segment (node, new) is the path to the node,
    whose last `new` slots are the batch's new tokens. A node's slots are new in one segment at most; others may list
    them as history."""

    parents: tuple[int, ...]
    lengths: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    seed: int

    def path(self, node: int) -> I32:
        """The slots of a path, scattered over the cache."""
        order = np.random.default_rng(self.seed).permutation(CAPACITY).astype(np.int32)
        ends = np.cumsum(self.lengths)
        pieces = []
        while node >= 0:
            pieces.append(order[ends[node] - self.lengths[node] : ends[node]])
            node = self.parents[node]
        return np.concatenate(pieces[::-1])

    def parts(self) -> list[Part]:
        """The segments."""
        paths = [(self.path(node), new) for node, new in self.segments]
        return [Part(np.zeros(len(path), np.int32), path, len(path) - new, len(path)) for path, new in paths]

    def batch(self) -> Batch:
        """All segments."""
        return batch(self.parts())


@st.composite
def forests(
    draw: st.DrawFn, *, lengths: st.SearchStrategy[int], trunk: st.SearchStrategy[int] | None = None, nodes: int = 8
) -> Tree:
    """Trees of up to `nodes` nodes: a segment ends in every leaf and in some other nodes, in any order. `trunk`:
    lengths of nodes that have children."""
    count = draw(st.integers(1, nodes))
    parents = tuple(draw(st.integers(-1 if i % 4 == 0 else 0, max(-1, i - 1))) for i in range(count))
    inner = sorted(set(parents) - {-1})
    sizes = tuple(draw(trunk if trunk is not None and i in inner else lengths) for i in range(count))
    ends = [i for i in range(count) if i not in inner]
    if inner:
        ends += draw(st.lists(st.sampled_from(inner), unique=True, max_size=2))
    ends = draw(st.permutations(ends))
    new = st.one_of(st.just(1), st.integers(1, 6), st.sampled_from([17, 40, 130]))
    segments = tuple((node, min(sizes[node], draw(new))) for node in ends)
    return Tree(parents, sizes, segments, draw(st.integers(0, 3)))
