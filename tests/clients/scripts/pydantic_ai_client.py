"""`pydantic-ai`, plain text: an answer, a conversation, a stream, over chat completions and responses. argv: base URL,
model."""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = sys.argv[1:3]
provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
SETTINGS = {"temperature": 0, "max_tokens": 12}


async def talk(model):
    agent = Agent(model, instructions="Be brief.", model_settings=SETTINGS)
    first = await agent.run("Name a river.")
    assert isinstance(first.output, str)
    second = await agent.run("Another.", message_history=first.new_messages())
    assert second.usage.output_tokens > 0
    async with agent.run_stream("Name a river.") as stream:
        assert await stream.get_output() == first.output
    return first.output


async def main():
    chat = await talk(OpenAIChatModel(MODEL, provider=provider))
    assert await talk(OpenAIResponsesModel(MODEL, provider=provider)) == chat


asyncio.run(main())
