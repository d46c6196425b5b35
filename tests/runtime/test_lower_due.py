"""Values that are announced before they are there: what lowering lets pass, and what the engine makes of those that
never come."""

from __future__ import annotations

import pytest

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime import messages as m

from .test_ahead import drive, settle
from .test_lower import TOKENS, gen, lowering, text

DUE = ir.Put(id="0.0", seq="0", var="p", value="", due=True)
VALUE = ir.Put(id="0.0", seq="0", var="p", value="wor")
GONE = ir.Put(id="0.0", seq="0", var="p", value="", failed="no such page")


def test_a_text_may_refer_to_a_value_that_was_announced() -> None:
    low = lowering()
    first, _ = low.lower([DUE, text(1, "a ", ir.Ref("0.0"), "b"), gen(2)])
    assert [type(op) for op in first] == [m.Append, m.Append, m.Append, m.Generate], "an announcement stays here"
    assert first[1] == m.Append("0.1", "0", ("0.0",))
    assert low.lower([VALUE])[0] == [m.Put("0.0", "0", tuple(TOKENS.encode("wor")))]
    with pytest.raises(ConstraintError, match="exists already"):
        low.lower([VALUE])


def test_a_value_that_failed_is_told_of() -> None:
    low = lowering()
    low.lower([DUE, text(1, ir.Ref("0.0")), gen(2)])
    assert low.lower([GONE])[0] == [m.Put("0.0", "0", (), "no such page")]


@pytest.mark.parametrize("ops", [(DUE, DUE), (VALUE, DUE), (DUE, VALUE, GONE), (GONE, VALUE)])
def test_a_value_comes_once(ops: tuple[ir.Put, ...]) -> None:
    with pytest.raises(ConstraintError, match="exists already"):
        lowering().lower(ops)


@pytest.mark.parametrize("fields", [{"value": "a", "due": True}, {"value": "a", "failed": "b"}])
def test_a_put_says_one_thing(fields: dict[str, object]) -> None:
    with pytest.raises(ConstraintError, match="a Put has one of value, due, failed"):
        ir.Put(**{"id": "0.0", "seq": "0", "var": "p", "value": "", **fields})  # type: ignore[arg-type]


def test_what_waits_for_a_value_that_failed_fails_and_no_more() -> None:
    d = drive()
    fork = m.Fork("0.1", "0", ("0.1.b0", "0.1.b1"))
    waits = [m.Append("0.1.b0.0", "0.1.b0", ("0.9",)), m.Append("0.1.b1.0", "0.1.b1", ((3, 4),))]
    calls = [m.Generate(f"{seq}.1", seq, ir.Sampling(max_tokens=3, ignore_eos=True), 1) for seq in fork.into]
    name = d.program(m.Append("0.0", "0", ((5, 6),)), fork, *waits, *calls, end=False)
    settle(d)
    d.order(m.OrderOps(name, (m.Put("0.9", "0", (), "no such page"),)), m.OrderEnd(name))
    d.run(name)
    assert d.over[name].kind == ""
    assert d[name, "0.1.b1.1"].done is not None
    failed = {op: d[name, op].failure for op in ("0.1.b0.0", "0.1.b0.1")}
    assert all(failure is not None and "no such page" in failure.message for failure in failed.values()), failed
