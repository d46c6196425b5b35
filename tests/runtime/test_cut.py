"""Close with `now`: one branch and all below it stop at once, the others do not notice."""

from __future__ import annotations

import pytest

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m

from ..sim.law import Law
from ..sim.ledger import LedgerRunner
from .driving import Drive

PROMPT = tuple(range(10, 30))
BRANCHES = ("0.1.b0", "0.1.b1", "0.1.b2")


def drive() -> Drive:
    return Drive(LedgerRunner(Law(vocab=200), capacity=400, rows=8, context=200))


def program(d: Drive, *more: m.AnyOp, end: bool = False) -> str:
    """Three branches that generate 20 tokens each; the first forks once more at once."""
    gens = [m.Generate(f"{name}.1", name, Sampling(max_tokens=20), i) for i, name in enumerate(BRANCHES)]
    twig = m.Fork("0.1.b0.0", "0.1.b0", ("0.1.b0.0.b0",))
    leaf = m.Generate("0.1.b0.0.b0.0", "0.1.b0.0.b0", Sampling(max_tokens=20), 9)
    return d.program(m.Append("0.0", "0", (PROMPT,)), m.Fork("0.1", "0", BRANCHES), twig, leaf, *gens, *more, end=end)


def failure(d: Drive, name: str, op: str) -> str:
    found = d[name, op].failure
    return found.kind if found is not None else ""


@pytest.mark.parametrize("step", [0, 1, 2, 9])
def test_a_cut_branch_stops_with_all_below_it(step: int) -> None:
    whole = drive()
    reference = program(whole, end=True)
    whole.run()
    d = drive()
    name = program(d)
    for _ in range(step):
        d.step()
    d.order(m.OrderOps(name, (m.Close("0.1.b0.2", "0.1.b0", True),)), m.OrderEnd(name))
    d.run()
    assert d.over[name].kind == ""
    assert failure(d, name, "0.1.b0.1") == failure(d, name, "0.1.b0.0.b0.0") == "aborted"
    for i in (1, 2):
        assert d[name, f"0.1.b{i}.1"].bits == whole[reference, f"0.1.b{i}.1"].bits
    assert d.over[name].generated == 40 + 2 * max(step - 1, 0)
    assert d.core.stats().kv_used == 0


def test_a_join_of_a_cut_branch_fails_and_one_of_a_finished_branch_does_not() -> None:
    d = drive()
    name = program(d, m.Join("0.2", "0", BRANCHES[:1]), m.Generate("0.3", "0", Sampling(max_tokens=2), 1))
    d.step()
    d.order(m.OrderOps(name, (m.Close("0.1.b0.2", "0.1.b0", True),)), m.OrderEnd(name))
    d.run()
    assert failure(d, name, "0.2") == failure(d, name, "0.3") == "aborted"

    d = drive()
    name = program(d, m.Close("0.1.b1.2", "0.1.b1"))
    for _ in range(40):
        d.step()
    cut = m.Close("0.1.b1.3", "0.1.b1", True)
    d.order(m.OrderOps(name, (cut, m.Join("0.2", "0", BRANCHES[1:2]))), m.OrderEnd(name))
    d.run()
    assert failure(d, name, "0.1.b1.1") == failure(d, name, "0.2") == ""


def test_a_branch_that_is_still_to_be_forked_can_be_cut() -> None:
    d = drive()
    late = ("0.3.b0",)
    name = d.program(
        m.Append("0.0", "0", (PROMPT,)),
        m.Generate("0.1", "0", Sampling(max_tokens=5), 1),
        m.Fork("0.3", "0", late),
        m.Generate("0.3.b0.0", "0.3.b0", Sampling(max_tokens=5), 2),
        m.Close("0.3.b0.1", "0.3.b0", True),
    )
    d.run()
    assert failure(d, name, "0.3.b0.0") == "aborted"
    assert len(d[name, "0.1"].tokens) == 5
