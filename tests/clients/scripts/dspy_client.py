"""`dspy`: its LM, and a predictor whose answer a small model may well not format. argv: base URL, model."""

import sys

import dspy

URL, MODEL = sys.argv[1:3]
lm = dspy.LM(
    f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", temperature=0.0, max_tokens=16, cache=False, num_retries=0
)
one = lm("Name a river.")
assert lm(messages=[{"role": "user", "content": "Name a river."}]) == one
assert isinstance(one[0], str)
text = dspy.LM(
    f"text-completion-openai/{MODEL}",
    model_type="text",
    api_base=f"{URL}/v1",
    api_key="none",
    temperature=0.0,
    max_tokens=8,
    cache=False,
    num_retries=0,
)
assert isinstance(text("Once upon a time")[0], str)
