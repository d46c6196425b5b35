"""Tool calls in text: written and read back in every notation, whole and in pieces, cut off and malformed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import ToolCall
from ramet.frontend.toolcalls import HERMES, LLAMA, MISTRAL, CallReader, call_text, folded, message_text, parse

NOTATIONS = (HERMES, LLAMA, MISTRAL)
NASTY = [
    "</tool_call>",
    '<tool_call>\n{"name": "x", "arguments": {}}',
    '{"name": "',
    '[{"name":',
    '"}]}; {"name": "f", "parameters": {}}',
    "\\",
    '\\"',
    "é\U0001f600\n\t",
    "}}}]]",
]
names = st.sampled_from(["f", "get_weather", "a-b.c", "x" * 64])
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(codec="utf-8"), max_size=12))
values = st.recursive(
    texts | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
functions = st.builds(lambda name, value: ToolCall(name, json.dumps(value, ensure_ascii=False)), names, objects)
inputs = texts.filter(lambda text: "\n}\n</tool_call>" not in text)
customs = st.builds(lambda name, text: ToolCall(name, text, custom=True), names, inputs)
# Pieces of markup and JSON in any order: mostly no calls, or calls that end too early.
rubble = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            "\n",
            " ",
            '{"name": "',
            '[{"name":',
            "f",
            '", "arguments": ',
            '", "parameters": ',
            '", "input":\n',
            "{",
            "}",
            "]",
            '"',
            "\\",
            "; ",
            ", ",
            "word",
            "<",
        ]
    ),
    max_size=14,
).map("".join)


def read(pieces, notation):
    reader = CallReader(notation)
    return folded([delta for piece in pieces for delta in reader.push(piece)] + reader.finish())


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda n: n.name)
@settings(max_examples=60)
@given(data=st.data(), content=st.sampled_from(["", "Let me see.", "a\n\nb <tool", "x < y"]))
def test_what_is_written_is_read_back(notation, data, content):
    calls = tuple(data.draw(st.lists(functions | customs if notation.text else functions, min_size=1, max_size=3)))
    assert parse(message_text(content, calls, notation), notation) == (content or None, calls)


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda n: n.name)
@settings(max_examples=60)
@given(text=rubble, data=st.data())
def test_pieces_add_up_to_the_whole(notation, text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces, notation) == parse(text, notation) == read(text, notation)


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda n: n.name)
def test_a_text_cut_anywhere_is_a_beginning_of_its_calls(notation):
    calls = (ToolCall("f", '{"x": "} </tool_call> \\" [{"}'), ToolCall("g", '{"y": [1, {"z": 2}]}'))
    if notation.text:
        calls += (ToolCall("sql", "SELECT 1;\n}\n-- done", custom=True),)
    whole = message_text("Well.", calls, notation)
    for size in range(len(whole)):
        content, found = parse(whole[:size], notation)
        assert content == "Well." if found else whole.startswith(content or "")
        assert [call.name for call in found] == [call.name for call in calls[: len(found)]]
        assert [call.custom for call in found] == [call.custom for call in calls[: len(found)]]
        assert all(call.arguments == full.arguments for call, full in zip(found[:-1], calls, strict=False))
        if found and not found[-1].custom:
            assert calls[len(found) - 1].arguments.startswith(found[-1].arguments)
        assert read(whole[:size], notation) == (content, found)


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda n: n.name)
def test_arguments_are_given_out_as_they_come(notation):
    call = ToolCall("f", '{"city": "Zürich", "days": 3}')
    text = call_text([call], notation)
    reader, given_out = CallReader(notation), ""
    for n, character in enumerate(text):
        for delta in reader.push(character):
            assert delta.content == ""
            given_out += delta.arguments
        known = min(max(0, n + 1 - text.index(call.arguments)), len(call.arguments))
        assert given_out == (call.arguments[:known] if n + 1 > text.index(call.arguments) else "")
    assert reader.calls == 1
    assert reader.finish() == []


def test_content_is_held_back_only_while_a_call_may_begin():
    reader = CallReader(HERMES)
    assert [d.content for d in reader.push("Hello")] == ["Hello"]
    assert reader.push(" <tool") == []
    assert [d.content for d in reader.push("s> are")] == [" <tools> are"]
    assert [d.content for d in reader.push(" nice \n")] == [" nice"]
    assert [d.content for d in reader.finish()] == [" \n"]


def test_a_calls_begin_has_its_index_and_name_before_any_argument():
    text = call_text([ToolCall("f", "{}"), ToolCall("q", "x", custom=True)])
    reader = CallReader()
    deltas = reader.push(text) + reader.finish()
    begins = [(d.index, d.name, d.custom) for d in deltas if d.name]
    assert begins == [(0, "f", False), (1, "q", True)]
    assert all(not d.arguments for d in deltas if d.name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", ())),
        ("  \n", ("  \n", ())),
        ("Just <tool_call> talk", ("Just <tool_call> talk", ())),
        ('<tool_call>\n{"name": ""}', ('<tool_call>\n{"name": ""}', ())),
        ('<tool_call>\n{"name": "f", "arguments": 3}', ('<tool_call>\n{"name": "f", "arguments": 3}', ())),
        ('<tool_call>\n{"name": "a\\"b"', ('<tool_call>\n{"name": "a\\"b"', ())),
        ('A <tool_call>\n{"name": "f"', ("A", ())),  # cut off inside the header
        ('<tool_call>\n{"name": "f", "arguments": {"a": [1', (None, (ToolCall("f", '{"a": [1'),))),
        (
            '<tool_call>\n{"name": "f", "arguments": {}} and more',
            ("} and more", (ToolCall("f", "{}"),)),
        ),
        (
            'A\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n\nB\n',
            ("A\n\nB\n", (ToolCall("f", "{}"),)),
        ),
    ],
)
def test_what_is_no_call_is_content(text, expected):
    assert parse(text) == expected
    assert read(text, HERMES) == expected


def test_long_arguments_are_read_in_linear_time():
    arguments = json.dumps({"x": "ab}{" * 50_000})
    text = call_text([ToolCall("f", arguments)])
    assert read([text[n : n + 7] for n in range(0, len(text), 7)], HERMES)[1] == (ToolCall("f", arguments),)


@pytest.mark.parametrize(
    ("call", "notation", "message"),
    [
        (ToolCall('f"', "{}"), HERMES, r"calls\[0\].name='f\"': no name"),
        (ToolCall("", "{}"), HERMES, "no name"),
        (ToolCall("f", "[1]"), HERMES, r"calls\[0\].arguments='\[1\]': must be the JSON text of an object"),
        (ToolCall("f", '{"a"'), LLAMA, "must be the JSON text of an object"),
        (ToolCall("f", "[" * 10_000), HERMES, "must be the JSON text of an object"),
        (ToolCall("f", "x", custom=True), LLAMA, "cannot be written in the llama notation"),
        (ToolCall("f", "x\n}\n</tool_call>", custom=True), HERMES, "which ends a call"),
    ],
)
def test_calls_that_cannot_be_written_are_refused(call, notation, message):
    with pytest.raises(ConstraintError, match=message):
        call_text([call], notation)


def test_no_arguments_are_an_empty_object():
    assert parse(call_text([ToolCall("f", " ")]))[1] == (ToolCall("f", "{}"),)
    assert call_text([]) == ""
    assert message_text("only text", []) == "only text"
