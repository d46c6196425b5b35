"""The `ollama` package's `format`: a schema, and any JSON. argv: base URL, model."""

import json
import sys
from typing import Literal

import ollama
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
client = ollama.Client(host=URL, timeout=120)
OPTIONS = {"num_predict": 200, "temperature": 1.5, "seed": 3}
ASKED = [{"role": "user", "content": "Name a river."}]


class River(BaseModel, extra="forbid"):
    name: Literal["Nile", "Amazon", "Danube"]
    length_km: int = Field(ge=1, le=9999)


schema = River.model_json_schema()
whole = client.chat(model=MODEL, messages=ASKED, format=schema, options=OPTIONS)
River.model_validate_json(whole.message.content)
parts = client.chat(model=MODEL, messages=ASKED, format=schema, options=OPTIONS, stream=True)
assert "".join(part.message.content for part in parts) == whole.message.content
River.model_validate_json(client.generate(model=MODEL, prompt="A river:", format=schema, options=OPTIONS).response)
loose = client.chat(model=MODEL, messages=ASKED, format="json", options=OPTIONS)
if loose.done_reason == "stop":
    assert isinstance(json.loads(loose.message.content), dict)
