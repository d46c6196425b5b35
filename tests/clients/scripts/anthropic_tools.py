"""The `anthropic` package's tools: used, streamed, answered. argv: base URL, model."""

import sys

import anthropic

URL, MODEL = sys.argv[1:3]
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=120)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city", "days"],
}
ASKED = {
    "model": MODEL,
    "max_tokens": 250,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [{"name": "weather", "description": "The weather of a city.", "input_schema": SCHEMA}],
}
NAMED = {"type": "tool", "name": "weather"}


def right(value):
    return value["city"] in ("Paris", "Oslo") and 1 <= value["days"] <= 14


whole = client.messages.create(**ASKED, tool_choice=NAMED)
(block,) = whole.content
assert (whole.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "weather")
assert right(block.input)

with client.messages.stream(**ASKED, tool_choice=NAMED) as stream:
    parts = "".join(event.partial_json for event in stream if event.type == "input_json")
    last = stream.get_final_message()
assert parts
assert last.stop_reason == "tool_use"
assert right(last.content[0].input)

one = client.messages.create(**ASKED, tool_choice={"type": "any", "disable_parallel_tool_use": True})
assert [each.type for each in one.content] == ["tool_use"]

result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "rain"}]}
said = [*ASKED["messages"], {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
after = client.messages.create(**(ASKED | {"messages": said, "max_tokens": 8}), tool_choice={"type": "none"})
assert [each.type for each in after.content] == ["text"]
counted = client.messages.count_tokens(model=MODEL, messages=ASKED["messages"], tools=ASKED["tools"])
assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens

for wrong in ({"messages": said[-1:]}, {"tools": [{"name": "a b", "input_schema": SCHEMA}]}):
    try:
        client.messages.create(**(ASKED | wrong))
    except anthropic.BadRequestError:
        continue
    raise AssertionError(f"{wrong} was accepted")
