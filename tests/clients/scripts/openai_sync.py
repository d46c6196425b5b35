"""The `openai` package, synchronous: models, completions, chat, streams, logprobs, errors. argv: base URL, model."""

import sys

import openai

URL, MODEL = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}]


def models():
    listed = client.models.list()
    assert MODEL in [model.id for model in listed.data]
    assert client.models.retrieve(MODEL).id == MODEL


def chat():
    whole = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=12, temperature=0)
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.prompt_tokens_details.cached_tokens is not None
    again = client.chat.completions.create(model=MODEL, messages=ASKED, max_completion_tokens=12, temperature=0)
    assert again.choices[0].message.content == choice.message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0

    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ASKED,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == choice.finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def helpers():
    """The package's own accumulator of streams, which raises at the end of one that was cut by its length."""
    asked = {"model": MODEL, "messages": ASKED, "max_tokens": 12, "temperature": 0}
    text = client.chat.completions.create(**asked).choices[0].message.content
    with client.chat.completions.stream(**asked, stop=[text[3:5]]) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == deltas == text[: text.index(text[3:5])]
    assert final.choices[0].finish_reason == "stop"


def choices():
    several = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=6, n=3, seed=5, temperature=1, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    for choice in several.choices:
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 2
            assert token.bytes is not None
    again = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=6, n=3, seed=5, temperature=1)
    assert [c.message.content for c in again.choices] == [c.message.content for c in several.choices]


def completions():
    one = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, temperature=0)
    batch = client.completions.create(
        model=MODEL, prompt=["Once upon a time", "The end of"], max_tokens=8, temperature=0, n=2
    )
    assert [c.index for c in batch.choices] == [0, 1, 2, 3]
    assert batch.choices[0].text == batch.choices[1].text == one.choices[0].text
    chunks = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == one.choices[0].text

    scored = client.completions.create(
        model=MODEL, prompt="The capital of France", max_tokens=1, temperature=0, echo=True, logprobs=3
    )
    logs = scored.choices[0].logprobs
    assert logs.token_logprobs[0] is None
    assert len(logs.tokens) == len(logs.token_logprobs) == len(logs.text_offset) == len(logs.top_logprobs)
    assert all(value <= 0 for value in logs.token_logprobs[1:])
    assert "".join(logs.tokens) == scored.choices[0].text


def raised(kind, **fields):
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": ASKED, "max_tokens": 4, **fields})
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def refusals():
    assert raised(openai.NotFoundError, model="nobody").code == "model_not_found"
    assert raised(openai.BadRequestError, temperature=-1).param == "temperature"
    assert raised(openai.BadRequestError, max_tokens=10**9).code == "context_length_exceeded"
    assert raised(openai.BadRequestError, messages="hello").param == "messages"
    assert raised(openai.BadRequestError, n=10**9).status_code == 400
    long = [{"role": "user", "content": "river " * 20_000}]
    assert raised(openai.BadRequestError, messages=long).code == "context_length_exceeded"
    assert "maximum context length" in str(raised(openai.BadRequestError, messages=long))


def request_ids():
    named = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=2, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert named._request_id == "mine-1"


for test in (models, chat, helpers, choices, completions, refusals, request_ids):
    test()
