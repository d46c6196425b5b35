"""The prefix cache: a radix tree from token ids to KV slots, one root per namespace.

In: runs of tokens with the slots that hold their K and V. Out: the longest known prefix of a prompt, its slots, and the
slots that eviction gives back. Host data only: numpy and the standard library; no torch, no clock (age is a counter).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import ArrayLike

from ramet.runtime.batch import I32

DEAD = -1  # `refs` of a node that left the tree: any later use of it is a broken invariant


def _own(values: ArrayLike) -> I32:
    """A private, read-only copy. A view would let a remnant of one token keep a base of thousands alive."""
    array = np.array(values, np.int32)
    array.setflags(write=False)
    return array


_EMPTY = _own(())
_BYTES = _EMPTY.itemsize


class Node:
    """A run of tokens and, below it, the runs that continue it. Whoever keeps a node over an eviction locks it.

    `tokens`, `slots` `[n] int32` (read-only): the edge from the parent; empty only in a root. `key`: the bytes of
    `tokens`, in one memory with them. `depth`: tokens from the root to this node's end. `children`: by the first token
    of their edge. `refs`: holders whose path includes this node. `used`: when it was last used, in the tree's ticks;
    negative: to be evicted first. `queued`: key of its live entry in the tree's eviction queue.
    """

    __slots__ = ("children", "depth", "key", "namespace", "parent", "queued", "refs", "slots", "tokens", "used")

    def __init__(self, parent: Node | None, tokens: I32, slots: I32, namespace: str) -> None:
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.bear(tokens, slots)
        self.depth: int = len(tokens) + (parent.depth if parent is not None else 0)
        self.refs = 0
        self.used = 0
        self.queued: int | None = None
        self.namespace = namespace

    def bear(self, tokens: I32, slots: I32) -> None:
        """Make copies of `tokens` and `slots` the node's edge."""
        self.key = tokens.tobytes()
        self.tokens: I32 = np.frombuffer(self.key, np.int32)
        self.slots = _own(slots)

    def __repr__(self) -> str:
        return f"Node(depth={self.depth}, edge={len(self.tokens)}, children={len(self.children)}, refs={self.refs})"


