"""`langchain-openai` with tools: bound, required, named, streamed, answered; structured output by a call. argv: base
URL, model."""

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
SHARED = {"base_url": f"{URL}/v1", "api_key": "none", "model": MODEL, "temperature": 1.5, "max_retries": 0}
SAID = [HumanMessage("What is the weather in Paris?")]


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Oslo"]
    days: int = Field(ge=1, le=14)


@tool
def clock(zone: Literal["UTC", "CET"]) -> str:
    """The time in a zone."""
    return f"noon in {zone}"


for api in ({}, {"use_responses_api": True}):
    chat = ChatOpenAI(**SHARED, **api, max_tokens=250)
    named = chat.bind_tools([clock, Weather], tool_choice="clock")
    whole = named.invoke(SAID)
    (call,) = whole.tool_calls
    assert call["name"] == "clock"
    result = clock.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content in ("noon in UTC", "noon in CET")
    merged = None
    for chunk in named.stream(SAID):
        merged = chunk if merged is None else merged + chunk
    assert [each["name"] for each in merged.tool_calls] == ["clock"]
    assert merged.tool_calls[0]["args"]["zone"] in ("UTC", "CET")
    brief = ChatOpenAI(**SHARED, **api, max_tokens=8).bind_tools([clock], tool_choice="none")
    assert not brief.invoke([*SAID, whole, result]).tool_calls
    required = chat.bind_tools([Weather], tool_choice="any", parallel_tool_calls=False)
    (call,) = required.invoke(SAID).tool_calls
    Weather.model_validate(call["args"])
    assert isinstance(chat.with_structured_output(Weather, method="function_calling").invoke(SAID), Weather)
