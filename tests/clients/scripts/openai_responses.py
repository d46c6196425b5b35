"""The `openai` package's responses: whole, streamed, continued, refused. argv: base URL, model."""

import sys

import openai

URL, MODEL = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
ASKED = {"model": MODEL, "input": "Name a river.", "max_output_tokens": 12, "temperature": 0}

whole = client.responses.create(**ASKED)
assert whole.status in ("completed", "incomplete")
assert whole.output_text == whole.output[0].content[0].text
assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
assert whole.usage.input_tokens_details.cached_tokens >= 0

events = list(client.responses.create(**ASKED, stream=True))
kinds = [event.type for event in events]
assert kinds[:4] == [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
]
assert kinds[-1] in ("response.completed", "response.incomplete")
assert [event.sequence_number for event in events] == list(range(len(events)))
deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
assert deltas == whole.output_text == events[-1].response.output_text

# the package's own accumulator wants a response that was not cut by its length
stop = whole.output_text[3:5]
with client.responses.stream(**ASKED, extra_body={"stop": [stop]}) as stream:
    for _ in stream:
        continue
    assert stream.get_final_response().output_text == whole.output_text[: whole.output_text.index(stop)]

said = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": whole.output_text}]
told = client.responses.create(**(ASKED | {"input": [*said, {"role": "user", "content": "Another."}]}))
went_on = client.responses.create(**(ASKED | {"input": "Another.", "previous_response_id": whole.id}))
assert went_on.output_text == told.output_text
assert client.responses.retrieve(whole.id).output_text == whole.output_text
client.responses.delete(whole.id)
for wrong in ({"previous_response_id": whole.id}, {"model": "nobody"}):
    try:
        client.responses.create(**(ASKED | wrong))
    except (openai.NotFoundError, openai.BadRequestError):
        continue
    raise AssertionError(f"{wrong} was accepted")
