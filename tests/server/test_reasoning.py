"""Thoughts and answers, cut out of a text whatever pieces it comes in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar.translate import translate
from ramet.runtime.server.call import Chat, Message
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.reasoning import (
    CLOSE,
    NONE,
    OPEN,
    Begin,
    Part,
    Thinking,
    ThinkSplitter,
    Thoughts,
    constrained_answer,
    format_of,
    split,
    thoughts_of,
)
from ramet.runtime.template import CHATML, ChatTemplate

BEGINS: tuple[Begin, ...] = ("inside", "maybe", "outside")
OPENING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
HISTORY = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
SHUT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
USER = Message("user", "Why?")
PIECES = st.lists(
    st.sampled_from([OPEN, CLOSE, "<", "</", "think", ">", "</th", "<thi", " ", "\n", "a", "so\n\n", "é"]), max_size=12
)


def thinking(source: str) -> Thinking | None:
    return Thinking.of(ChatTemplate(source, context=1024))


def joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind become one."""
    found: list[Part] = []
    for kind, text in parts:
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + text)
        else:
            found.append((kind, text))
    return found


def parts_of(pieces: list[str], begin: Begin, *, whole: bool = False) -> list[Part]:
    splitter = ThinkSplitter(begin, whole=whole)
    found = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    assert all(text for _, text in found)
    return found


@given(PIECES, st.sampled_from(BEGINS), st.booleans(), st.randoms(use_true_random=False))
def test_the_cut_does_not_matter(pieces: list[str], begin: Begin, whole: bool, random: Any) -> None:
    text = "".join(pieces)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(4))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    want = joined(parts_of([text], begin))
    assert joined(parts_of(pieces, begin)) == want
    assert joined(parts_of(list(text), begin)) == want
    found = parts_of(cut, begin, whole=whole)
    assert joined(found) == want
    if whole:
        assert sum(kind == "thought" for kind, _ in found) <= 1
    assert split(text, begin) == (
        "".join(t for k, t in want if k == "thought") or None,
        "".join(t for k, t in want if k == "answer"),
    )


@given(PIECES, st.sampled_from(BEGINS))
def test_nothing_but_marks_and_the_space_beside_them_is_lost(pieces: list[str], begin: Begin) -> None:
    text = "".join(pieces)
    shown = "".join(part for _, part in parts_of(pieces, begin))
    rest = text.replace(OPEN, "", 1).replace(CLOSE, "", 1) if begin != "outside" else text
    kept = lambda words: "".join(words.split())  # noqa: E731
    assert kept(shown) in (kept(text), kept(rest), kept(text.replace(CLOSE, "", 1)))


@pytest.mark.parametrize(
    ("text", "begin", "thought", "answer"),
    [
        ("<think>\nwell, a\n</think>\n\nAn answer.\n", "maybe", "well, a", "An answer.\n"),
        ("well, a\n</think>\n\nAn answer.", "inside", "well, a", "An answer."),
        ("An answer.</think>", "outside", None, "An answer.</think>"),
        ("An <think>answer</think>", "maybe", None, "An <think>answer</think>"),
        ("  An answer", "maybe", None, "  An answer"),
        ("<think>\n\n</think>\n\nBlue", "maybe", None, "Blue"),
        ("<think>cut off </thi", "maybe", "cut off </thi", ""),
        ("<thin", "maybe", None, "<thin"),
        ("a</think>b</think>c", "inside", "a", "b</think>c"),
    ],
)
def test_what_is_thought(text: str, begin: Begin, thought: str | None, answer: str) -> None:
    assert split(text, begin) == (thought, answer)


def test_text_is_held_back_only_while_it_may_be_a_mark() -> None:
    splitter = ThinkSplitter("maybe")
    assert splitter.push("\n<th") == []
    assert splitter.push("ink>\n so") == [("thought", "so")]
    assert splitter.push(" it </") == [("thought", " it")]
    assert splitter.push("b>") == [("thought", " </b>")]
    assert splitter.push("\n</think>\n") == []
    assert splitter.push("Yes ") == [("answer", "Yes ")]
    assert splitter.finish() == []


