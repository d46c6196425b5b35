"""The radix tree: eviction order, splits, copies, namespaces, misuse (test_radix_model.py holds it against a model)."""

from __future__ import annotations

import numpy as np
import pytest

from ramet.runtime.radix import Node, RadixTree


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


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
    assert nodes[0].tokens.base is nodes[0].key
    assert len(nodes[0].key) == 4
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
