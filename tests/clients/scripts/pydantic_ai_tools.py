"""`pydantic-ai` with its usual output, which is a call, over chat completions and responses. argv: base URL, model."""

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = sys.argv[1:3]
provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")


class Weather(BaseModel):
    city: Literal["Paris", "Oslo"]
    days: int = Field(ge=1, le=14)


async def main():
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        settings = {"temperature": 1.5, "max_tokens": 250, "parallel_tool_calls": False}
        agent = Agent(kind(MODEL, provider=provider), output_type=ToolOutput(Weather), model_settings=settings)
        first = await agent.run("What is the weather in Paris?")
        assert isinstance(first.output, Weather)
        second = await agent.run("And in Oslo?", message_history=first.new_messages())
        assert isinstance(second.output, Weather)
        async with agent.run_stream("What is the weather in Paris?") as stream:
            assert isinstance(await stream.get_output(), Weather)


asyncio.run(main())
