"""The `openai` package's tools: chats, streams, parsed arguments, custom tools, responses, refusals. argv: base URL,
model."""

import json
import re
import sys
from typing import Literal

import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120)
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
HOT = {"model": MODEL, "temperature": 1.5, "seed": 7, "max_tokens": 250}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Oslo"]
    days: int = Field(ge=1, le=14)


WEATHER = openai.pydantic_function_tool(Weather)
NAMED = {"type": "function", "function": {"name": "Weather"}}


def chats():
    whole = client.chat.completions.create(messages=ASKED, tools=[WEATHER], tool_choice=NAMED, **HOT)
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None
    Weather.model_validate_json(call.function.arguments)
    parsed = client.chat.completions.parse(messages=ASKED, tools=[WEATHER], tool_choice=NAMED, **HOT)
    assert isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
    said = [*ASKED, whole.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(
        messages=said, tools=[WEATHER], tool_choice="none", **(HOT | {"max_tokens": 8})
    )
    assert after.choices[0].message.tool_calls is None


def streams():
    asked = {"messages": ASKED, "tools": [WEATHER], "tool_choice": NAMED, **HOT}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        deltas = "".join(
            event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"
        )
        final = stream.get_final_completion()
    want = whole.choices[0].message.tool_calls[0].function.arguments
    assert final.choices[0].message.tool_calls[0].function.arguments == deltas == want
    assert final.choices[0].finish_reason == "tool_calls"


def several():
    whole = client.chat.completions.create(messages=ASKED, tools=[WEATHER], tool_choice="required", **HOT)
    for call in whole.choices[0].message.tool_calls[:-1]:  # the length may have cut the last one
        Weather.model_validate_json(call.function.arguments)
    legacy = client.chat.completions.create(
        messages=ASKED, functions=[WEATHER["function"]], function_call={"name": "Weather"}, **HOT
    )
    assert legacy.choices[0].finish_reason == "function_call"
    Weather.model_validate_json(legacy.choices[0].message.function_call.arguments)


def custom():
    for syntax, definition in (("regex", "[0-9]{3}x"), ("lark", 'start: DIGIT DIGIT DIGIT "x"\nDIGIT: /[0-9]/')):
        wanted = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
        tools = [{"type": "custom", "custom": {"name": "code", "format": wanted}}]
        choice = {"type": "custom", "custom": {"name": "code"}}
        whole = client.chat.completions.create(messages=ASKED, tools=tools, tool_choice=choice, **HOT)
        (call,) = whole.choices[0].message.tool_calls
        assert re.fullmatch("[0-9]{3}x", call.custom.input), call


def responses():
    tool = {"type": "function", "name": "weather", "parameters": Weather.model_json_schema(), "strict": False}
    asked = {"model": MODEL, "tools": [tool], "tool_choice": {"type": "function", "name": "weather"}}
    hot = {"temperature": 1.5, "max_output_tokens": 250}
    whole = client.responses.create(input="What is the weather?", **asked, **hot)
    (item,) = whole.output
    Weather.model_validate_json(item.arguments)
    result = {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
    after = client.responses.create(
        model=MODEL,
        input=[result],
        previous_response_id=whole.id,
        tools=[tool],
        tool_choice="none",
        max_output_tokens=8,
    )
    assert [each.type for each in after.output] == ["message"]
    with client.responses.stream(input="What is the weather?", **asked, **hot) as stream:
        deltas = "".join(e.delta for e in stream if e.type == "response.function_call_arguments.delta")
        final = stream.get_final_response()
    assert final.output[0].arguments == deltas
    Weather.model_validate_json(deltas)


def refusals():
    look = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}
    remote = {"type": "object", "properties": {"a": {"$ref": "https://example.org/schema.json"}}}
    for parameters in (look, remote, {"type": "array"}):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        try:
            client.chat.completions.create(messages=ASKED, tools=[tool], **HOT)
        except openai.BadRequestError as error:
            param = error.param
        else:
            raise AssertionError(f"{json.dumps(parameters)} was accepted")
        assert param.startswith("tools[0].function.parameters"), param


for test in (chats, streams, several, custom, responses, refusals):
    test()
