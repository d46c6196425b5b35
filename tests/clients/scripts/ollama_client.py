"""The `ollama` package: chat, generate, streams, tags, show, errors, asynchronous too. argv: base URL, model."""

import asyncio
import sys

import ollama

URL, MODEL = sys.argv[1:3]
client = ollama.Client(host=URL, timeout=60)
OPTIONS = {"num_predict": 12, "temperature": 0}
ASKED = [{"role": "user", "content": "Name a river."}]

assert MODEL in [model.model.removesuffix(":latest") for model in client.list().models]
client.show(MODEL)

whole = client.chat(model=MODEL, messages=ASKED, options=OPTIONS)
assert whole.message.role == "assistant"
assert whole.done
assert whole.done_reason in ("stop", "length")
assert whole.eval_count > 0
assert whole.prompt_eval_count > 0
assert whole.total_duration > 0
parts = list(client.chat(model=MODEL, messages=ASKED, options=OPTIONS, stream=True))
assert "".join(part.message.content for part in parts) == whole.message.content
assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]

one = client.generate(model=MODEL, prompt="Once upon a time", options=OPTIONS, raw=True)
streamed = client.generate(model=MODEL, prompt="Once upon a time", options=OPTIONS, raw=True, stream=True)
assert "".join(part.response for part in streamed) == one.response
assert client.generate(model=MODEL, prompt="Name a river.", system="Be brief.", options=OPTIONS).done

for wrong in ({"model": "nobody"}, {"options": {"temperature": -1.0}}):
    try:
        client.chat(**({"model": MODEL, "messages": ASKED, "options": OPTIONS} | wrong))
    except ollama.ResponseError as error:
        status, said = error.status_code, error.error
    else:
        raise AssertionError(f"{wrong} was accepted")
    assert status in (400, 404)
    assert said


async def side_by_side():
    many = ollama.AsyncClient(host=URL, timeout=60)
    answers = await asyncio.gather(*(many.chat(model=MODEL, messages=ASKED, options=OPTIONS) for _ in range(4)))
    assert {answer.message.content for answer in answers} == {whole.message.content}


asyncio.run(side_by_side())
