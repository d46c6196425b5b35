"""What a completion says, told apart: however its text is cut, the parts add up to the same."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.runtime.server.call import Chat, Message
from ramet.runtime.server.constraints import constraint_of
from ramet.runtime.server.reasoning import Thinking, Thoughts
from ramet.runtime.server.speech import Hearing, Manner, Said, Speech
from ramet.runtime.server.toolcalls import NOTHING, chat_offer
from ramet.runtime.tools import ToolFormat

CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"properties": {"zone": {"type": "string"}}}}}
SQL = {"type": "custom", "custom": {"name": "sql"}}
OFFER = chat_offer({"tools": [CLOCK, SQL]})
CALLS = '<tool_call>\n{"name": "clock", "arguments": {"zone": "a}\\"<b"}}\n</tool_call>'
TEXTS = [
    "",
    "no call at all < <tool",
    CALLS,
    f"Let me see.\n{CALLS}\n{CALLS}",
    f"<think>\nhm, {CALLS[:12]}\n</think>\n\nWell.\n{CALLS}",
    '<tool_call>\n{"name": "sql", "input":\nSELECT "1"\n}\n</tool_call>',
    '<tool_call>\n{"name": "clock", "arguments": {"zone": "cut',
    "<think>never over",
]
THINKS = Thoughts("maybe")


def heard(text: str, cuts: list[int], hearing: Hearing) -> Said:
    """What pieces of a text add up to."""
    speech = hearing.speech(lambda: "id")
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    for n, (start, end) in enumerate(zip(places, [*places[1:], len(text)], strict=True), 1):
        parts = speech.push(text[start:end], last=n == len(places))
        assert all(part.text or part.kind == "call" for part in parts)
    return speech.said


def told(said: Said) -> tuple[str, str, tuple[ir.ToolCall, ...]]:
    return said.reasoning, said.content, said.tool_calls


@given(
    st.sampled_from(TEXTS) | st.text("<>{}toolcal_k\n ", max_size=30),
    st.lists(st.integers(0, 100), max_size=12),
    st.sampled_from([NOTHING, OFFER]),
    st.sampled_from([THINKS, Thoughts("outside"), Thoughts("inside"), Thoughts("maybe", shown=False)]),
)
@settings(deadline=None, max_examples=300)
def test_cuts_change_nothing(text: str, cuts: list[int], offer: object, thoughts: Thoughts) -> None:
    hearing = Hearing(offer=OFFER if offer is OFFER else NOTHING, thoughts=thoughts)
    assert told(heard(text, cuts, hearing)) == told(heard(text, [], hearing))


def test_thoughts_words_and_calls() -> None:
    said = heard(TEXTS[4], [7, 30], Hearing(offer=OFFER, thoughts=THINKS))
    assert said.reasoning.startswith("hm, <tool_call>")  # a call that is only thought of is none
    assert said.content == "Well."
    assert said.tool_calls == (ir.ToolCall("clock", '{"zone": "a}\\"<b"}'),)
    assert json.loads(said.calls[0].arguments) == {"zone": 'a}"<b'}


def test_a_tool_that_takes_text_gets_it_as_it_is() -> None:
    said = heard(TEXTS[5], [], Hearing(offer=OFFER))
    assert said.tool_calls == (ir.ToolCall("sql", 'SELECT "1"', custom=True),)


def test_where_no_call_can_be_made_text_is_text() -> None:
    for offer in (NOTHING, chat_offer({"tools": [CLOCK], "tool_choice": "none"})):
        assert told(heard(CALLS, [3, 9], Hearing(offer=offer))) == ("", CALLS, ())


def test_ids_are_fresh() -> None:
    speech = Hearing(offer=OFFER).speech()
    speech.push(f"{CALLS}\n{CALLS}", last=True)
    first, second = (call.id for call in speech.said.calls)
    assert first != second
    assert first.startswith("call_")
    assert len(first) == len("call_") + 24


def test_plain_hearing_hears_text_alone() -> None:
    assert Hearing().plain
    assert Hearing(offer=chat_offer({"tools": [CLOCK], "tool_choice": "none"})).plain
    assert not Hearing(offer=OFFER).plain
    assert not Hearing(thoughts=THINKS).plain
    assert Hearing(thoughts=Thoughts("inside", separate=False)).plain
    speech = Speech()
    assert [part.kind for part in speech.push("x", last=True)] == ["content"]


# -- what a request holds its answers to

CHAT = Chat((Message("user", "Hello"),))
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
PLAIN = Manner(ToolFormat(), None)
THINKER = Manner(ToolFormat(), Thinking("<think>\n"))


def test_calls_hold_the_text() -> None:
    chat, hearing = PLAIN.hearing(CHAT, OFFER, None, {})
    assert chat.tools == OFFER.tools
    assert (hearing.constraint, hearing.field) == (OFFER.calls, "tools")
    none = chat_offer({"tools": [CLOCK], "tool_choice": "none"})
    chat, hearing = PLAIN.hearing(CHAT, none, None, {})
    assert chat.tools == none.tools  # told of, and not to be called
    assert hearing.constraint is None


def spec_of(hearing: Hearing) -> dict[str, object]:
    assert isinstance(hearing.constraint, ir.Structure)
    spec: dict[str, object] = json.loads(hearing.constraint.spec)["format"]
    return spec


def test_an_answer_or_a_call() -> None:
    wanted = constraint_of({"response_format": SCHEMA})
    _, hearing = PLAIN.hearing(CHAT, OFFER, wanted, {})
    assert (spec_of(hearing)["type"], hearing.field) == ("or", "response_format")
    must = chat_offer({"tools": [CLOCK], "tool_choice": "required"})
    assert PLAIN.hearing(CHAT, must, wanted, {})[1].constraint == must.calls
    never = chat_offer({"tools": [CLOCK], "tool_choice": "none"})
    assert isinstance(PLAIN.hearing(CHAT, never, wanted, {})[1].constraint, ir.JsonSchema)


def test_a_thinker_may_think_before_it_calls() -> None:
    must = chat_offer({"tools": [CLOCK], "tool_choice": "required"})
    _, hearing = THINKER.hearing(CHAT, must, None, {})
    assert spec_of(hearing)["type"] == "sequence"
    chat, hearing = THINKER.hearing(CHAT, must, None, {"reasoning_effort": "none"})
    assert chat.opening
    assert hearing.constraint == must.calls


def test_text_with_parts_or_a_call() -> None:
    tag = {"begin": "<a>", "schema": {"type": "null"}, "end": "</a>"}
    older = {"type": "structural_tag", "structures": [tag], "triggers": ["<a>"]}
    _, hearing = PLAIN.hearing(CHAT, OFFER, constraint_of({"structural_tag": older}), {})
    assert (spec_of(hearing)["type"], hearing.field) == ("or", "structural_tag")
