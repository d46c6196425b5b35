"""The `anthropic` package: messages, streams, counting, errors, asynchronous too. argv: base URL, model."""

import asyncio
import sys

import anthropic

URL, MODEL = sys.argv[1:3]
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=60)
ASKED = {
    "model": MODEL,
    "max_tokens": 12,
    "extra_body": {"temperature": 0},  # no longer a parameter of the package's own
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Name a river."}],
}

whole = client.messages.create(**ASKED)
(block,) = whole.content
assert (whole.type, whole.role, block.type) == ("message", "assistant", "text")
assert whole.stop_reason in ("end_turn", "max_tokens")
assert whole.usage.output_tokens > 0

counted = client.messages.count_tokens(model=MODEL, system=ASKED["system"], messages=ASKED["messages"])
cached = whole.usage.cache_read_input_tokens or 0
created = whole.usage.cache_creation_input_tokens or 0
assert counted.input_tokens == whole.usage.input_tokens + cached + created

with client.messages.stream(**ASKED) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == final.content[0].text == block.text
assert final.stop_reason == whole.stop_reason
assert final.usage.output_tokens == whole.usage.output_tokens

events = [event.type for event in client.messages.create(**ASKED, stream=True) if event.type != "ping"]
assert events[:2] == ["message_start", "content_block_start"]
assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]

parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a river."}]
blocks = ASKED | {
    "messages": [{"role": "user", "content": parts}],
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "metadata": {"user_id": "someone"},
}
assert client.messages.create(**blocks).type == "message"
prefilled = [*ASKED["messages"], {"role": "assistant", "content": "The river"}]
assert client.messages.create(**(ASKED | {"messages": prefilled})).content[0].type == "text"
stopped = client.messages.create(**ASKED, stop_sequences=[block.text[2:4] or "e"])
assert stopped.stop_reason in ("stop_sequence", "end_turn", "max_tokens")

for kind, wrong in (
    (anthropic.NotFoundError, {"model": "nobody"}),
    (anthropic.BadRequestError, {"extra_body": {"temperature": -1}}),
    (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "river " * 20_000}]}),
):
    try:
        client.messages.create(**(ASKED | wrong))
    except kind as error:
        said = error.body
    else:
        raise AssertionError(f"{wrong} was accepted")
    assert said["type"] == "error"
    assert said["error"]["message"]


async def side_by_side():
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0, timeout=60) as many:
        answers = await asyncio.gather(*(many.messages.create(**ASKED) for _ in range(4)))
    assert {answer.content[0].text for answer in answers} == {block.text}


asyncio.run(side_by_side())
