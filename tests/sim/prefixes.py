"""The prefix cache and the allocator against brute-force models, round by round, with a vocabulary of two tokens.

In: a seed. Out: nothing, or the AssertionError of the first round after which tree, pool and models differ.
"""

from __future__ import annotations

import random

import numpy as np

from ramet.runtime.slots import BLOCK, Slots

from ..runtime.test_radix_model import NAMESPACES, Pair

POOL = 83  # slots: five blocks, and a part of one
LONGEST = 16  # tokens of a run


class Pool:
    """An allocator beside the set of slots that are taken."""

    def __init__(self) -> None:
        self.slots = Slots(POOL)
        self.taken: set[int] = set()

    def round(self, rng: random.Random) -> None:
        """One random operation, compared with the model."""
        kind = rng.random()
        if kind < 0.45:
            self.alloc(rng.choice((1, 1, 2, 5, BLOCK, 20, POOL)), rng.choice((-1, rng.randrange(POOL))))
        elif kind < 0.55:
            self.follow(rng.sample(range(POOL), rng.randint(0, 6)))
        elif kind < 0.95:
            some = sorted(self.taken)
            self.release(rng.sample(some, rng.randint(0, len(some))))
        else:
            self.refuse(rng.choice([-1, POOL, *(slot for slot in range(POOL) if slot not in self.taken)]))
        self.check()

    def alloc(self, count: int, after: int) -> None:
        """So many slots, best behind `after`; none when too few are free."""
        free = set(range(POOL)) - self.taken
        whole = [b for b in range(POOL // BLOCK) if free.issuperset(range(b * BLOCK, (b + 1) * BLOCK))]
        got = self.slots.alloc(count, after)
        if count > len(free):
            assert got is None, f"{count} slots of {len(free)}"
            return
        assert got is not None, f"none of {len(free)} slots for {count}"
        slots = got.tolist()
        assert len(set(slots)) == count and free.issuperset(slots), f"{slots} are not {count} free ones"
        run = next(i for i in range(count + 1) if i == count or after + 1 + i not in free) if after >= 0 else 0
        assert slots[:run] == list(range(after + 1, after + 1 + run)), f"{slots} do not continue {after}"
        if after < 0 and count <= BLOCK and whole:
            assert slots[0] % BLOCK == 0 and slots == list(range(slots[0], slots[0] + count)), f"{slots}: scattered"
        self.taken.update(slots)

    def follow(self, after: list[int]) -> None:
        """One slot each, as so many allocations would give."""
        if len(after) > POOL - len(self.taken):
            return
        got = self.slots.follow(np.array(after, np.int32)).tolist()
        for last, slot in zip(after, got, strict=True):
            assert slot not in self.taken, f"slot {slot} is taken"
            assert slot == last + 1 or last + 1 in self.taken or last + 1 >= POOL, f"{last} is followed by {slot}"
            self.taken.add(slot)

    def release(self, slots: list[int]) -> None:
        """Give some back."""
        self.slots.release(np.array(slots, np.int32))
        self.taken.difference_update(slots)

    def refuse(self, slot: int) -> None:
        """A slot that nobody has cannot be given back."""
        try:
            self.slots.release(np.array([slot], np.int32))
        except AssertionError:
            return
        raise AssertionError(f"slot {slot} was released, and nobody had it")

    def check(self) -> None:
        """The two agree."""
        self.slots.check()
        free = self.slots.is_free(np.arange(POOL, dtype=np.int32))
        assert set(np.flatnonzero(~free).tolist()) == self.taken, "the pool and its model differ"
        assert self.slots.free == POOL - len(self.taken), f"free is {self.slots.free}"


def tree_round(pair: Pair, rng: random.Random, pool: list[tuple[int, ...]]) -> None:
    """One random operation on tree and slots."""
    kind = rng.random()
    tokens = rng.choice(pool)[: rng.randint(0, LONGEST)]
    namespace = NAMESPACES[0] if rng.random() < 0.7 else rng.choice(NAMESPACES)
    if kind < 0.25:
        pair.walk(namespace, tokens)
    elif kind < 0.55:
        pair.insert(namespace, tokens, rng.randint(0, LONGEST))
    elif kind < 0.75 and len(pair.nodes) < 6:
        pair.lock(namespace, tokens)
    elif kind < 0.94:
        if pair.nodes:
            pair.unlock(rng.randrange(len(pair.nodes)), rng.random() < 0.4)
    else:
        pair.evict(rng.randint(0, 10))


def rounds(seed: int, count: int) -> None:
    """So many rounds, everything compared after each; then all is given back, and the two are empty."""
    rng = random.Random(seed)
    texts = [tuple(rng.randint(0, 1) for _ in range(LONGEST)) for _ in range(rng.randint(2, 24))]
    pair, pool = Pair(), Pool()
    for _ in range(count):
        tree_round(pair, rng, texts)
        pair.check()
        pool.round(rng)
    pair.end()
    pool.release(sorted(pool.taken))
    pool.check()
