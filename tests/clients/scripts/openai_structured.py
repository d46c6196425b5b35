"""The `openai` package's structured outputs: parsed chats and responses, streams of them, other servers' fields,
refusals. argv: base URL, model."""

import json
import re
import sys
from typing import Literal

import openai
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120)
ASKED = [{"role": "user", "content": "Name a river."}]
HOT = {"model": MODEL, "temperature": 1.5, "seed": 7}


class River(BaseModel, extra="forbid"):
    name: Literal["Nile", "Amazon", "Danube"]
    length_km: int = Field(ge=1, le=9999)
    tributaries: list[Literal["Sava", "Drava"]] = Field(max_length=2)


def chats():
    whole = client.chat.completions.parse(messages=ASKED, response_format=River, max_tokens=200, **HOT)
    assert isinstance(whole.choices[0].message.parsed, River)
    with client.chat.completions.stream(messages=ASKED, response_format=River, max_tokens=200, **HOT) as stream:
        for _ in stream:
            continue
        assert stream.get_final_completion().choices[0].message.parsed == whole.choices[0].message.parsed


def responses():
    asked = {"model": MODEL, "input": "Name a river.", "temperature": 1.5, "max_output_tokens": 200}
    assert isinstance(client.responses.parse(text_format=River, **asked).output_parsed, River)
    with client.responses.stream(text_format=River, **asked) as stream:
        for _ in stream:
            continue
        assert isinstance(stream.get_final_response().output_parsed, River)


def spellings():
    schema = River.model_json_schema()
    for extra in (
        {"guided_json": schema},
        {"structured_outputs": {"json": schema}},
        {"json_schema": json.dumps(schema)},
    ):
        answer = client.chat.completions.create(messages=ASKED, max_tokens=200, extra_body=extra, **HOT)
        River.model_validate_json(answer.choices[0].message.content)
    for extra in ({"regex": "[a-c]{3}"}, {"guided_regex": "[a-c]{3}"}, {"ebnf": "root ::= [a-c] [a-c] [a-c]"}):
        answer = client.chat.completions.create(messages=ASKED, max_tokens=20, extra_body=extra, **HOT)
        assert re.fullmatch("[a-c]{3}", answer.choices[0].message.content), extra
        text = client.completions.create(prompt="abc", max_tokens=20, extra_body=extra, **HOT).choices[0].text
        assert re.fullmatch("[a-c]{3}", text), extra


def refusals():
    for extra, param in (
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"$ref": "http://localhost/x"}}, "guided_json"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
    ):
        try:
            client.chat.completions.create(messages=ASKED, max_tokens=20, extra_body=extra, **HOT)
        except openai.BadRequestError as error:
            named = error.param
        else:
            raise AssertionError(f"{extra} was accepted")
        assert named == param, named


for test in (chats, responses, spellings, refusals):
    test()
