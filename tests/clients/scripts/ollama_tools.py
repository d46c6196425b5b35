"""The `ollama` package's tools: a Python function told of, histories with calls, streams. argv: base URL, model."""

import sys

import ollama

URL, MODEL = sys.argv[1:3]
client = ollama.Client(host=URL, timeout=120)
OPTIONS = {"num_predict": 24, "seed": 1}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name.
    """
    return f"It rains in {city}."


whole = client.chat(model=MODEL, messages=ASKED, tools=[weather], options=OPTIONS)
assert whole.done_reason in ("stop", "length")
for call in whole.message.tool_calls or ():  # it chooses by itself whether it calls
    assert call.function.name == "weather"
    assert isinstance(weather(**call.function.arguments), str)
parts = list(client.chat(model=MODEL, messages=ASKED, tools=[weather], options=OPTIONS, stream=True))
assert "".join(part.message.content or "" for part in parts) == (whole.message.content or "")
assert len([c for part in parts for c in part.message.tool_calls or ()]) == len(whole.message.tool_calls or ())

call = ollama.Message.ToolCall(function=ollama.Message.ToolCall.Function(name="weather", arguments={"city": "Paris"}))
said = [
    *ASKED,
    ollama.Message(role="assistant", tool_calls=[call]),
    ollama.Message(role="tool", content=weather("Paris"), tool_name="weather"),
]
assert client.chat(model=MODEL, messages=said, tools=[weather], options=OPTIONS).done

try:
    bad = {"type": "function", "function": {"name": "a b"}}
    client.chat(model=MODEL, messages=ASKED, tools=[bad])
except ollama.ResponseError as error:
    status = error.status_code
else:
    raise AssertionError("it was accepted")
assert status == 400
