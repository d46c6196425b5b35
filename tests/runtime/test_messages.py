"""Orders on the wire: no grammar travels twice in one, and what arrives is what was sent."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m

OPS = st.lists(
    st.sampled_from(["", "a", "b" * 70, "c"]).map(lambda grammar: (grammar, bool(grammar))) | st.just(("", False)),
    max_size=12,
)


def made(grammars: list[tuple[str, bool]]) -> tuple[m.AnyOp, ...]:
    """Generates under these grammars, and Appends in between."""
    ops: list[m.AnyOp] = []
    for n, (grammar, calls) in enumerate(grammars):
        ops.append(
            m.Generate(f"0.{n}", "0", Sampling(seed=n), n, grammar, "exact", n)
            if calls
            else m.Append(f"0.{n}", "0", ((n,), "0.0"))
        )
    return tuple(ops)


@given(OPS)
def test_what_arrives_is_what_was_sent(grammars: list[tuple[str, bool]]) -> None:
    ops = made(grammars)
    order = m.packed("p", ops)
    wire = msgspec.msgpack.encode(order)
    assert tuple(m.whole(msgspec.msgpack.decode(wire, type=m.OrderOps))) == ops
    for grammar in {grammar for grammar, _ in grammars if len(grammar) > 1}:
        assert wire.count(grammar.encode()) == 1


def test_a_thousand_branches_cost_one_schema() -> None:
    schema = "x" * 60_000
    order = m.packed("p", made([(schema, True)] * 1000))
    assert len(msgspec.msgpack.encode(order)) < 2 * len(schema) + 100_000
    held = {id(op.grammar) for op in m.whole(order) if isinstance(op, m.Generate)}
    assert len(held) == 1  # nor does it take memory a thousand times


def test_one_grammar_of_one_op_stays_where_it_is() -> None:
    ops = made([("a", True), ("c", True)])
    assert m.packed("p", ops) == m.OrderOps("p", ops)
