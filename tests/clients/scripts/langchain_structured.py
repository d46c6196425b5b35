"""`langchain-openai`'s structured output by schema, over both APIs. argv: base URL, model."""

import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
SHARED = {"base_url": f"{URL}/v1", "api_key": "none", "model": MODEL, "temperature": 1.5, "max_retries": 0}


class River(BaseModel, extra="forbid"):
    """A river."""

    name: Literal["Nile", "Amazon", "Danube"]
    long: bool


for more in ({}, {"use_responses_api": True}):
    chat = ChatOpenAI(**SHARED, max_tokens=200, **more)
    for strict in (True, None):
        rivers = chat.with_structured_output(River, method="json_schema", strict=strict)
        assert isinstance(rivers.invoke("Name a river."), River)
