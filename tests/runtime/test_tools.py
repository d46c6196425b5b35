"""Tool formats: what they hold a model's text to, against automata; what they tell; what they read back."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.frontend.toolcalls import HERMES, LLAMA, MISTRAL, folded, message_text
from ramet.runtime.grammar.automaton import HEADER, GrammarCache
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.structure import translate
from ramet.runtime.tools import ANY_TEXT, ToolFormat, arguments_schema, closed, described, format_of

FORMATS = tuple(ToolFormat(notation) for notation in (HERMES, LLAMA, MISTRAL))
WEATHER = ir.Tool(
    "weather",
    "The weather.",
    '{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city"],'
    '"additionalProperties":false}',
)
CLOCK = ir.Tool("clock")
SQL = ir.Tool("sql", "Runs SQL.", input=ir.Regex("(?i)select [a-z,\n]+;$"))
NOTE = ir.Tool("note", input=ir.Regex(ANY_TEXT))
SUM = ir.Tool("sum", input=ir.Grammar('start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/'))
BYTES = [bytes([value]) for value in range(256)] + [b""]
AUTOMATA = GrammarCache(BYTES, eos=(256,))


def fits(structure, text):
    """Whether a text is one of the structure's: "whole", as far as it goes ("begun"), or not at all ("")."""
    automaton = AUTOMATA.automaton(HEADER + translate(structure.spec).lark)
    try:
        automaton.advance(list(text.encode()))
    except GrammarError:
        return ""
    return "whole" if automaton.accepting else "begun"


def call(name="weather", arguments='{"city": "Rome"}', custom=False):
    return ir.ToolCall(name, arguments, custom)


ids = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.notation.name)


@ids
def test_a_text_may_call_or_not(form):
    structure = form.structure(ir.Calls((WEATHER, CLOCK)))
    one = form.call_text([call()])
    for text in ["", "Hello {there}.", "a < b", one, "Well.\n" + one, form.call_text([call(), call("clock", "{}")])]:
        assert fits(structure, text) == "whole", text
    for text in [
        one + " And?",
        form.call_text([call("other")]),
        form.call_text([call(arguments='{"city": 3}')]),
        form.call_text([call(arguments='{"town": "Rome"}')]),
        form.call_text([call(arguments="{}")]),
        form.call_text([call("clock", '{"made": "up"}')]),
        one.replace('"weather"', '"Weather"'),
        form.notation.trigger + "?",
    ]:
        assert fits(structure, text) == "", text
    assert fits(structure, one[:-1]) == "begun"
    assert fits(structure, "Well. " + form.notation.trigger) == "begun"


@ids
def test_a_call_may_be_required_named_alone_or_forbidden(form):
    tools = (WEATHER, CLOCK)
    one, clock = form.call_text([call()]), form.call_text([call("clock", "{}")])
    two = form.call_text([call(), call("clock", "{}")])
    required = form.structure(ir.Calls(tools, "required"))
    assert [fits(required, text) for text in ("", "Well.", one, two)] == ["begun", "", "whole", "whole"]
    named = form.structure(ir.Calls(tools, "required", only="clock"))
    assert [fits(named, text) for text in (one, clock)] == ["", "whole"]
    alone = form.structure(ir.Calls(tools, parallel=False))
    assert [fits(alone, text) for text in ("Well.\n" + one, two)] == ["whole", ""]
    single = form.structure(ir.Calls(tools, "required", parallel=False))
    assert [fits(single, text) for text in (one, two)] == ["whole", ""]
    assert form.structure(ir.Calls(tools, "none")) is None


def test_tools_that_take_text_are_held_to_their_language():
    tools = (WEATHER, SQL, NOTE, SUM)
    for form in FORMATS:
        structure = form.structure(ir.Calls(tools))
        for name, good, bad in [
            ("sql", "SELECT a,\nb;", "drop x;"),
            ("sql", "select a;", "select a; --"),
            ("note", 'any "text"\n}\n', None),
            ("note", "", None),
            ("sum", "1+23", "1+"),
        ]:
            text = form.message_text("Now.", [call(name, good, True), call()])
            assert fits(structure, text) == "whole", text
            assert form.parse(text, tools) == ("Now.", (call(name, good, True), call()))
            if bad is not None:
                assert fits(structure, form.call_text([call(name, bad, True)])) != "whole"


@ids
@settings(max_examples=25, deadline=None)
@given(city=st.text(st.characters(codec="utf-8"), max_size=8), days=st.integers(-99, 99), cut=st.data())
def test_what_is_held_is_what_is_read(form, city, days, cut):
    arguments = json.dumps({"city": city, "days": days}, ensure_ascii=False)
    calls = (call(arguments=arguments), call("clock", "{}"))
    text = form.message_text("Well.", calls)
    assert fits(form.structure(ir.Calls((WEATHER, CLOCK))), text) == "whole"
    reader, at = form.reader((WEATHER, CLOCK)), cut.draw(st.integers(0, len(text)))
    assert folded(reader.push(text[:at]) + reader.push(text[at:]) + reader.finish()) == ("Well.", calls)
    assert form.parse(text, (WEATHER, CLOCK)) == ("Well.", calls)


