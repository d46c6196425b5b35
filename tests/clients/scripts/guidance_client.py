"""`guidance` over chat completions: turns and free generation; it sends `tools: null` and streams logprobs. argv: base
URL, model."""

import sys

from guidance import assistant, gen, system, user
from guidance.models import OpenAI

URL, MODEL = sys.argv[1:3]
lm = OpenAI(MODEL, base_url=f"{URL}/v1", api_key="none", echo=False)
with system():
    lm += "Be brief."
with user():
    lm += "Name a river."
with assistant():
    lm += gen("river", max_tokens=12, temperature=0.0)
assert isinstance(lm["river"], str)
