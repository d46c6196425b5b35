"""Lowering of token ids that a client brings, and of Scores: what becomes of the text around them."""

from __future__ import annotations

import pytest

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, ContextOverflow, StateError
from ramet.runtime import messages as m

from .test_lower import BOS, CHATML, TOKENS, Program, lowered, lowering, tokenizer

WITH_BOS = tokenizer(add_bos_token=True)


def test_ids_are_appended_as_they_are() -> None:
    program = Program()
    program.text("the wor")
    program.add(ir.Tokens, ids=(5, 5, 1, 0))
    program.text("ld")
    end = program.gen()
    want = [*TOKENS.encode("the wor"), 5, 5, 1, 0, *TOKENS.encode("ld"), end]
    for cuts in ([], [1], [2], [1, 2, 3]):
        assert lowered(program, cuts)["0"] == want


@pytest.mark.parametrize("source", [CHATML, BOS])
def test_ids_at_the_start_bring_their_own_bos_or_none(source: str) -> None:
    program = Program()
    program.add(ir.Tokens, ids=(7, 8))
    program.text("the")
    end = program.gen()
    assert lowered(program, tokens=WITH_BOS, source=source)["0"] == [7, 8, *WITH_BOS.encode("the"), end]
    after = Program()
    after.text("the")
    after.add(ir.Tokens, ids=(7, 8))
    end = after.gen()
    assert lowered(after, tokens=WITH_BOS, source=source)["0"] == [0, *WITH_BOS.encode("the"), 7, 8, end]


def test_no_ids_are_no_start() -> None:
    program = Program()
    program.add(ir.Tokens, ids=())
    end = program.gen()
    assert lowered(program, tokens=WITH_BOS)["0"] == [0, end]
    with pytest.raises(ConstraintError, match="empty prompt"):
        lowered(program)


def test_ids_before_and_after_a_fork() -> None:
    program = Program()
    program.text("the wor")
    program.add(ir.Tokens, ids=(9,))
    children = program.fork(2)
    program.text("ld", seq=children[0])
    program.add(ir.Tokens, seq=children[1], ids=(4, 3))
    program.text("ld", seq=children[1])
    ends = [program.gen(seq=child) for child in children]
    found = lowered(program)
    shared = [*TOKENS.encode("the wor"), 9]
    assert found[children[0]] == [*shared, *TOKENS.encode("ld"), ends[0]]
    assert found[children[1]] == [*shared, 4, 3, *TOKENS.encode("ld"), ends[1]]


def test_ids_right_after_a_fork_end_what_its_text_could_continue() -> None:
    program = Program()
    program.text("the wor")
    (child,) = program.fork(1)
    program.add(ir.Tokens, seq=child, ids=(4,))
    program.text("ld", seq=child)
    end = program.gen(seq=child)
    assert lowered(program)[child] == [*TOKENS.encode("the wor"), 4, *TOKENS.encode("ld"), end]


def test_ids_inside_a_message() -> None:
    program = Program()
    program.add(ir.Role, role="user", edge="begin")
    program.add(ir.Tokens, ids=(6, 2))
    program.add(ir.Role, role="user", edge="end")
    end = program.gen()
    edges = [TOKENS.encode_template(text) for text in ("<|im_start|>user\n", "<|im_end|>\n")]
    assert lowered(program)["0"] == [*edges[0], 6, 2, *edges[1], end]


@pytest.mark.parametrize("bad", [-1, TOKENS.vocab_size, 1 << 40])
def test_ids_that_are_no_tokens_are_refused(bad: int) -> None:
    low = lowering()
    with pytest.raises(ConstraintError, match=f"ids: {bad} is not a token id; ids of this model are 0 to"):
        low.lower([ir.Tokens(id="0.0", seq="0", ids=(1, bad))])
    assert low.lower([ir.Tokens(id="0.0", seq="0", ids=(1,))])[0] == [m.Append("0.0", "0", ((1,),))]


def test_ids_count_for_the_context() -> None:
    low = lowering(context=10)
    with pytest.raises(ContextOverflow, match="11 tokens"):
        low.lower([ir.Tokens(id="0.0", seq="0", ids=(1,) * 11)])
    low.lower([ir.Tokens(id="0.0", seq="0", ids=(1,) * 10), ir.Score(id="0.1", seq="0", var="x")])
    assert low.length("0") == 10
    with pytest.raises(ContextOverflow, match="no room to generate"):
        low.lower([ir.Gen(id="0.2", seq="0", var="x")])


# -- scores


def test_a_score_comes_after_all_text_before_it() -> None:
    low = lowering(tokens=WITH_BOS)
    ops = low.lower(
        [
            ir.Text(id="0.0", seq="0", parts=("the wor",)),
            ir.Score(id="0.1", seq="0", var="x", start=3, top=5),
            ir.Text(id="0.2", seq="0", parts=("ld",)),
            ir.Gen(id="0.3", seq="0", var="y"),
        ]
    )[0]
    assert [type(op) for op in ops] == [m.Append, m.Append, m.Score, m.Append, m.Generate]
    assert ops[0] == m.Append("0.0", "0", ((0,),))
    assert ops[2] == m.Score("0.1", "0", 3, 5)
    assert ops[3] == m.Append("0.2", "0", (tuple(WITH_BOS.encode("ld")),))


def test_a_score_of_an_empty_sequence_is_refused() -> None:
    score = ir.Score(id="0.0", seq="0", var="x")
    with pytest.raises(ConstraintError, match="empty prompt: append text or a role"):
        lowering().lower([score])
    assert lowering(tokens=WITH_BOS).lower([score])[0] == [m.Append("0.0", "0", ((0,),)), m.Score("0.0", "0", 0, 0)]


def test_a_score_has_no_value_and_a_closed_sequence_no_score() -> None:
    low = lowering()
    low.lower([ir.Tokens(id="0.0", seq="0", ids=(3, 4)), ir.Score(id="0.1", seq="0", var="x")])
    with pytest.raises(ConstraintError, match="no earlier Gen, Select or Put"):
        low.lower([ir.Text(id="0.2", seq="0", parts=(ir.Ref("0.1"),))])
    low.lower([ir.Close(id="0.3", seq="0")])
    with pytest.raises(StateError, match="Score on seq='0': it is closed"):
        low.lower([ir.Score(id="0.4", seq="0", var="x")])


@pytest.mark.parametrize(("field", "value"), [("start", -1), ("top", -1), ("top", 21), ("start", 1 << 32)])
def test_bounds_of_a_score(field: str, value: int) -> None:
    with pytest.raises(ConstraintError, match=f"{field}={value}"):
        ir.Score(id="0.0", seq="0", var="x", **{field: value})
