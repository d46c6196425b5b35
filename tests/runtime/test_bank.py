"""The banker's question against all orders; what a program declares against what it then holds."""

from __future__ import annotations

import random
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ramet.runtime import messages as m
from ramet.runtime.bank import can_all_finish
from ramet.runtime.footprint import peak, resident
from ramet.runtime.lengths import Learned

from ..sim.law import Law
from ..sim.ledger import LedgerRunner
from ..sim.programs import Shape, program
from .driving import Drive
from .small import generate, text

LOANS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5)


@given(st.integers(0, 20), LOANS)
def test_all_can_finish_when_some_order_says_so(free: int, loans: list[tuple[int, int]]) -> None:
    def works(order: tuple[tuple[int, int], ...]) -> bool:
        left = free
        for need, back in order:
            if need > left:
                return False
            left += back
        return True

    assert can_all_finish(free, loans) == any(works(order) for order in permutations(loans))


def limited(op: m.AnyOp) -> m.AnyOp:
    """The same with a limit: without one a program declares what is to be expected, not what may come."""
    if isinstance(op, m.Generate) and op.sampling.max_tokens is None:
        return replace(op, sampling=replace(op.sampling, max_tokens=9))
    return op


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_a_program_holds_no_more_than_it_declared(seed: int) -> None:
    rng = random.Random(seed)
    ops = [limited(op) for op in program(rng, Shape(wild=0.0))]
    d = Drive(LedgerRunner(Law(12), capacity=4000, rows=64, context=200), batch_tokens=32)
    name = d.program(*ops)
    d.step()
    most = 0
    live = d.core.programs.live.get(name)
    declared = peak(live, Learned(), 200) if live is not None else 4000
    while name in d.core.programs.live:
        d.step()
        kv = d.core.stats()
        most = max(most, kv.kv_used)
    assert most <= declared, f"{most} slots, declared {declared}"


def declared(*ops: m.AnyOp) -> int:
    """What a program declares before anything of it was computed."""
    d = Drive(LedgerRunner(Law(12), capacity=4000, rows=64, context=1000))
    name = d.program(*ops, end=False)
    for order in d.port.receive(False):
        d.core.programs.receive(order)
    return peak(d.core.programs.live[name], Learned(), 1000)


def fork(at: str, seq: str, count: int) -> m.Fork:
    return m.Fork(at, seq, tuple(f"{at}.b{i}" for i in range(count)))


def test_text_and_generations_add_up() -> None:
    assert declared(text("0.0", 10), generate("0.1", 5), text("0.2", 7), generate("0.3", 20)) == 42


def test_branches_are_alive_together_until_they_are_joined() -> None:
    branches = [op for i in range(3) for op in (text(f"0.1.b{i}.0", 2), generate(f"0.1.b{i}.1", 10 * (i + 1)))]
    ops = (text("0.0", 10), fork("0.1", "0", 3), *branches)
    assert declared(*ops) == 10 + 3 * 2 + 10 + 20 + 30
    join = m.Join("0.2", "0", ("0.1.b0", "0.1.b1", "0.1.b2"))
    assert declared(*ops, join) == 10 + 3 * 2 + 60, "the parent has their texts, they are gone"
    assert declared(*ops, join, generate("0.3", 9)) == 10 + 3 * 2 + 60 + 9


def test_the_wider_of_two_forks_counts() -> None:
    first = (fork("0.1", "0", 4), *(generate(f"0.1.b{i}.0", 10) for i in range(4)))
    second = (fork("0.3", "0", 2), *(generate(f"0.3.b{i}.0", 50) for i in range(2)))
    join = m.Join("0.2", "0", ("0.1.b0",))
    assert declared(text("0.0", 10), *first, *second) == 10 + 40 + 100
    assert declared(text("0.0", 10), *first, join, *second) == 10 + 30 + 10 + 100


def test_values_to_come_are_counted_where_they_are_embedded() -> None:
    ops = (text("0.0", 10), generate("0.1", 5), fork("0.2", "0", 1))
    assert declared(*ops, m.Append("0.2.b0.0", "0.2.b0", ("0.1",))) == 10 + 5 + 5


def test_what_branches_share_is_counted_once() -> None:
    d = Drive(LedgerRunner(Law(12), capacity=4000, rows=64, context=1000))
    name = d.program(text("0.0", 10), fork("0.1", "0", 3), m.Close("0.2", "0"), text("0.1.b0.0", 4), end=False)
    d.step()
    assert resident(d.core.programs.live[name]) == 14
