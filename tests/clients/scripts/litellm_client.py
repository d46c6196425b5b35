"""`litellm`: one call, four of its providers, and the errors that it tells apart. argv: base URL, model."""

import asyncio
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a price list
import litellm

URL, MODEL = sys.argv[1:3]
litellm.telemetry = False
litellm.suppress_debug_info = True
SAID = [{"role": "user", "content": "Name a river."}]
PROVIDERS = {
    f"openai/{MODEL}": f"{URL}/v1",
    f"hosted_vllm/{MODEL}": f"{URL}/v1",
    f"anthropic/{MODEL}": URL,
    f"ollama_chat/{MODEL}": URL,
}


def asked(model, base, **fields):
    known = {"model": model, "api_base": base, "api_key": "none", "messages": SAID, "max_tokens": 12, "temperature": 0}
    return known | {"num_retries": 0, "timeout": 60, **fields}


texts = set()
for model, base in PROVIDERS.items():
    whole = litellm.completion(**asked(model, base))
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0, model
    parts = litellm.completion(**asked(model, base, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts).strip() == text.strip(), model
    texts.add(text.strip())
assert len(texts) == 1, texts

whole = litellm.text_completion(
    model=f"text-completion-openai/{MODEL}",
    api_base=f"{URL}/v1",
    api_key="none",
    prompt="Once upon a time",
    max_tokens=8,
    temperature=0,
)
assert whole.choices[0].text

for kind, wrong in (
    (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": "river " * 20_000}]}),
    (litellm.NotFoundError, {"model": "openai/nobody"}),
    (litellm.BadRequestError, {"temperature": -1}),
):
    try:
        litellm.completion(**(asked(f"openai/{MODEL}", f"{URL}/v1") | wrong))
    except kind:
        continue
    raise AssertionError(f"{kind.__name__} was not raised")


async def streamed():
    parts = await litellm.acompletion(**asked(f"openai/{MODEL}", f"{URL}/v1", stream=True))
    return "".join([part.choices[0].delta.content or "" async for part in parts])


assert asyncio.run(streamed()).strip() in texts
