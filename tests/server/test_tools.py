"""Tools over HTTP, with unmodified clients: whatever a model's weights are, its calls are valid under their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import ollama
import openai
import pytest

from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "units"],
    "additionalProperties": False,
}
FORCED: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"const": "UTC"}},
    "required": ["zone"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"name": "weather", "description": "The weather of a city.", "parameters": SCHEMA}
CLOCK: dict[str, Any] = {"name": "clock", "description": "The time.", "parameters": FORCED}
ASKED: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
ARGUMENTS = '{"zone": "UTC"}'


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=WAIT) as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as made:
        yield made


def nested(*functions: dict[str, Any]) -> Any:
    return [{"type": "function", "function": function} for function in functions]


def flat(*functions: dict[str, Any]) -> Any:
    return [{"type": "function", "strict": False, **function} for function in functions]


def schemed(*functions: dict[str, Any]) -> Any:
    return [{"name": f["name"], "description": f["description"], "input_schema": f["parameters"]} for f in functions]


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": ASKED, "max_tokens": 200, **fields})


# -- chat completions


@pytest.mark.parametrize("seed", range(8))
def test_a_required_call_is_valid(client: openai.OpenAI, seed: int) -> None:
    (choice,) = chat(
        client, tools=nested(WEATHER), tool_choice="required", parallel_tool_calls=False, seed=seed
    ).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "weather")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_a_named_call(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    for strict in (True, False):
        clock = {**CLOCK, "strict": strict}
        made = chat(client, tools=nested(WEATHER, clock), tool_choice=choice)
        (call,) = made.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("clock", ARGUMENTS)
        assert made.choices[0].finish_reason == "tool_calls"
        assert re.fullmatch("call_[0-9a-f]{24}", call.id)
        assert made.usage.completion_tokens > 0


@pytest.mark.parametrize("fields", [{}, {"seed": 3, "temperature": 2.0}, {"n": 2, "seed": 5}])
def test_a_stream_is_the_whole_answer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked = {"tools": nested(WEATHER, CLOCK), "tool_choice": "required", "seed": 1, "max_tokens": 120, **fields}
    whole = chat(client, **asked)
    found: dict[int, dict[int, list[str]]] = {}
    reasons: dict[int, str] = {}
    for chunk in chat(client, **asked, stream=True):
        (choice,) = chunk.choices
        for call in choice.delta.tool_calls or ():
            mine = found.setdefault(choice.index, {}).setdefault(call.index, [])
            mine += [call.function.name or "", call.function.arguments]
            assert bool(call.id) == bool(call.function.name) == (len(mine) == 2)
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index, "")
    for choice in whole.choices:
        calls = [c.function.name + c.function.arguments for c in choice.message.tool_calls]
        assert ["".join(parts) for parts in found[choice.index].values()] == calls
        assert reasons[choice.index] == choice.finish_reason


def test_the_clients_own_accumulator_of_streams(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "clock"}}
    with client.chat.completions.stream(
        model="tiny", messages=ASKED, tools=nested(CLOCK), tool_choice=choice, max_tokens=200
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("clock", ARGUMENTS)


def test_none_tells_and_does_not_call(client: openai.OpenAI) -> None:
    made = chat(client, tools=nested(CLOCK), tool_choice="none", max_tokens=8)
    assert made.choices[0].message.tool_calls is None
    assert made.usage.prompt_tokens > chat(client, max_tokens=8).usage.prompt_tokens


def test_auto_may_answer(client: openai.OpenAI) -> None:
    made = chat(client, tools=nested(CLOCK), max_tokens=8, seed=1)
    assert made.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert made.choices[0].message.content is not None or made.choices[0].message.tool_calls


def test_a_function_call_of_the_older_kind(client: openai.OpenAI) -> None:
    made = chat(client, functions=[CLOCK], function_call={"name": "clock"})
    message = made.choices[0].message
    assert (message.function_call.name, message.function_call.arguments) == ("clock", ARGUMENTS)
    assert made.choices[0].finish_reason == "function_call"


@pytest.mark.parametrize(
    ("syntax", "definition", "pattern"),
    [("regex", "[0-9]{3}-[a-f]+x", "[0-9]{3}-[a-f]+x"), ("lark", 'start: "a" ("b" | "c") start | "!"', "(a[bc])*!")],
)
def test_a_custom_tool_takes_text_of_its_grammar(
    client: openai.OpenAI, syntax: str, definition: str, pattern: str
) -> None:
    wanted = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
    tools = [{"type": "custom", "custom": {"name": "code", "description": "Runs code.", "format": wanted}}]
    for seed in range(3):
        made = chat(client, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=seed, max_tokens=300)
        choice = made.choices[0]
        (call,) = choice.message.tool_calls
        assert (call.type, call.custom.name) == ("custom", "code")
        if choice.finish_reason != "length":
            assert re.fullmatch(pattern, call.custom.input)


def test_an_agents_round(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    first = chat(client, tools=nested(CLOCK), tool_choice=choice).choices[0].message
    said = [*ASKED, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "noon"}]
    second = chat(client, messages=said, tools=nested(CLOCK), max_tokens=8)
    assert second.choices[0].message.role == "assistant"
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, messages=[*ASKED, first, {"role": "tool", "tool_call_id": "call_0", "content": "noon"}])
    assert raised.value.param == "messages[2].tool_call_id"


BAD_REGEX = {"syntax": "regex", "definition": "(a"}
BAD_LARK = {"syntax": "lark", "definition": "start: missing"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": nested({"name": "a b"})}, "tools[0].function.name"),
        ({"tools": nested({**CLOCK, "parameters": {"type": "string"}})}, "tools[0].function.parameters.type"),
        (
            {"tools": nested({**CLOCK, "parameters": {"properties": {"a": {"pattern": "(?=x)"}}}})},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    {"type": "custom", "custom": {"name": "f", "format": {"type": "grammar", "grammar": BAD_REGEX}}}
                ]
            },
            "tools[0].custom.format.grammar.definition",
        ),
        (
            {
                "tools": [
                    *nested(CLOCK),
                    {"type": "custom", "custom": {"name": "f", "format": {"type": "grammar", "grammar": BAD_LARK}}},
                ]
            },
            "tools[1].custom.format.grammar.definition",
        ),
        ({"tools": nested(CLOCK), "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_refused(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        body = {"model": "tiny", "messages": ASKED, "stream": stream, **fields}
        answer = http.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_in_a_format_or_a_call(client: openai.OpenAI, seed: int) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked: dict[str, Any] = {"tools": nested(CLOCK), "response_format": wanted, "parallel_tool_calls": False}
    message = chat(client, **asked, seed=seed, temperature=1.5).choices[0].message
    if message.tool_calls:
        assert message.tool_calls[0].function.arguments == ARGUMENTS
    else:
        jsonschema.validate(json.loads(message.content), schema)


# -- responses


def respond(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "input": "What time is it?", "max_output_tokens": 200, **fields})


def test_a_response_that_calls(client: openai.OpenAI) -> None:
    asked = {"tools": flat(WEATHER, CLOCK), "tool_choice": {"type": "function", "name": "clock"}}
    (item,) = respond(client, **asked).output
    assert (item.type, item.name, item.arguments, item.status) == ("function_call", "clock", ARGUMENTS, "completed")
    events = list(respond(client, **asked, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == ARGUMENTS
    assert events[-1].response.output[0].arguments == ARGUMENTS


def test_a_response_that_goes_on_from_a_call(client: openai.OpenAI) -> None:
    asked = {"tools": flat(CLOCK), "tool_choice": "required", "parallel_tool_calls": False}
    first = respond(client, **asked)
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "noon"}
    kept = respond(client, input=[result], previous_response_id=first.id, max_output_tokens=8, temperature=0)
    item = first.output[0].model_dump(exclude_none=True)
    told = respond(
        client,
        input=[{"role": "user", "content": "What time is it?"}, item, result],
        max_output_tokens=8,
        temperature=0,
    )
    assert kept.output_text == told.output_text
    assert kept.usage.input_tokens == told.usage.input_tokens
    with pytest.raises(openai.BadRequestError) as raised:
        respond(client, input=[result])
    assert raised.value.param == "input[0].tool_call_id"


# -- Anthropic, Ollama


def test_a_message_that_uses_a_tool(served: Served) -> None:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=WAIT) as client:
        asked: dict[str, Any] = {
            "model": "tiny",
            "max_tokens": 200,
            "messages": ASKED,
            "tools": schemed(WEATHER, CLOCK),
            "tool_choice": {"type": "tool", "name": "clock"},
        }
        whole = client.messages.create(**asked)
        (block,) = whole.content
        assert (whole.stop_reason, block.type) == ("tool_use", "tool_use")
        assert (block.name, block.input) == ("clock", {"zone": "UTC"})  # type: ignore[union-attr]
        with client.messages.stream(**asked) as stream:
            last = stream.get_final_message()
        assert last.content[0].input == {"zone": "UTC"}  # type: ignore[union-attr]
        assert last.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "noon"}  # type: ignore[union-attr]
        said: Any = [*ASKED, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
        after = client.messages.create(**{**asked, "messages": said, "tool_choice": {"type": "none"}, "max_tokens": 8})
        assert [each.type for each in after.content] == ["text"]
        many = client.messages.create(**{**asked, "tool_choice": {"type": "any"}})
        for each in many.content:
            assert each.type == "tool_use"
        counted = client.messages.count_tokens(model="tiny", messages=ASKED, tools=asked["tools"])
        usage = whole.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(**{**asked, "messages": [{"role": "user", "content": [result]}]})


def test_an_ollama_chat_with_tools(served: Served) -> None:
    client = ollama.Client(served.url, timeout=WAIT)
    options = {"num_predict": 16, "seed": 1}
    whole = client.chat("tiny", ASKED, tools=nested(CLOCK), options=options)
    parts = client.chat("tiny", ASKED, tools=nested(CLOCK), options=options, stream=True)
    assert "".join(part.message.content or "" for part in parts) == (whole.message.content or "")
    with pytest.raises(ollama.ResponseError):
        client.chat("tiny", ASKED, tools=[{"type": "function", "function": {"name": "a b"}}])  # type: ignore[list-item]
