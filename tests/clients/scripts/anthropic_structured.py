"""The `anthropic` package's structured outputs. argv: base URL, model."""

import sys
from typing import Literal

import anthropic
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=120)
ASKED = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": "Name a river."}]}


class River(BaseModel, extra="forbid"):
    name: Literal["Nile", "Amazon", "Danube"]
    long: bool


assert isinstance(client.messages.parse(**ASKED, output_format=River).parsed_output, River)
form = {"type": "json_schema", "schema": River.model_json_schema()}
whole = client.messages.create(**ASKED, output_config={"format": form})
River.model_validate_json(whole.content[0].text)
with client.messages.stream(**ASKED, output_config={"format": form}) as stream:
    River.model_validate_json("".join(stream.text_stream))
