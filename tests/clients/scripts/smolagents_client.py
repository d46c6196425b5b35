"""`smolagents`: its model class over chat completions, and an agent that writes code. argv: base URL, model."""

import sys

from smolagents import CodeAgent, OpenAIServerModel, tool
from smolagents.models import ChatMessage

URL, MODEL = sys.argv[1:3]
model = OpenAIServerModel(
    model_id=MODEL, api_base=f"{URL}/v1", api_key="none", temperature=0, max_tokens=24, client_kwargs={"max_retries": 0}
)
SAID = [{"role": "user", "content": [{"type": "text", "text": "Name a river."}]}]

whole = model.generate([ChatMessage.from_dict(message) for message in SAID])
assert whole.role == "assistant"
assert whole.token_usage.output_tokens > 0
streamed = list(model.generate_stream([ChatMessage.from_dict(message) for message in SAID]))
assert "".join(part.content or "" for part in streamed) == whole.content
cut = model.generate([ChatMessage.from_dict(message) for message in SAID], stop_sequences=[whole.content[3:6]])
assert whole.content.startswith(cut.content)


@tool
def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name.
    """
    return f"It rains in {city}."


# A small model's code does not run; what is tested is that every step's request is answered and the agent ends.
agent = CodeAgent(tools=[weather], model=model, max_steps=2, verbosity_level=0)
result = agent.run("What is the weather in Paris?", return_full_result=True)
assert result.state in ("success", "max_steps_error")
steps = [step for step in agent.memory.steps if getattr(step, "token_usage", None) is not None]
assert steps
assert all(step.token_usage.output_tokens > 0 for step in steps)
