"""What requests say of tools, in each protocol's words: one offer, or a refusal that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.toolcalls import (
    ANY_TEXT,
    NOTHING,
    Offer,
    anthropic_offer,
    chat_offer,
    ollama_offer,
    response_offer,
)

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CITY: dict[str, Any] = {"name": "weather", "description": "The weather.", "parameters": SCHEMA}
CLOCK: dict[str, Any] = {"name": "clock"}
LARK = 'start: "a" start | "b"'


def nested(*functions: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": function} for function in functions]


def flat(*functions: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", **function} for function in functions]


def schemed(*functions: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": f["name"], "description": f.get("description", ""), "input_schema": f.get("parameters", SCHEMA)}
        for f in functions
    ]


def calls_of(offer: Offer) -> ir.Calls:
    assert offer.calls is not None
    return offer.calls


SPELLINGS: list[tuple[Callable[[dict[str, Any]], Offer], Callable[..., list[dict[str, Any]]]]] = [
    (chat_offer, nested),
    (response_offer, flat),
    (anthropic_offer, schemed),
    (ollama_offer, nested),
]


@pytest.mark.parametrize(("read", "write"), SPELLINGS)
def test_every_protocol_offers_the_same_tools(read: Any, write: Any) -> None:
    offer = read({"tools": write(CITY, {**CITY, "name": "forecast"})})
    first, second = offer.tools
    assert (first.name, first.description, second.name) == ("weather", "The weather.", "forecast")
    assert json.loads(first.parameters) == SCHEMA
    assert calls_of(offer) == ir.Calls(tools=(first, second))
    assert offer.callable
    assert not offer.custom


@pytest.mark.parametrize(("read", "write"), SPELLINGS)
@pytest.mark.parametrize("nothing", [None, []])
def test_no_tools_offer_nothing(read: Any, write: Any, nothing: Any) -> None:
    assert read({"tools": nothing}) == NOTHING
    assert read({}) == NOTHING


def test_strict_or_not_a_schema_binds() -> None:
    for strict in (True, False, None):
        (tool,) = chat_offer({"tools": nested({**CITY, "strict": strict})}).tools
        assert json.loads(tool.parameters) == SCHEMA


def test_a_function_without_parameters_takes_an_object() -> None:
    for function in (CLOCK, {**CLOCK, "parameters": None}):
        (tool,) = chat_offer({"tools": nested(function)}).tools
        assert json.loads(tool.parameters)["type"] == "object"
    (tool,) = chat_offer({"tools": nested({**CLOCK, "parameters": {"properties": {}}})}).tools
    assert json.loads(tool.parameters) == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        (None, ("auto", "", True)),
        ("auto", ("auto", "", True)),
        ("none", ("none", "", True)),
        ("required", ("required", "", True)),
        ({"type": "function", "function": {"name": "clock"}}, ("required", "clock", False)),
        ({"type": "function", "name": "clock"}, ("required", "clock", False)),
    ],
)
def test_choices_of_chats(choice: Any, want: tuple[str, str, bool]) -> None:
    offer = chat_offer({"tools": nested(CITY, CLOCK), "tool_choice": choice})
    calls = calls_of(offer)
    assert (calls.choice, calls.only, calls.parallel) == want
    assert offer.callable == (choice != "none")
    assert len(offer.tools) == len(calls.tools) == 2  # a model that must not call is told all the same


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        ({"type": "auto"}, ("auto", "", True)),
        ({"type": "any"}, ("required", "", True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", "", False)),
        ({"type": "tool", "name": "clock"}, ("required", "clock", False)),
        ({"type": "none"}, ("none", "", True)),
    ],
)
def test_choices_of_messages(choice: Any, want: tuple[str, str, bool]) -> None:
    calls = calls_of(anthropic_offer({"tools": schemed(CITY, CLOCK), "tool_choice": choice}))
    assert (calls.choice, calls.only, calls.parallel) == want


def test_allowed_tools() -> None:
    inner = {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]}
    offer = chat_offer({"tools": nested(CITY, CLOCK), "tool_choice": {"type": "allowed_tools", "allowed_tools": inner}})
    assert [tool.name for tool in offer.tools] == ["weather", "clock"]
    assert [tool.name for tool in calls_of(offer).tools] == ["clock"]
    assert (calls_of(offer).choice, calls_of(offer).only) == ("required", "")
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    calls = calls_of(response_offer({"tools": flat(CITY, CLOCK), "tool_choice": choice}))
    assert ([tool.name for tool in calls.tools], calls.choice) == (["weather"], "auto")


def test_parallel_calls() -> None:
    for value, want in ((True, True), (False, False), (None, True)):
        for read, write in ((chat_offer, nested), (response_offer, flat)):
            assert calls_of(read({"tools": write(CITY), "parallel_tool_calls": value})).parallel is want


def test_functions_are_the_older_tools() -> None:
    offer = chat_offer({"functions": [CITY, CLOCK], "function_call": {"name": "clock"}})
    assert offer.legacy
    assert calls_of(offer) == ir.Calls(tools=offer.tools, choice="required", only="clock", parallel=False)
    assert calls_of(chat_offer({"functions": [CITY]})).choice == "auto"
    assert not chat_offer({"functions": [CITY], "function_call": "none"}).callable


def test_custom_tools() -> None:
    grammar = {"syntax": "lark", "definition": LARK}
    regex = {"syntax": "regex", "definition": "[0-9]+"}
    offer = chat_offer(
        {
            "tools": [
                {"type": "custom", "custom": {"name": "free"}},
                {"type": "custom", "custom": {"name": "text", "format": {"type": "text"}}},
                {"type": "custom", "custom": {"name": "digits", "format": {"type": "grammar", "grammar": regex}}},
                {"type": "custom", "custom": {"name": "words", "format": {"type": "grammar", "grammar": grammar}}},
            ]
        }
    )
    assert [tool.input for tool in offer.tools] == [ANY_TEXT, ANY_TEXT, ir.Regex("[0-9]+"), ir.Grammar(LARK)]
    assert offer.custom == {"free", "text", "digits", "words"}
    flat_tools = [{"type": "custom", "name": "digits", "format": {"type": "grammar", **regex}}]
    (tool,) = response_offer({"tools": flat_tools}).tools
    assert tool.input == ir.Regex("[0-9]+")
    choice = {"type": "custom", "name": "digits"}
    assert calls_of(response_offer({"tools": flat_tools, "tool_choice": choice})).only == "digits"


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"tools": "f"}, "tools"),
    ({"tools": [1]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": 3}]}, "tools[0].type"),
    ({"tools": nested({})}, "tools[0].function.name"),
    ({"tools": nested({"name": ""})}, "tools[0].function.name"),
    ({"tools": nested({"name": "a b"})}, "tools[0].function.name"),
    ({"tools": nested({"name": "a\n"})}, "tools[0].function.name"),
    ({"tools": nested({"name": "x" * 65})}, "tools[0].function.name"),
    ({"tools": nested(CITY, CITY)}, "tools[1]"),
    ({"tools": nested(*({"name": f"f{n}"} for n in range(129)))}, "tools"),
    ({"tools": nested({**CLOCK, "description": 1})}, "tools[0].function.description"),
    ({"tools": nested({**CLOCK, "strict": "yes"})}, "tools[0].function.strict"),
    ({"tools": nested({**CLOCK, "parameters": []})}, "tools[0].function.parameters"),
    ({"tools": nested({**CLOCK, "parameters": {"type": "array"}})}, "tools[0].function.parameters.type"),
    ({"tools": nested({**CLOCK, "parameters": {"description": "x" * 70_000}})}, "tools[0].function.parameters"),
    ({"tools": nested(CITY), "tool_choice": "any"}, "tool_choice"),
    ({"tools": nested(CITY), "tool_choice": 3}, "tool_choice"),
    ({"tools": nested(CITY), "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"tools": nested(CITY), "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tools": nested(CITY), "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
    ({"tools": nested(CITY), "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    ({"tools": nested(CITY), "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"functions": [CITY], "tools": nested(CITY)}, "functions"),
    ({"functions": [CITY], "function_call": "required"}, "function_call"),
    ({"functions": [CITY], "function_call": {"name": "g"}}, "function_call"),
    ({"function_call": {"name": "g"}}, "function_call"),
    ({"functions": [{}]}, "functions[0].name"),
    ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
    ({"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "x"}}}]}, "tools[0].custom.format"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS)
def test_what_cannot_be_offered_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Failure) as raised:
        chat_offer(fields)
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": schemed(CITY), "tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"tools": schemed(CITY), "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": schemed(CITY), "tool_choice": "any"}, "tool_choice"),
        (
            {"tools": schemed(CITY), "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_what_anthropic_cannot_be_offered(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Failure) as raised:
        anthropic_offer(fields)
    assert raised.value.param == param


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["function", "custom", "none"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "function", "custom", "name", "parameters", "format", "grammar", "tools", "mode", "strict"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JUNK, JUNK, JUNK)
@settings(deadline=None, max_examples=200)
def test_junk_is_refused_and_nothing_else(tools: Any, choice: Any, parallel: Any) -> None:
    refusals: list[Failure] = []
    for read in (chat_offer, response_offer, anthropic_offer, ollama_offer):
        for fields in (
            {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel},
            {"functions": tools, "function_call": choice},
            {"tools": nested(CITY), "tool_choice": choice},
        ):
            try:
                offer = read(fields)
            except Failure as failure:
                refusals.append(failure)
            else:
                assert isinstance(offer, Offer)
    assert all(refusal.status == 400 and refusal.param for refusal in refusals)
