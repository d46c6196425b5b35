"""The radix tree against a brute-force model (a set of prefixes), vocabulary of two tokens; its eviction order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ramet.runtime.radix import Node, RadixTree
from ramet.runtime.slots import Slots

CAPACITY = 48
NAMESPACES = ("", "a", "b")
Prefix = tuple[str, tuple[int, ...]]


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


class Model:
    """The tree as a set of prefixes, each with its slot; locks are the prefixes that they hold."""

    def __init__(self) -> None:
        self.slot: dict[Prefix, int] = {}
        self.locks: list[Prefix] = []

    def match(self, namespace: str, tokens: tuple[int, ...]) -> int:
        length = 0
        while length < len(tokens) and (namespace, tokens[: length + 1]) in self.slot:
            length += 1
        return length

    def held(self) -> set[Prefix]:
        return {(ns, p[:i]) for ns, p in self.locks for i in range(1, len(p) + 1)}


class Pair:
    """Tree and slots, driven together with the model; every operation compares the two."""

    def __init__(self) -> None:
        self.tree, self.slots, self.model = RadixTree(), Slots(CAPACITY), Model()
        self.nodes: list[Node] = []  # nodes[i] is held by model.locks[i]

    def walk(self, namespace: str, tokens: tuple[int, ...]) -> Node:
        node, matched = self.tree.match(self.tree.root(namespace), ids(*tokens))
        assert matched == node.depth == self.model.match(namespace, tokens)
        assert tuple(self.tree.path_tokens(node)) == tokens[:matched]
        expected = [self.model.slot[namespace, tokens[:i]] for i in range(1, matched + 1)]
        assert self.tree.path_slots(node).tolist() == expected
        assert self.tree.path_slots(node, matched // 2).tolist() == expected[matched // 2 :]
        return node

    def insert(self, namespace: str, tokens: tuple[int, ...], below: int) -> None:
        """Insert below the node that matches the first `below` tokens, as a sequence that holds its node does."""
        start = self.walk(namespace, tokens[:below])
        self.tree.lock(start)
        rest = tokens[start.depth :]
        if len(rest) > self.slots.free:
            self.evict(len(rest) - self.slots.free, (namespace, tokens[: start.depth]))
        mine = self.slots.alloc(len(rest))
        if mine is not None:
            node, theirs = self.tree.insert(start, ids(*rest), mine)
            assert node.depth == len(tokens)
            for i, (own, kept) in enumerate(zip(mine.tolist(), theirs.tolist(), strict=True)):
                prefix = (namespace, tokens[: start.depth + i + 1])
                assert self.model.slot.setdefault(prefix, own) == kept
            self.slots.release(mine[mine != theirs])
        self.tree.unlock(start)

    def evict(self, count: int, also_held: Prefix = ("", ())) -> None:
        self.model.locks.append(also_held)
        held = self.model.held()
        self.model.locks.pop()
        evictable = len(self.model.slot) - len(held)
        assert self.tree.evictable == evictable
        self.drop(self.tree.evict(count), held, min(count, evictable))

    def drop(self, slots: np.ndarray, held: set[Prefix], count: int) -> None:
        gone = set(slots.tolist())
        assert len(slots) == len(gone) == count
        self.slots.release(slots)
        for prefix in [p for p, slot in self.model.slot.items() if slot in gone]:
            assert prefix not in held, "evicted although locked"
            del self.model.slot[prefix]
        for namespace, tokens in self.model.slot:
            assert len(tokens) == 1 or (namespace, tokens[:-1]) in self.model.slot, "evicted from the middle"

    def lock(self, namespace: str, tokens: tuple[int, ...]) -> None:
        node = self.walk(namespace, tokens)
        self.tree.lock(node)
        self.nodes.append(node)
        self.model.locks.append((namespace, tokens[: node.depth]))

    def unlock(self, index: int, cold: bool) -> None:
        self.model.locks.pop(index)
        self.tree.unlock(self.nodes.pop(index), cold)

    def check(self) -> None:
        self.tree.check(self.nodes)
        self.slots.check()
        assert self.tree.size == len(self.model.slot)
        assert self.tree.locked == len(self.model.held())
        assert self.slots.free + self.tree.size == CAPACITY
        for node, (namespace, tokens) in zip(self.nodes, self.model.locks, strict=True):
            assert node.namespace == namespace
            assert tuple(self.tree.path_tokens(node)) == tokens

    def end(self) -> None:
        """Let go of everything: the tree must come out empty and the pool full."""
        while self.nodes:
            self.unlock(0, cold=bool(len(self.nodes) % 2))
        self.check()
        self.drop(self.tree.clear(), set(), len(self.model.slot))
        assert self.slots.free == CAPACITY
        assert (self.tree.size, self.tree.locked, self.tree.namespaces) == (0, 0, 0)
        self.check()


RUNS = st.lists(st.integers(0, 1), max_size=12).map(tuple)
SPACES = st.sampled_from(NAMESPACES)


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class TreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @rule(namespace=SPACES, tokens=RUNS)
    def match(self, namespace: str, tokens: tuple[int, ...]) -> None:
        self.pair.walk(namespace, tokens)

    @rule(namespace=SPACES, tokens=RUNS, below=st.integers(0, 12))
    def insert(self, namespace: str, tokens: tuple[int, ...], below: int) -> None:
        self.pair.insert(namespace, tokens, below)

    @rule(namespace=SPACES, tokens=RUNS)
    def lock(self, namespace: str, tokens: tuple[int, ...]) -> None:
        self.pair.lock(namespace, tokens)

    @precondition(lambda self: self.pair.nodes)
    @rule(data=st.data(), cold=st.booleans())
    def unlock(self, data: st.DataObject, cold: bool) -> None:
        self.pair.unlock(data.draw(st.integers(0, len(self.pair.nodes) - 1)), cold)

    @rule(count=st.integers(0, CAPACITY))
    def evict(self, count: int) -> None:
        self.pair.evict(count)

    @rule()
    def clear(self) -> None:
        held = self.pair.model.held()
        self.pair.drop(self.pair.tree.clear(), held, len(self.pair.model.slot) - len(held))

    @invariant()
    def agrees(self) -> None:
        self.pair.check()

    def teardown(self) -> None:
        self.pair.end()


TestTreeMachine = TreeMachine.TestCase


def _round(pair: Pair, rng: random.Random, pool: list[tuple[int, ...]]) -> None:
    kind = rng.random()
    tokens = rng.choice(pool)[: rng.randint(0, 16)]
    namespace = NAMESPACES[0] if rng.random() < 0.7 else rng.choice(NAMESPACES)
    if kind < 0.3:
        pair.walk(namespace, tokens)
    elif kind < 0.6:
        pair.insert(namespace, tokens, rng.randint(0, 16))
    elif kind < 0.78 and len(pair.nodes) < 6:
        pair.lock(namespace, tokens)
    elif kind < 0.97:
        if pair.nodes:
            pair.unlock(rng.randrange(len(pair.nodes)), rng.random() < 0.4)
    else:
        pair.evict(rng.randint(0, 10))


@pytest.mark.parametrize("seed", range(10))
def test_random_rounds(seed: int) -> None:
    """10 x 10^4 rounds; every round compares its own operation, every 50th the whole."""
    rng = random.Random(seed)
    pool = [tuple(rng.randint(0, 1) for _ in range(16)) for _ in range(24)]
    pair = Pair()
    for i in range(10_000):
        _round(pair, rng, pool)
        if i % 50 == 0:
            pair.check()
    pair.end()


# -- eviction order


def _tree_of(*runs: tuple[int, ...]) -> tuple[RadixTree, list[Node]]:
    """A tree with the given runs below one root; slot numbers count up in the order of insertion."""
    tree, nodes, count = RadixTree(), [], 0
    for run in runs:
        node, _ = tree.insert(tree.root(), ids(*run), np.arange(count, count + len(run), dtype=np.int32))
        nodes.append(node)
        count += len(run)
    return tree, nodes


def test_evicts_the_least_recently_used_leaf_first() -> None:
    tree, _ = _tree_of((1, 1), (2, 2), (3, 3))
    tree.match(tree.root(), ids(1, 1))
    assert sorted(tree.evict(2)) == [2, 3]
    assert sorted(tree.evict(2)) == [4, 5]
    assert sorted(tree.evict(2)) == [0, 1]


def test_cuts_only_the_tail_that_is_needed() -> None:
    tree, nodes = _tree_of((1, 2, 3, 4, 5))
    assert tree.evict(2).tolist() == [3, 4]
    assert tree.path_tokens(nodes[0]).tolist() == [1, 2, 3]
    assert tree.evict(1).tolist() == [2]
    tree.check()
    assert sorted(tree.evict(99).tolist()) == [0, 1]
    assert tree.size == 0


def test_a_parent_stays_as_long_as_its_child() -> None:
    tree, nodes = _tree_of((1,), (1, 2), (7,), (8,))
    tree.match(nodes[1], ids())  # from the held node: the walk does not pass its parent
    assert sorted(tree.evict(2)) == [3, 4]
    assert tree.evict(1).tolist() == [2]


def test_what_was_locked_counts_as_used_when_it_is_unlocked() -> None:
    tree, nodes = _tree_of((1,), (2,), (3,))
    tree.lock(nodes[0])
    tree.match(tree.root(), ids(2))
    tree.unlock(nodes[0])
    assert [int(tree.evict(1)[0]) for _ in range(3)] == [2, 1, 0]


def test_cold_goes_first_and_takes_its_tail_along() -> None:
    tree, nodes = _tree_of((1, 1), (2, 2), (2, 2, 3), (4, 4))
    tree.lock(nodes[1])
    tree.unlock(nodes[1], cold=True)
    tree.check([])
    assert tree.evict(1).tolist() == [6]
    assert tree.evict(2).tolist() == [2, 3]
    assert tree.evict(2).tolist() == [0, 1]


def test_cold_of_a_node_that_another_holds_changes_nothing() -> None:
    tree, nodes = _tree_of((1, 1), (2, 2))
    tree.lock(nodes[1])
    tree.lock(nodes[1])
    tree.unlock(nodes[1], cold=True)
    assert tree.evict(4).tolist() == [0, 1]
    tree.unlock(nodes[1])
    assert tree.evict(4).tolist() == [2, 3]


def test_cold_of_a_branching_node_leaves_its_branches_alone() -> None:
    tree, nodes = _tree_of((1, 1), (1, 1, 2), (1, 1, 3), (9,))
    tree.lock(nodes[0])
    tree.unlock(nodes[0], cold=True)
    order = [int(tree.evict(1)[0]) for _ in range(5)]
    assert set(order[:2]) == {4, 7}, "the branches were used before (9,)"
    tree.check([])


def test_use_after_cold_warms() -> None:
    tree, nodes = _tree_of((1, 1), (2, 2))
    tree.lock(nodes[1])
    tree.unlock(nodes[1], cold=True)
    tree.match(tree.root(), ids(2, 2))
    assert tree.evict(2).tolist() == [0, 1]


def test_locked_nodes_survive_everything() -> None:
    tree, nodes = _tree_of((1, 2, 3), (1, 2, 4))
    tree.lock(nodes[0])
    assert tree.clear().tolist() == [5]
    assert tree.evict(10).tolist() == []
    assert tree.path_slots(nodes[0]).tolist() == [0, 1, 2]
    tree.check([nodes[0]])


# -- shape


def test_a_split_keeps_the_holders_node() -> None:
    tree, nodes = _tree_of((1, 2, 3, 4))
    tree.lock(nodes[0])
    upper, matched = tree.match(tree.root(), ids(1, 2, 9))
    assert matched == upper.depth == 2
    assert upper.refs == 1
    assert nodes[0].parent is upper
    assert tree.path_tokens(nodes[0]).tolist() == [1, 2, 3, 4]
    tree.check([nodes[0]])


def test_insert_keeps_the_slots_that_the_tree_has() -> None:
    tree, _ = _tree_of((1, 2, 3))
    node, slots = tree.insert(tree.root(), ids(1, 2, 5, 6), ids(10, 11, 12, 13))
    assert slots.tolist() == [0, 1, 12, 13]
    assert node.depth == 4
    again, slots = tree.insert(tree.root(), ids(1, 2, 5, 6), ids(20, 21, 22, 23))
    assert again is node
    assert slots.tolist() == [0, 1, 12, 13]


def test_what_the_caller_inserts_is_copied() -> None:
    tree = RadixTree()
    tokens, slots = ids(1, 2, 3), ids(0, 1, 2)
    node, _ = tree.insert(tree.root(), tokens, slots)
    tokens[:], slots[:] = 9, 9
    assert tree.path_tokens(node).tolist() == [1, 2, 3]
    assert tree.path_slots(node).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        tree.path_slots(node)[0] = 5


def test_a_remnant_does_not_keep_its_origin_in_memory() -> None:
    tree, nodes = _tree_of(tuple(range(1000)))
    tree.evict(999)
    assert nodes[0].tokens.base is None
    assert nodes[0].tokens.nbytes == 4


def test_nothing_is_something() -> None:
    tree = RadixTree()
    root = tree.root("x")
    assert tree.match(root, ids()) == (root, 0)
    node, slots = tree.insert(root, ids(), ids())
    assert node is root
    assert slots.tolist() == tree.path_slots(root).tolist() == tree.path_tokens(root).tolist() == []
    assert tree.evict(0).tolist() == []
    tree.check([])


def test_namespaces_do_not_see_each_other_and_vanish_when_empty() -> None:
    tree = RadixTree()
    tree.insert(tree.root("a"), ids(1, 2), ids(0, 1))
    assert tree.match(tree.root("b"), ids(1, 2))[1] == 0
    tree.lock(tree.root("c"))
    assert tree.namespaces == 3
    tree.clear()
    assert tree.namespaces == 1, "the locked root stays"
    tree.check([tree.root("c")])
    tree.unlock(tree.root("c"))
    assert tree.namespaces == 0
    assert tree.root("a") is not None


def test_a_root_that_was_only_looked_at_goes_with_the_next_eviction() -> None:
    tree = RadixTree()
    for i in range(100):
        tree.match(tree.root(str(i)), ids(1))
    tree.evict(1)
    assert tree.namespaces == 0


def test_use_of_an_evicted_node_is_caught() -> None:
    tree, nodes = _tree_of((1, 2))
    root = tree.root()
    tree.clear()
    for node in (nodes[0], root):
        with pytest.raises(AssertionError, match="evicted"):
            tree.match(node, ids(1))
        with pytest.raises(AssertionError, match="evicted"):
            tree.lock(node)
        with pytest.raises(AssertionError, match="not locked"):
            tree.unlock(node)


def test_the_eviction_queue_stays_small() -> None:
    tree, nodes = _tree_of((1,), (2,), (3,))
    for i in range(5000):
        tree.lock(nodes[i % 3])
        tree.unlock(nodes[i % 3], cold=True)
    assert len(tree._queue) < 100
    tree.check([])


def test_a_path_of_thousands_of_nodes_needs_no_recursion() -> None:
    tree = RadixTree()
    node = tree.root()
    for i in range(3000):
        node, _ = tree.insert(node, ids(i), ids(i))
    assert node.depth == 3000
    assert tree.path_slots(node, 2998).tolist() == [2998, 2999]
    tree.check()
    assert "depth=3000" in repr(node)
    assert len(list(tree.nodes())) == 3001
    assert len(tree.clear()) == 3000


def _break_size(tree: RadixTree, node: Node) -> None:
    tree.size += 1


def _break_locked(tree: RadixTree, node: Node) -> None:
    tree.locked += 1


def _break_depth(tree: RadixTree, node: Node) -> None:
    node.depth += 1


def _break_count(tree: RadixTree, node: Node) -> None:
    node.refs += 1


def _break_slots(tree: RadixTree, node: Node) -> None:
    node.slots = np.zeros_like(node.slots)


def _break_parent(tree: RadixTree, node: Node) -> None:
    node.parent = node


def _break_queue(tree: RadixTree, node: Node) -> None:
    tree._queue.clear()


def _break_entry(tree: RadixTree, node: Node) -> None:
    node.used = -7


def _break_edge(tree: RadixTree, node: Node) -> None:
    node.tokens = node.slots = ids()


@pytest.mark.parametrize(
    "damage",
    [
        _break_size,
        _break_locked,
        _break_depth,
        _break_count,
        _break_slots,
        _break_parent,
        _break_queue,
        _break_entry,
        _break_edge,
    ],
)
def test_check_finds_damage(damage: object) -> None:
    tree, nodes = _tree_of((1, 2), (3, 4))
    tree.check([])
    damage(tree, nodes[0])  # type: ignore[operator]
    with pytest.raises(AssertionError):
        tree.check([])


def test_check_finds_a_holder_outside() -> None:
    tree, _ = _tree_of((1, 2))
    with pytest.raises(AssertionError, match="leaves the tree"):
        tree.check([Node(None, ids(), ids(), "")])
