"""The `openai` package, asynchronous: many at once, streams, streams left early. argv: base URL, model."""

import asyncio
import sys

import openai

URL, MODEL = sys.argv[1:3]


def asked(i):
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Count to {i}."}],
        "max_tokens": 10,
        "temperature": 0,
    }


async def streamed(client, i):
    chunks = await client.chat.completions.create(**asked(i), stream=True)
    return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])


async def left(client, i):
    """Read one chunk, then go away."""
    stream = await client.chat.completions.create(**(asked(i) | {"max_tokens": 200}), stream=True)
    async for _ in stream:
        break
    await stream.close()


async def main():
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60) as client:
        whole = await asyncio.gather(*(client.chat.completions.create(**asked(i)) for i in range(8)))
        texts = [answer.choices[0].message.content for answer in whole]
        results = await asyncio.gather(
            *(streamed(client, i) for i in range(8)), *(left(client, i) for i in range(8, 16))
        )
        assert results[:8] == texts

        async with client.chat.completions.with_streaming_response.create(**asked(3), stream=True) as response:
            lines = [line async for line in response.iter_lines()]
        assert lines[-1] in ("data: [DONE]", "")
        assert "data: [DONE]" in lines


asyncio.run(main())
