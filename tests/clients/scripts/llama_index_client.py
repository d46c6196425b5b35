"""`llama-index-llms-openai-like`: complete, chat, streams, asynchronous too. argv: base URL, model."""

import asyncio
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL, MODEL = sys.argv[1:3]
SHARED = {
    "model": MODEL,
    "api_base": f"{URL}/v1",
    "api_key": "none",
    "temperature": 0,
    "max_tokens": 12,
    "max_retries": 0,
    "context_window": 1024,
}
SAID = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Name a river.")]

chat = OpenAILike(**SHARED, is_chat_model=True)
whole = chat.chat(SAID)
assert whole.message.role == "assistant"
assert "".join(part.delta or "" for part in chat.stream_chat(SAID)) == whole.message.content
assert asyncio.run(chat.achat(SAID)).message.content == whole.message.content
text = OpenAILike(**SHARED, is_chat_model=False)
one = text.complete("Once upon a time").text
assert "".join(part.delta or "" for part in text.stream_complete("Once upon a time")) == one
