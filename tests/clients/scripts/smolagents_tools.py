"""`smolagents`' agent that calls tools. argv: base URL, model."""

import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage

URL, MODEL = sys.argv[1:3]
model = OpenAIServerModel(
    model_id=MODEL, api_base=f"{URL}/v1", api_key="none", temperature=0, max_tokens=96, client_kwargs={"max_retries": 0}
)


@tool
def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name.
    """
    return f"It rains in {city}."


said = [ChatMessage.from_dict({"role": "user", "content": [{"type": "text", "text": "The weather in Paris?"}]})]
called = model.generate(said, tools_to_call_from=[weather])
assert called.tool_calls
assert called.tool_calls[0].function.name == "weather"

# What a small model asks for is its own affair; what is tested is that each step's request gets a call, and an end.
agent = ToolCallingAgent(tools=[weather], model=model, max_steps=2, verbosity_level=0)
result = agent.run("What is the weather in Paris?", return_full_result=True)
assert result.state in ("success", "max_steps_error")
