"""`instructor` in the mode that sends a schema: the first answer is a value. argv: base URL, model."""

import sys
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]


class River(BaseModel, extra="forbid"):
    name: Literal["Nile", "Amazon", "Danube"]
    length_km: int = Field(ge=1, le=9999)


client = instructor.from_openai(
    openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120), mode=instructor.Mode.JSON_SCHEMA
)
river = client.chat.completions.create(
    response_model=River,
    max_retries=0,
    model=MODEL,
    messages=[{"role": "user", "content": "Name a river."}],
    max_tokens=200,
    temperature=1.5,
)
assert isinstance(river, River)
