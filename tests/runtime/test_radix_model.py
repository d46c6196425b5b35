"""The radix tree against a brute-force model, a set of prefixes, with a vocabulary of two tokens."""

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
