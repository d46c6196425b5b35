"""`litellm`: one schema, three of its providers. argv: base URL, model."""

import os
import sys
from typing import Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a price list
import litellm
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
litellm.telemetry = False
litellm.suppress_debug_info = True


class River(BaseModel, extra="forbid"):
    name: Literal["Nile", "Amazon", "Danube"]
    long: bool


for model, base in {
    f"openai/{MODEL}": f"{URL}/v1",
    f"hosted_vllm/{MODEL}": f"{URL}/v1",
    f"ollama_chat/{MODEL}": URL,
}.items():
    whole = litellm.completion(
        model=model,
        api_base=base,
        api_key="none",
        messages=[{"role": "user", "content": "Name a river."}],
        response_format=River,
        max_tokens=200,
        temperature=1.5,
        num_retries=0,
        timeout=120,
    )
    River.model_validate_json(whole.choices[0].message.content)
