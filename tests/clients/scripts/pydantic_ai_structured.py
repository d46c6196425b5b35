"""`pydantic-ai` with native output, over chat completions and responses. argv: base URL, model."""

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = sys.argv[1:3]
provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")


class River(BaseModel, extra="forbid"):
    name: Literal["Nile", "Amazon", "Danube"]
    long: bool


async def main():
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        settings = {"temperature": 1.5, "max_tokens": 200}
        agent = Agent(kind(MODEL, provider=provider), output_type=NativeOutput(River), model_settings=settings)
        assert isinstance((await agent.run("Name a river.")).output, River)


asyncio.run(main())
