"""What is computed before it is asked for, and who goes first: counted, step by step."""

from __future__ import annotations

import pytest

from ramet.runtime import messages as m
from ramet.runtime.config import POLICIES

from ..sim.law import Law
from ..sim.ledger import LedgerRunner
from .driving import Drive
from .small import generate, text


def drive(*, capacity: int = 400, rows: int = 8, **limits: object) -> Drive:
    return Drive(LedgerRunner(Law(12), capacity=capacity, rows=rows, context=300), **limits)


def settle(d: Drive, steps: int = 60) -> None:
    for _ in range(steps):
        d.step()


def test_text_before_a_tools_answer_is_computed_while_the_tool_runs() -> None:
    d = drive()
    heard = m.Append("0.3", "0", ("0.4",))
    name = d.program(text("0.0", 50), generate("0.1", 4), text("0.2", 20), heard, generate("0.5", 2), end=False)
    settle(d)
    assert d.core.scheduler.computed == 50 + 4 + 20 - 1, "all but the token whose logits the next call wants"
    assert list(d.core.scheduler.resting), "it has a lease, and no place"
    d.order(m.OrderOps(name, (m.Put("0.4", "0", (3, 4, 5)),)), m.OrderEnd(name))
    d.run(name)
    assert d.core.scheduler.computed == 50 + 4 + 20 + 3 + 2 - 1


def test_a_join_computes_what_has_ended_while_the_rest_decodes() -> None:
    d = drive()
    names = ("0.1.b0", "0.1.b1", "0.1.b2")
    closes = [m.Close(f"{name}.9", name) for name in names]
    branches = [text("0.1.b0.0", 3, 2), generate("0.1.b0.1", 2), text("0.1.b1.0", 12, 5), generate("0.1.b1.1", 2)]
    join = m.Join("0.2", "0", names)
    last = text("0.1.b2.0", 1, 8), generate("0.1.b2.1", 40)
    name = d.program(text("0.0", 10), m.Fork("0.1", "0", names), *branches, *last, *closes, join)
    settle(d, 20)
    program = d.core.programs.live[name]
    parent = program.sequences["0"]
    assert program.sequences["0.1.b2"].task is not None, "the last branch decodes"
    assert (parent.known, parent.computed, parent.joined) == (10 + 5 + 14, 10 + 5 + 14 - 1, 2)
    assert (name, "0.2") not in d.results, "nothing is told before all have ended"
    d.run(name)
    assert d.over[name].kind == ""
    assert d.over[name].computed == 10 + (3 + 1) + (12 + 1) + (1 + 39) + 1 + 14 - 1, "the first one's text is shared"


@pytest.mark.parametrize("policy", POLICIES)
def test_who_goes_first(policy: str) -> None:
    """One place: a program of two calls, then one of a long call, then one of a tiny call."""
    d = drive(rows=1, policy=policy)
    first = d.program(text("0.0", 9), generate("0.1", 6), text("0.2", 2), generate("0.3", 6))
    d.step()
    long = d.program(text("0.0", 9, 5), generate("0.1", 6))
    tiny = d.program(text("0.0", 9, 7), generate("0.1", 2))
    order: list[tuple[str, str]] = []

    def note(_: int) -> None:
        order.extend(key for key, result in d.results.items() if result.done is not None and key not in order)

    d.run(before=note)
    note(0)
    if policy == "lru-fcfs":
        assert order == [(first, "0.1"), (long, "0.1"), (tiny, "0.1"), (first, "0.3")]
    else:
        assert order == [(first, "0.1"), (first, "0.3"), (tiny, "0.1"), (long, "0.1")]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_program_that_waits_keeps_its_kv_where_programs_are_known(policy: str) -> None:
    d = drive(policy=policy)
    name = d.program(text("0.0", 30), generate("0.1", 3), end=False)
    settle(d, 10)
    kept = d.core.stats().kv_used
    assert kept == (0 if policy == "lru-fcfs" else 32)
    d.order(m.OrderEnd(name))
    d.run(name)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lease_holds_up_nobody_for_ever(policy: str) -> None:
    """The owner of a lease waits for a program that finds no room beside it."""
    d = drive(capacity=100, policy=policy)
    owner = d.program(
        text("0.0", 60), generate("0.1", 3), m.Append("0.2", "0", ("0.3",)), generate("0.4", 3), end=False
    )
    settle(d, 12)
    other = d.program(text("0.0", 60, 4), generate("0.1", 20))
    d.run(other)
    assert d.over[other].kind == ""
    assert d.core.scheduler.revocations == (0 if policy == "lru-fcfs" else 1)
    d.order(m.OrderOps(owner, (m.Put("0.3", "0", (5,)),)), m.OrderEnd(owner))
    d.run(owner)
    alone = drive()
    same = alone.program(text("0.0", 60), generate("0.1", 3), text("0.2", 1, 4), generate("0.4", 3))
    alone.run(same)
    assert d[owner, "0.4"].tokens == alone[same, "0.4"].tokens


def test_a_newcomer_waits_until_whoever_has_begun_can_finish() -> None:
    """Two programs that fit together at first, and not in the end: the second begins when the first is done."""
    d = drive(capacity=100)
    first, second = (d.program(text("0.0", 20, n), *(generate(f"0.{k}", 10) for k in range(1, 6))) for n in (1, 5))
    d.run()
    begins, ends = d[second, "0.1"].done, d[first, "0.5"].done
    assert begins is not None and ends is not None
    assert begins.first_step > ends.last_step - 10
    assert d.core.scheduler.retractions == d.core.scheduler.revocations == 0
    assert d.core.scheduler.computed == 2 * (20 + 50 - 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_score_of_nothing_behind_a_choice_that_filled_the_pool(policy: str) -> None:
    d = drive(capacity=24, policy=policy)
    choose = m.Choose("0.1", "0", ((1, 2, 3),), "token_length_normalized")
    name = d.program(text("0.0", 22), choose, m.Score("0.2", "0", 1 << 20))
    d.run(name, limit=200)
    assert d.over[name].kind == ""
    assert d[name, "0.2"].done is not None
    assert d[name, "0.2"].tokens == []