@ids
def test_names_that_begin_alike_are_told_apart(form):
    tools = (ir.Tool("get"), ir.Tool("get_all"), ir.Tool("g"))
    structure = form.structure(ir.Calls(tools, "required"))
    for tool in tools:
        assert fits(structure, form.call_text([call(tool.name, "{}")])) == "whole"
    assert fits(structure, form.call_text([call("get_", "{}")])) == ""


@ids
def test_many_tools_are_one_structure(form):
    schema = json.dumps({"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(8)}})
    tools = tuple(ir.Tool(f"tool_{n}", "", schema) for n in range(64))
    structure = form.structure(ir.Calls(tools))
    assert len(structure.spec) < 64 * 1024
    assert fits(structure, form.call_text([call("tool_63", '{"p7": 1}')])) == "whole"


@ids
def test_references_stay_within_their_own_tool(form):
    def linked(kind):
        return json.dumps(
            {
                "type": "object",
                "properties": {"value": {"$ref": "#/$defs/v"}},
                "required": ["value"],
                "additionalProperties": False,
                "$defs": {"v": {"type": kind}},
            }
        )

    structure = form.structure(ir.Calls((ir.Tool("a", "", linked("string")), ir.Tool("b", "", linked("integer")))))
    assert fits(structure, form.call_text([call("a", '{"value": "x"}'), call("b", '{"value": 1}')])) == "whole"
    assert fits(structure, form.call_text([call("a", '{"value": 1}')])) == ""
    assert fits(structure, form.call_text([call("b", '{"value": "x"}')])) == ""


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (ir.Calls(()), "give at least one"),
        (ir.Calls((WEATHER, WEATHER)), "two are called 'weather'"),
        (ir.Calls((WEATHER,), "required", "clock"), "no tool 'clock' to be called; known: weather"),
        (ir.Calls((ir.Tool("a\nb"),)), "is no name of a tool"),
        (ir.Calls((ir.Tool("x" * 129),)), "is no name of a tool"),
        (ir.Calls((ir.Tool("f", "", '{"type":"string"}'),)), 'must be a schema of "type": "object"'),
        (ir.Calls((ir.Tool("f", "", "[" * 100_000),)), "are no JSON"),
    ],
)
def test_tools_that_cannot_be_called_are_refused(calls, message):
    with pytest.raises(ConstraintError, match=message):
        ToolFormat().structure(calls)


def test_a_schema_without_properties_stands_for_no_arguments():
    assert arguments_schema(CLOCK) == {"type": "object", "properties": {}, "additionalProperties": False}
    assert arguments_schema(ir.Tool("f", "", "{}")) == {"type": "object", "additionalProperties": False}
    free = ir.Tool("f", "", '{"type":"object","additionalProperties":{"type":"integer"}}')
    assert arguments_schema(free)["additionalProperties"] == {"type": "integer"}


@ids
def test_the_preamble_shows_every_tool_and_the_notation(form):
    text = form.preamble((WEATHER, CLOCK))
    for tool in (WEATHER, CLOCK):
        assert json.dumps(described(tool)) in text
    example = message_text(None, [call("NAME", "{}")], form.notation).replace("{}", "ARGUMENTS", 1)
    assert example in text
    assert "TEXT" not in text
    assert "sql" in form.preamble((SQL,))
    assert "TEXT\n}\n</tool_call>" in form.preamble((SQL,))


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        (SQL, {"name": "sql", "description": "Runs SQL.", "input": {"regular_expression": SQL.input.pattern}}),
        (NOTE, {"name": "note", "description": ""}),
        (SUM, {"name": "sum", "description": "", "input": {"grammar": SUM.input.text, "syntax": "lark"}}),
    ],
)
def test_tools_that_take_text_are_described_as_custom(tool, expected):
    assert described(tool) == {"type": "custom", "custom": expected}


def test_a_model_without_a_template_gets_the_documented_default():
    assert format_of(None) == ToolFormat(HERMES, native=False)


@pytest.mark.parametrize(
    ("schema", "want"),
    [
        ({"properties": {"a": {}}}, {"properties": {"a": {}}, "additionalProperties": False}),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "null"}}, None),
        ({"properties": {"a": {}}, "required": ["b"]}, None),
        ({"properties": {"a": {}}, "minProperties": 2}, None),
        ({"properties": {"a": {}}, "$ref": "#/$defs/b", "$defs": {"b": {"properties": {"b": {}}}}}, None),
        ({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, None),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, None),
        (
            {"properties": {"a": {"items": {"properties": {}}}}, "$defs": {"d": {"properties": {"x": True}}}},
            {
                "properties": {"a": {"items": {"properties": {}, "additionalProperties": False}}},
                "$defs": {"d": {"properties": {"x": True}, "additionalProperties": False}},
                "additionalProperties": False,
            },
        ),
    ],
)
def test_arguments_are_those_that_are_named(schema: dict[str, Any], want: dict[str, Any] | None) -> None:
    assert closed(schema) == (want or schema)
