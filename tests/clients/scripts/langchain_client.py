"""`langchain-openai`: chat, streams, batches, completions, both APIs. argv: base URL, model."""

import asyncio
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

URL, MODEL = sys.argv[1:3]
SHARED = {"base_url": f"{URL}/v1", "api_key": "none", "model": MODEL, "temperature": 0, "max_retries": 0}
chat = ChatOpenAI(**SHARED, max_tokens=12)
SAID = [SystemMessage("Be brief."), HumanMessage("Name a river.")]

whole = chat.invoke(SAID)
assert isinstance(whole, AIMessage)
assert whole.usage_metadata["output_tokens"] > 0
assert whole.response_metadata["finish_reason"] in ("stop", "length")
assert "".join(chunk.content for chunk in chat.stream(SAID)) == whole.content
assert [message.content for message in chat.batch([SAID, SAID])] == [whole.content] * 2

chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")]) | chat
assert chain.invoke({"question": "Name a river."}).content == whole.content
logged = chat.bind(logprobs=True, top_logprobs=2).invoke(SAID)
assert len(logged.response_metadata["logprobs"]["content"]) > 0

text = OpenAI(**SHARED, max_tokens=8)
assert text.invoke("Once upon a time") == "".join(text.stream("Once upon a time"))

responses = ChatOpenAI(**SHARED, max_tokens=12, use_responses_api=True)
assert responses.invoke(SAID).text == whole.content


async def streamed():
    return "".join([chunk.content async for chunk in chat.astream(SAID)])


assert asyncio.run(streamed()) == whole.content