class RadixTree:
    """Prefixes and their slots (a radix tree as in Zheng et al. 2024, SGLang's RadixAttention).

    `size`: tokens in the tree, over all namespaces; `locked`: those of them in nodes with refs > 0. `changes`: grows
    whenever tokens come or go, so that who remembers a match can tell that it still holds. Eviction takes the
    least recently used leaf that nobody holds. The candidates are a heap with lazy deletion: an entry's key is a lower
    bound of its node's age and is corrected when it is popped, so that a touch costs nothing and an eviction O(log n).
    """

    def __init__(self) -> None:
        self.size = 0
        self.locked = 0
        self.changes = 0
        self._roots: dict[str, Node] = {}
        self._fresh: list[Node] = []  # roots made since the last sweep: perhaps never filled
        self._queue: list[tuple[int, int, Node]] = []
        self._live = 0  # queue entries that are their node's own: the others are skipped
        self._serial = 0
        self._tick = 0
        self._coldest = 0

    @property
    def evictable(self) -> int:
        """Tokens that `evict` could give back: an unlocked node has only unlocked descendants."""
        return self.size - self.locked

    @property
    def namespaces(self) -> int:
        """How many roots there are."""
        return len(self._roots)

    def root(self, namespace: str = "") -> Node:
        """The root of a namespace, made on demand. Unless locked or filled it goes with the next eviction."""
        node = self._roots.get(namespace)
        if node is None:
            node = self._roots[namespace] = Node(None, _EMPTY, _EMPTY, namespace)
            self._fresh.append(node)
        return node

    def match(self, node: Node, tokens: I32) -> tuple[Node, int]:
        """Walk down from `node`'s end along `tokens` `[n] int32`: the deepest node reached and how many tokens matched.

        Where the match ends inside an edge, that edge is split, so that the node ends exactly where the match does.
        Marks what it passes as used. One comparison of bytes per edge, and one of tokens where the match ends.
        """
        assert node.refs >= 0, "match from a node that was evicted: it was not locked"
        self._tick += 1
        node.used = self._tick
        done, total, key = 0, len(tokens), tokens.tobytes()
        while done < total:
            child = node.children.get(int(tokens[done]))
            if child is None:
                break
            if key.startswith(child.key, done * _BYTES):
                done += len(child.tokens)
                node = child
            else:
                same = _agreement(child.tokens, tokens[done:])
                done += same
                node = self._split(child, same)
            node.used = self._tick
        return node, done

    def insert(self, node: Node, tokens: I32, slots: I32) -> tuple[Node, I32]:
        """Add `tokens` with their `slots` (both `[n] int32`) below `node`'s end.

        Where the tree already has a token its own slot stays. Returns the node at the end of `tokens` and the tree's
        slots for all of them `[n]` (read-only): the caller frees those of its own that differ.
        """
        assert len(tokens) == len(slots), f"{len(tokens)} tokens but {len(slots)} slots"
        end, found = self.match(node, tokens)
        known = self.path_slots(end, node.depth)
        if found == len(tokens):
            return end, known
        leaf = Node(end, tokens[found:], slots[found:], node.namespace)
        leaf.used = self._tick
        end.children[int(leaf.tokens[0])] = leaf
        self.size += len(leaf.tokens)
        self.changes += 1
        self._offer(leaf)
        return leaf, np.concatenate((known, leaf.slots)) if found else leaf.slots

    def path_slots(self, node: Node, start: int = 0) -> I32:
        """Slots of positions [start, node.depth) `[node.depth - start] int32`."""
        return _path([(n.slots, n.depth) for n in _upwards(node) if n.depth > start], start)

    def path_tokens(self, node: Node) -> I32:
        """Tokens of positions [0, node.depth) `[node.depth] int32`."""
        return _path([(n.tokens, n.depth) for n in _upwards(node)], 0)

    def lock(self, node: Node) -> None:
        """Hold `node` and all above it: nothing on its path is evicted until `unlock`. Locks count."""
        assert node.refs >= 0, "lock of a node that was evicted: lock it before anything else is evicted"
        for above in _upwards(node):
            if above.refs == 0:
                self.locked += len(above.tokens)
            above.refs += 1

    def unlock(self, node: Node, cold: bool = False) -> None:
        """Undo one `lock`. The node counts as used now. If `cold`, and nobody else holds it, then it goes before
        everything else instead, with the tail of tokens that hangs below it as long as that does not branch (a
        retracted sequence: kept only while nothing needs its space)."""
        assert node.refs > 0, "unlock of a node that is not locked"
        for above in _upwards(node):
            above.refs -= 1
            if above.refs == 0:
                self.locked -= len(above.tokens)
        if not cold:
            self._tick += 1
            node.used = self._tick
        elif node.refs == 0:
            node = self._chill(node)
        self._offer(node)

    def evict(self, count: int) -> I32:
        """Drop `count` tokens, or all that are not locked if those are fewer: least recently used leaves first, of the
        last one only as much of its tail as is needed. Returns their slots `[<= count] int32`."""
        missing = min(count, self.evictable)
        dropped: list[I32] = []
        while missing > 0:
            leaf = self._oldest_leaf()
            dropped.append(self._cut(leaf, max(0, len(leaf.tokens) - missing)))
            missing -= len(dropped[-1])
        for root in self._fresh:
            self._offer(root)
        self._fresh.clear()
        return np.concatenate(dropped) if dropped else _EMPTY

    def clear(self) -> I32:
        """Drop everything that is not locked; the slots of it."""
        return self.evict(self.evictable)

    def nodes(self) -> Iterator[Node]:
        """Every node, roots included, parents before children; not while the tree changes."""
        for root in self._roots.values():
            yield from _downwards(root)

    def check(self, holders: Iterable[Node] | None = None) -> None:
        """Raise AssertionError unless all counts, links and the eviction queue agree (RELIABILITY, invariants 2 and 4).

        With `holders` (one node per lock, repeated as often as it is locked) reference counts are compared exactly.
        """
        nodes = list(self.nodes())
        _check_links(self._roots, nodes)
        _check_counts(nodes, holders)
        locked = sum([len(n.tokens) for n in nodes if n.refs])
        assert self.locked == locked, f"locked is {self.locked}, the locked nodes hold {locked}"
        slots = np.sort(np.concatenate([n.slots for n in nodes])) if nodes else _EMPTY
        assert self.size == len(slots), f"size is {self.size}, the nodes hold {len(slots)}"
        assert not (slots[1:] == slots[:-1]).any(), "a slot is in two places of the tree"
        _check_queue(nodes, self._queue, self._live)

    # -- eviction queue

    def _offer(self, node: Node) -> None:
        """Queue a node if it has just become a leaf that nobody holds; an empty root vanishes instead."""
        if node.refs or node.children:
            return
        if node.parent is None:
            del self._roots[node.namespace]
            node.refs = DEAD
            return
        if node.queued is not None and node.queued <= node.used:
            return
        self._live += node.queued is None
        self._push(node)
        if len(self._queue) > 2 * self._live + 64:
            self._queue = [entry for entry in self._queue if entry[2].queued == entry[0]]
            heapify(self._queue)

    def _push(self, node: Node) -> None:
        self._serial += 1  # ties of age go by the order of queueing; nodes themselves are never compared
        node.queued = node.used
        heappush(self._queue, (node.used, self._serial, node))

    def _chill(self, node: Node) -> Node:
        """Make a node and the chain below it colder than everything; the end of the chain."""
        while True:
            self._coldest -= 1
            node.used = self._coldest
            if len(node.children) != 1:
                return node
            node = next(iter(node.children.values()))

    def _oldest_leaf(self) -> Node:
        while True:
            assert self._queue, "tokens are evictable but no leaf is queued"
            key, _, node = heappop(self._queue)
            if node.queued != key:
                continue  # superseded by an entry with a smaller key
            if not node.refs and not node.children and node.used > key:
                self._push(node)  # used since it was queued
                continue
            node.queued = None
            self._live -= 1
            if not node.refs and not node.children:
                return node

    # -- shape

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node`'s edge after `at` tokens; `node` stays the lower part, so that its holders notice nothing."""
        parent = node.parent
        assert parent is not None, "a root has no edge to split"
        upper = Node(parent, node.tokens[:at], node.slots[:at], node.namespace)
        upper.refs, upper.used = node.refs, node.used
        parent.children[int(upper.tokens[0])] = upper
        node.parent = upper
        node.bear(node.tokens[at:], node.slots[at:])
        upper.children[int(node.tokens[0])] = node
        return upper

    def _cut(self, leaf: Node, keep: int) -> I32:
        """Drop all but the first `keep` tokens of a leaf; a leaf of which nothing is left goes. Returns the slots."""
        parent = leaf.parent
        assert parent is not None, "a root is never queued"
        dropped = leaf.slots[keep:]
        self.size -= len(dropped)
        self.changes += 1
        if keep:
            leaf.depth -= len(dropped)
            leaf.bear(leaf.tokens[:keep], leaf.slots[:keep])
            self._offer(leaf)
            return dropped
        del parent.children[int(leaf.tokens[0])]
        leaf.parent, leaf.refs = None, DEAD
        self._offer(parent)
        return dropped


def _agreement(edge: I32, tokens: I32) -> int:
    """Length of the common prefix of two non-empty runs."""
    n = min(len(edge), len(tokens))
    differs = edge[:n] != tokens[:n]
    first = int(differs.argmax())
    return first if differs[first] else n


def _upwards(node: Node) -> Iterator[Node]:
    """The node and its ancestors, the root last."""
    above: Node | None = node
    while above is not None:
        yield above
        above = above.parent


def _downwards(root: Node) -> Iterator[Node]:
    """The node and all its descendants, without recursion (paths can be thousands of nodes long)."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def _path(runs: list[tuple[I32, int]], start: int) -> I32:
    """Join the runs (deepest first, each with the position of its end) of positions from `start` on."""
    parts = [run[max(0, start - end + len(run)) :] for run, end in reversed(runs)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else _EMPTY


def _check_links(roots: dict[str, Node], nodes: list[Node]) -> None:
    assert len({id(n) for n in nodes}) == len(nodes), "a node hangs in two places"
    for namespace, root in roots.items():
        assert root.namespace == namespace, f"root of {namespace!r} says {root.namespace!r}"
        assert root.parent is None, f"root of {namespace!r} has a parent"
        assert len(root.tokens) == len(root.slots) == root.depth == 0, f"root of {namespace!r} is not empty"
    int32 = np.dtype(np.int32)
    for node in nodes:
        count = len(node.tokens)
        assert len(node.slots) == count, f"{node}: {len(node.slots)} slots"
        assert node.key == node.tokens.tobytes(), f"{node}: its key spells other tokens"
        assert node.tokens.dtype == int32 and node.slots.dtype == int32, f"{node}: not int32"
        for first, child in node.children.items():
            assert len(child.tokens) > 0, f"{child}: empty edge"
            assert child.tokens[0] == first, f"{child}: filed under {first}"
            assert child.parent is node, f"{child}: wrong parent"
            assert child.depth == node.depth + len(child.tokens), f"{child}: wrong depth"
            assert child.namespace == node.namespace, f"{child}: in two namespaces"


def _check_counts(nodes: list[Node], holders: Iterable[Node] | None) -> None:
    for node in nodes:
        if node.children:
            below = sum([child.refs for child in node.children.values()])
            assert node.refs >= below, f"{node}: its children are held {below} times"
    if holders is None:
        return
    counts: dict[int, int] = {}
    for holder in holders:
        for above in _upwards(holder):
            counts[id(above)] = counts.get(id(above), 0) + 1
    for node in nodes:
        held = counts.pop(id(node), 0)
        assert node.refs == held, f"node at depth {node.depth}: refs {node.refs}, held {held}"
    assert not counts, "a holder's path leaves the tree"


def _check_queue(nodes: list[Node], queue: list[tuple[int, int, Node]], live: int) -> None:
    queued = {id(node) for key, _, node in queue if node.queued == key}
    inside = {id(node) for node in nodes if node.queued is not None}
    assert queued == inside, "the eviction queue and the nodes' entries differ"
    assert live == len(queued), f"live is {live}, the queue holds {len(queued)} live entries"
    for node in nodes:
        if node.parent is not None and not node.children and not node.refs:
            assert node.queued is not None, f"{node}: an evictable leaf that is not queued"
            assert node.queued <= node.used, f"{node}: queued later than its age"
