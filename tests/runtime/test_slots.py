"""The free list against a set, the preference for contiguous runs, and the row table."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ramet.frontend.errors import EngineError
from ramet.runtime.slots import BLOCK, Rows, Slots


class Model:
    """Slots beside the set of those that are taken."""

    def __init__(self, capacity: int) -> None:
        self.slots = Slots(capacity)
        self.taken: list[int] = []

    def alloc(self, n: int, after: int) -> None:
        free = set(range(self.slots.capacity)) - set(self.taken)
        got = self.slots.alloc(n, after)
        if n > len(free):
            assert got is None
            return
        assert got is not None
        assert got.dtype == np.int32
        new = got.tolist()
        assert len(set(new)) == len(new) == n
        assert set(new) <= free
        if n and after >= 0 and after + 1 in free:
            assert new[0] == after + 1
        self.taken += new

    def release(self, slots: list[int]) -> None:
        self.slots.release(np.array(slots, np.int32))
        gone = set(slots)
        self.taken = [s for s in self.taken if s not in gone]

    def check(self) -> None:
        self.slots.check()
        assert self.slots.free == self.slots.capacity - len(self.taken)
        free = self.slots.is_free(np.arange(self.slots.capacity, dtype=np.int32))
        assert np.flatnonzero(~free).tolist() == sorted(self.taken)


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class SlotsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model(150)

    @rule(after=st.lists(st.integers(0, 149), max_size=20))
    def follow(self, after: list[int]) -> None:
        free = self.model.slots.free
        if len(after) > free:
            with pytest.raises(AssertionError, match="are free"):
                self.model.slots.follow(np.array(after, np.int32))
            return
        twin = Slots(self.model.slots.capacity)
        twin._taken[:], twin._fill[:], twin.free = self.model.slots._taken, self.model.slots._fill, free
        got = self.model.slots.follow(np.array(after, np.int32))
        one_by_one = [slots.tolist() for last in after if (slots := twin.alloc(1, last)) is not None]
        assert [[slot] for slot in got.tolist()] == one_by_one
        assert got.dtype == np.int32
        self.model.taken += got.tolist()

    @rule(n=st.integers(0, 60), after=st.integers(-1, 149))
    def alloc(self, n: int, after: int) -> None:
        self.model.alloc(n, after)

    @precondition(lambda self: self.model.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.model.release(data.draw(st.lists(st.sampled_from(self.model.taken), unique=True)))

    @rule()
    def release_every_other(self) -> None:
        self.model.release(self.model.taken[::2])

    @invariant()
    def agrees(self) -> None:
        self.model.check()


TestSlotsMachine = SlotsMachine.TestCase


@pytest.mark.parametrize("capacity", [1, 15, 16, 17, 333])
def test_random_rounds(capacity: int) -> None:
    rng = random.Random(capacity)
    model = Model(capacity)
    for i in range(4000):
        if rng.random() < 0.55:
            n = rng.choice((0, 1, 1, 2, 5, BLOCK, BLOCK + 1, 60))
            model.alloc(n, rng.randint(-1, capacity - 1))
        else:
            rng.shuffle(model.taken)
            model.release(model.taken[: rng.choice((0, 1, 3, 40, 400))])
        if i % 20 == 0:
            model.check()
    model.release(list(model.taken))
    model.check()
    assert model.slots.free == capacity


# -- where slots are taken


def take(slots: Slots, n: int, after: int = -1) -> list[int]:
    got = slots.alloc(n, after)
    assert got is not None
    return got.tolist()


def test_sequences_that_decode_together_stay_contiguous() -> None:
    slots = Slots(1024)
    heads = [take(slots, 1) for _ in range(8)]
    for _ in range(BLOCK - 1):
        for own in heads:
            own += take(slots, 1, own[-1])
    for own in heads:
        assert own == list(range(own[0], own[0] + BLOCK))


def test_a_prompt_takes_one_run_and_decoding_goes_on_behind_it() -> None:
    slots = Slots(1024)
    prompt = take(slots, 100)
    assert prompt == list(range(prompt[0], prompt[0] + 100))
    other = take(slots, 1)[0]
    assert other not in range(prompt[0], prompt[0] + 112), "the rest of the prompt's last block is left to it"
    assert take(slots, 5, prompt[-1]) == list(range(prompt[-1] + 1, prompt[-1] + 6))


def test_a_large_request_takes_the_smallest_run_that_holds_it() -> None:
    slots = Slots(20 * BLOCK)
    everything = np.array(take(slots, 20 * BLOCK), np.int32)
    slots.release(everything[2 * BLOCK : 5 * BLOCK])
    slots.release(everything[8 * BLOCK : 18 * BLOCK])
    assert take(slots, 3 * BLOCK - 2) == list(range(2 * BLOCK, 5 * BLOCK - 2))


def test_a_request_larger_than_any_run_takes_the_longest_first() -> None:
    slots = Slots(20 * BLOCK)
    everything = np.array(take(slots, 20 * BLOCK), np.int32)
    slots.release(everything[2 * BLOCK : 4 * BLOCK])
    slots.release(everything[8 * BLOCK : 12 * BLOCK])
    got = take(slots, 5 * BLOCK)
    assert got == [*range(8 * BLOCK, 12 * BLOCK), *range(2 * BLOCK, 3 * BLOCK)]


def test_fragments_serve_when_no_block_is_free() -> None:
    slots = Slots(8 * BLOCK)
    everything = np.array(take(slots, 8 * BLOCK), np.int32)
    slots.release(everything[::2])
    assert take(slots, 40) == list(range(0, 80, 2))
    assert slots.alloc(25) is None
    assert slots.free == 24, "a refused request takes nothing"
    assert sorted(take(slots, 10) + take(slots, 14)) == list(range(80, 128, 2))
    assert slots.alloc(1) is None
    slots.check()


def test_the_rest_of_a_run_is_used_before_a_fresh_one() -> None:
    slots = Slots(8 * BLOCK)
    first = take(slots, 3)
    blocker = take(slots, 1, BLOCK - 2)
    assert blocker == [BLOCK - 1]
    got = take(slots, 20, first[-1])
    assert got[:12] == list(range(3, 15))
    assert got[12:] == list(range(BLOCK, BLOCK + 8))


def test_the_end_of_the_pool_is_not_passed() -> None:
    slots = Slots(20)
    assert take(slots, 1, 18) == [19]
    assert take(slots, 2, 19) == [0, 1]
    slots.check()


# -- misuse


@pytest.mark.parametrize("capacity", [0, -1, 1 << 31])
def test_a_capacity_that_is_none(capacity: int) -> None:
    with pytest.raises(EngineError, match="capacity"):
        Slots(capacity)


@pytest.mark.parametrize("extra", [0, 100])
def test_double_and_foreign_releases_are_caught(extra: int) -> None:
    """Few slots and many slots take different ways; both refuse."""
    slots = Slots(400)
    mine = np.array(take(slots, extra + 2), np.int32)
    for bad in (np.append(mine, mine[-1:]), np.append(mine, 399), np.append(mine, -1), np.append(mine, 400)):
        fresh = Slots(400)
        fresh.alloc(len(mine))
        with pytest.raises(AssertionError, match="release of"):
            fresh.release(bad.astype(np.int32))
    slots.release(mine)
    with pytest.raises(AssertionError, match="release of"):
        slots.release(mine)


def test_what_alloc_returns_cannot_be_written_by_mistake() -> None:
    got = Slots(40).alloc(3)
    assert got is not None
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 7


@pytest.mark.parametrize("field", ["free", "_fill", "_taken"])
def test_check_finds_damage(field: str) -> None:
    slots = Slots(40)
    slots.alloc(5)
    if field == "free":
        slots.free -= 1
    else:
        getattr(slots, field)[1] ^= 1
    with pytest.raises(AssertionError):
        slots.check()


# -- rows


def test_rows_are_given_once_and_come_back() -> None:
    rows = Rows(3, 8)
    got = [rows.alloc() for _ in range(3)]
    assert sorted(r for r in got if r is not None) == [0, 1, 2]
    assert rows.alloc() is None
    assert rows.free == 0
    rows.release(1)
    rows.check()
    assert rows.free == 1
    assert rows.alloc() == 1
    rows.release(1)
    for bad in (1, -1, 3):
        with pytest.raises(AssertionError, match=f"row {bad}"):
            rows.release(bad)


def test_a_released_row_is_overwritten_in_debug_only() -> None:
    for debug in (False, True):
        rows = Rows(2, 4, debug)
        row = rows.alloc()
        assert row is not None
        rows.table[row] = 5
        rows.release(row)
        assert (rows.table[row] == (-1 if debug else 5)).all()
    assert rows.table.dtype == np.int32
    assert rows.table.shape == (2, 4)


def test_rows_check_finds_damage() -> None:
    rows = Rows(2, 4)
    rows._free.append(0)
    with pytest.raises(AssertionError):
        rows.check()


@pytest.mark.parametrize(("count", "context"), [(0, 4), (4, 0)])
def test_rows_that_are_none(count: int, context: int) -> None:
    with pytest.raises(EngineError, match="at least 1"):
        Rows(count, context)
