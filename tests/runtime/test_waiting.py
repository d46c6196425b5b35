"""The queue against sorting everything each time: order within a group, turns between groups, remembered matches."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.programs import Program
from ramet.runtime.radix import RadixTree
from ramet.runtime.sequence import Choosing, Generating, Sequence
from ramet.runtime.waiting import AGE_BONUS, LEAD, LOOKAHEAD, Waiting, rank


def program_of(order: int, namespace: str = "", priority: int = 0) -> Program:
    return Program(f"p{order}", namespace, priority, order, 0.0)


def generating(limit: int) -> Generating:
    return Generating(m.Generate("0.1", "0", Sampling(max_tokens=limit), 0), 1, limit, now=0.0)


def sequence_of(program: Program, order: int, tokens: tuple[int, ...] = (1, 2)) -> Sequence:
    seq = Sequence(program, f"0.{order}", order)
    seq.append(np.array(tokens, np.int32))
    seq.task = generating(100)
    return seq


def change(rng: random.Random, seq: Sequence) -> None:
    """Something that moves a sequence in the queue."""
    choose = m.Choose("0.1", "0", ((1,), (2,)), "token_length_normalized")
    seq.task = rng.choice([None, generating(100), generating(2), Choosing(choose, 2, 0.0)])
    if rng.random() < 0.3:
        seq.program.steps += 1


def expected(queued: dict[Sequence, int], served: dict[str, int]) -> list[Sequence]:
    """The order by sorting everything, for programs without cached prefixes: groups in turn, members by rank."""
    groups: dict[tuple[int, str], list[Sequence]] = {}
    for seq in queued:
        groups.setdefault((-seq.program.priority, seq.program.namespace), []).append(seq)
    first_come = {key: min(queued[seq] for seq in group) for key, group in groups.items()}
    keys = sorted(groups, key=lambda key: (key[0], served.get(key[1], 0), first_come[key]))
    out: list[Sequence] = []
    for priority in sorted({key[0] for key in keys}):
        ranked = [sorted(groups[key], key=rank) for key in keys if key[0] == priority]
        for turn in range(max(map(len, ranked))):
            out += [group[turn] for group in ranked if turn < len(group)]
    return out[:LOOKAHEAD]


@given(st.integers(0, 2**32))
def test_the_queue_is_always_in_order(seed: int) -> None:
    rng = random.Random(seed)
    waiting = Waiting(RadixTree())
    programs = [program_of(i, f"ns{i % 3}", i % 2) for i in range(8)]
    pool = [sequence_of(rng.choice(programs), i) for i in range(90)]
    queued: dict[Sequence, int] = {}
    served = {f"ns{i}": rng.randrange(3) for i in range(2)}
    for serial in range(150):
        seq = rng.choice(pool)
        if seq not in queued:
            waiting.add(seq)
            queued[seq] = serial
        elif rng.random() < 0.4:
            waiting.discard(seq)
            del queued[seq]
        else:
            change(rng, seq)
            for other in pool:  # its program may have begun to run
                if other.program is seq.program:
                    waiting.update(other)
        assert len(waiting) == len(queued)
        assert (seq in waiting) == (seq in queued)
    assert set(waiting) == set(queued)
    assert waiting.next(served) == expected(queued, served)


def test_a_cached_prompt_overtakes_so_many_programs_and_no_more() -> None:
    tree = RadixTree()
    cached = np.arange(40, dtype=np.int32)
    tree.insert(tree.root(), cached, cached)
    waiting = Waiting(tree)
    seqs = [sequence_of(program_of(i), i, (7, 7)) for i in range(int(AGE_BONUS) + 4)]
    late = sequence_of(program_of(len(seqs)), len(seqs), tuple(range(40)))
    for seq in [*seqs, late]:
        waiting.add(seq)
    assert waiting.next({}) == [*seqs[:5], late, *seqs[5:]], "of equals, the older first"


def test_a_tiny_op_overtakes_so_many_programs_and_no_more() -> None:
    waiting = Waiting(RadixTree())
    old, new = sequence_of(program_of(0), 0), sequence_of(program_of(9), 1)
    for tiny in (sequence_of(program_of(LEAD - 1), 2), sequence_of(program_of(LEAD + 3), 3)):
        tiny.task = generating(4)
        waiting.add(tiny)
    first, second = waiting
    waiting.add(old)
    waiting.add(new)
    assert waiting.next({}) == [first, old, second, new]


def test_nothing_known_of_programs_is_first_come_first_served() -> None:
    tree = RadixTree()
    cached = np.arange(40, dtype=np.int32)
    tree.insert(tree.root(), cached, cached)
    waiting = Waiting(tree, aware=False)
    seqs = [sequence_of(program_of(i), i, tuple(range(40)) if i == 3 else (7, 7)) for i in range(5)]
    seqs[4].task = generating(1)
    seqs[2].program.steps = 1
    for seq in reversed(seqs):
        waiting.add(seq)
    assert waiting.next({}) == seqs


def test_a_match_is_remembered_until_the_tree_or_the_sequence_changes() -> None:
    tree = RadixTree()
    waiting = Waiting(tree)
    first, second = sequence_of(program_of(0), 0, (7, 7)), sequence_of(program_of(1), 1, (1, 2, 3, 4))
    waiting.add(first)
    waiting.add(second)
    assert waiting.next({}) == [first, second]
    tree.insert(tree.root(), second.tokens(0, 4), np.arange(4, dtype=np.int32))
    assert waiting.next({}) == [second, first]
    used = [node.used for node in tree.nodes()]
    assert waiting.next({}) == [second, first]
    assert [node.used for node in tree.nodes()] == used, "nothing changed, and it was looked up again"
    second.append(np.full(10_000, 9, np.int32))
    waiting.update(second)
    assert waiting.next({}) == [first, second], "its cached part is next to nothing now"
    tree.clear()
    assert waiting.next({}) == [first, second]


def test_a_sequence_that_is_not_queued_may_be_updated_and_discarded() -> None:
    waiting = Waiting(RadixTree())
    seq = sequence_of(program_of(0), 0)
    waiting.update(seq)
    waiting.discard(seq)
    assert not waiting
    assert waiting.next({}) == []
