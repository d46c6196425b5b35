"""`litellm` with tools, over two of its providers: required, streamed, answered. argv: base URL, model."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a price list
import litellm

URL, MODEL = sys.argv[1:3]
litellm.telemetry = False
litellm.suppress_debug_info = True
SAID = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}]

for model, base in (
    (f"openai/{MODEL}", f"{URL}/v1"),
    (f"hosted_vllm/{MODEL}", f"{URL}/v1"),
    (f"anthropic/{MODEL}", URL),
):
    asked = {
        "model": model,
        "api_base": base,
        "api_key": "none",
        "messages": SAID,
        "max_tokens": 250,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "num_retries": 0,
        "timeout": 120,
    }
    whole = litellm.completion(**asked)
    assert whole.choices[0].finish_reason == "tool_calls", model
    (call,) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo"), model
    built = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)), messages=SAID)
    (call,) = built.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo"), model
    said = [*SAID, built.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = litellm.completion(**(asked | {"messages": said, "tool_choice": "none", "max_tokens": 8}))
    assert not after.choices[0].message.tool_calls, model