def test_templates_say_how_a_model_thinks() -> None:
    chat = Chat((USER,))
    assert thinking(CHATML) is None
    assert thinking(SHUT) is None
    opening, maybe = thinking(OPENING), thinking(HISTORY)
    assert opening is not None
    assert maybe is not None
    assert (opening.begin(chat), maybe.begin(chat)) == ("inside", "maybe")
    for each in (opening, maybe):
        assert each.begin(Chat((USER,), opening=each.quiet)) == "outside"
        assert each.begin(Chat((USER,), begin_reply=False)) == "outside"
        assert (each.prompt + each.quiet).endswith("<think>\n\n</think>\n\n")
    said = [Chat((USER, Message("assistant", text)), continue_final=True) for text in ("<think>so", "So", "")]
    assert [maybe.begin(each) for each in said] == ["inside", "outside", "maybe"]
    for fields in ({"reasoning_effort": "none"}, {"reasoning": {"effort": "none"}}, {"thinking": {"type": "disabled"}}):
        shut, thoughts = thoughts_of(opening, chat, fields)
        assert (shut.opening, thoughts.begin) == (opening.quiet, "outside")
        assert thoughts_of(opening, said[0], fields) == (said[0], Thoughts("inside"))
    assert thoughts_of(None, chat, {"separate_reasoning": True, "reasoning_effort": "none"}) == (chat, NONE)
    with pytest.raises(Failure, match="separate_reasoning"):
        thoughts_of(opening, chat, {"separate_reasoning": "yes"})
    done = Chat((USER, Message("assistant", "so\n</think>\n\nYes")), continue_final=True)
    assert opening.begin(done) == "outside"


def test_a_constraint_leaves_the_thought_free() -> None:
    schema = ir.JsonSchema('{"type": "object"}')
    assert constrained_answer(schema, "outside") is schema
    inside = constrained_answer(schema, "inside")
    assert isinstance(inside, ir.Structure)
    spec = json.loads(inside.spec)["format"]
    assert [part["type"] for part in spec["elements"]] == ["tag", "regex", "json_schema"]
    assert spec["elements"][0]["end"] == CLOSE
    maybe = constrained_answer(ir.Choices(("a.", "b")), "maybe")
    assert isinstance(maybe, ir.Structure)
    first, second = json.loads(maybe.spec)["format"]["elements"]
    assert first["elements"][0]["begin"] == OPEN
    assert second == {"type": "regex", "pattern": r"a\.|b"}


STRUCTURES = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}],
    "triggers": ["<f>"],
}
PART = {"type": "structural_tag", "format": {"type": "const_string", "value": "x"}}


@pytest.mark.parametrize(
    "constraint",
    [
        ir.Regex("(?i)x|y"),
        ir.JsonSchema('{"type": "integer"}', "flexible"),
        ir.Choices(("a.b", "c|d")),
        ir.Grammar('root ::= "a" | "b"', "ebnf"),
        ir.Grammar('start: "a" | "b"'),
        ir.Structure(json.dumps(STRUCTURES)),
        ir.Structure(json.dumps(PART)),
    ],
)
@pytest.mark.parametrize("begin", ["inside", "maybe"])
def test_every_constraint_can_follow_a_thought(constraint: ir.Constraint, begin: Begin) -> None:
    alone, behind = translate(constraint), translate(constrained_answer(constraint, begin))
    assert alone.shortest is not None
    assert behind.shortest is not None
    assert behind.shortest.decode().removeprefix(CLOSE) == alone.shortest.decode()


def test_free_text_has_a_place_for_thoughts_itself() -> None:
    for spec in (STRUCTURES, {"type": "structural_tag", "format": {"type": "any_text"}}):
        constraint = ir.Structure(json.dumps(spec))
        assert constrained_answer(constraint, "maybe") is constraint


def test_calls_are_no_part_of_a_tag() -> None:
    calls = ir.Calls(tools=(ir.Tool(name="f"),))
    assert constrained_answer(calls, "inside") is calls
    with pytest.raises(ConstraintError, match="calls"):
        format_of(calls)
