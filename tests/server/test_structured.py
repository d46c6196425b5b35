"""Constraints over HTTP, in every protocol: what is answered is valid, by validators of other people's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["river", "lake", 3, None]},
        "depth": {"type": "integer", "minimum": 0, "maximum": 900},
    },
    "required": ["name", "kind", "depth"],
    "additionalProperties": False,
}
NAMED = {"name": "water", "schema": SCHEMA}
HOT: dict[str, Any] = {"temperature": 1.8, "seed": 5, "max_tokens": 200}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Name some water."}]}
DIGITS = "[0-9]{3}-[0-9]{2}"
EBNF = 'root ::= "<" word ("," word)? ">"\nword ::= [a-c] [a-c]?'
LARK = 'start: "<" WORD ("," WORD)? ">"\nWORD: /[a-c][a-c]?/'
WORDS = r"<[a-c]{1,2}(,[a-c]{1,2})?>"
HUNGRY = {"regex": "[0-9]{1,300}x"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"context": 512}) as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chat(http: httpx.Client, **body: Any) -> dict[str, Any]:
    return post(http, "/v1/chat/completions", **{**CHAT, **HOT, **body})


def text_of(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop", answer
    text = choice["message"]["content"]
    assert isinstance(text, str)
    return text


def valid(text: str, schema: object = SCHEMA) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))  # type: ignore[arg-type]


def refused(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def chunks(http: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


# -- chat completions


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": True}}},
        {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"guided_json": SCHEMA},
        {"json_schema": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": False}},
        {"format": SCHEMA},
    ],
)
@pytest.mark.parametrize("jump", ["canonical", "exact", "off"])
def test_schemas_hold(http: httpx.Client, fields: dict[str, Any], jump: str) -> None:
    valid(text_of(chat(http, **fields, jump=jump)))


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"regex": DIGITS}, DIGITS),
        ({"guided_regex": DIGITS}, DIGITS),
        ({"structured_outputs": {"regex": DIGITS}}, DIGITS),
        ({"guided_choice": ["blue", "blue-green", "red"]}, "blue|blue-green|red"),
        ({"ebnf": EBNF}, WORDS),
        ({"guided_grammar": EBNF}, WORDS),
        ({"guided_grammar": LARK}, WORDS),
        ({"response_format": {"type": "grammar", "grammar": EBNF}}, WORDS),
        (
            {
                "structural_tag": {
                    "type": "structural_tag",
                    "format": {
                        "type": "tag",
                        "begin": "<n>",
                        "content": {"type": "regex", "pattern": DIGITS},
                        "end": "</n>",
                    },
                }
            },
            f"<n>{DIGITS}</n>",
        ),
    ],
)
def test_patterns_hold(http: httpx.Client, fields: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        text = text_of(chat(http, **{**fields, "seed": seed}))
        assert re.fullmatch(pattern, text), text


def test_a_stream_is_the_whole_answer(http: httpx.Client) -> None:
    fields = {"response_format": {"type": "json_schema", "json_schema": NAMED}, "n": 2}
    whole = chat(http, **fields)
    told = chunks(http, "/v1/chat/completions", **{**CHAT, **HOT, **fields})
    for index, choice in enumerate(whole["choices"]):
        deltas = [each for chunk in told for each in chunk["choices"] if each["index"] == index]
        assert "".join(each["delta"].get("content") or "" for each in deltas) == choice["message"]["content"]
        assert deltas[-1]["finish_reason"] == choice["finish_reason"] == "stop"
        valid(choice["message"]["content"])


def test_forced_tokens_are_counted(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"a_long_name_of_a_property": {"type": "boolean"}, "another_one": {"type": "null"}},
        "required": ["a_long_name_of_a_property", "another_one"],
        "additionalProperties": False,
    }
    usages = {jump: chat(http, guided_json=schema, jump=jump)["usage"] for jump in ("canonical", "off")}
    details = {jump: usage["completion_tokens_details"] for jump, usage in usages.items()}
    assert details["canonical"]["forced_tokens"] > 5
    assert details["off"]["forced_tokens"] == 0
    assert usages["canonical"]["completion_tokens"] >= details["canonical"]["forced_tokens"]


def test_logprobs_of_forced_tokens(http: httpx.Client) -> None:
    answer = chat(http, guided_choice=["a long sentence that is known"], logprobs=True, top_logprobs=2)
    (choice,) = answer["choices"]
    rows = choice["logprobs"]["content"]
    assert "".join(row["token"] for row in rows) == choice["message"]["content"]
    assert all(isinstance(row["logprob"], float) and row["logprob"] <= 0 for row in rows)


def test_a_limit_cuts_and_says_so(http: httpx.Client) -> None:
    answer = chat(http, **HUNGRY, max_tokens=6, logit_bias={})
    (choice,) = answer["choices"]
    text = choice["message"]["content"]
    if choice["finish_reason"] == "length":
        assert re.fullmatch("[0-9]+", text)
    else:
        assert re.fullmatch(HUNGRY["regex"], text)


def test_a_length_that_cannot_hold_the_shortest_text_is_refused(http: httpx.Client) -> None:
    error = refused(http, "/v1/chat/completions", **CHAT, regex="[0-9]{200}", max_tokens=5)
    assert error["param"] == "max_tokens"
    assert "max_tokens=5" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": r"[^\s\S]+"}, "guided_regex"),
        ({"guided_regex": r"(\w{1,50}\s){1,50}" * 300}, "guided_regex"),
        ({"regex": "(" * 20_000 + "a" + ")" * 20_000}, "regex"),
        ({"ebnf": "root ::= missing"}, "ebnf"),
        ({"guided_grammar": "start: start"}, "guided_grammar"),
        ({"guided_choice": ["x"] * 3 + [str(n) for n in range(20_000)]}, "guided_choice"),
        ({"json_schema": {"type": "object", "properties": {"a": {"minimum": 5, "maximum": 4, "type": "integer"}},
                          "required": ["a"]}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://x/y"}}}},
         "response_format"),
        ({"structured_outputs": {"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}}, "structured_outputs"),
        ({"structural_tag": {"type": "structural_tag", "format": {"type": "nonsense"}}}, "structural_tag"),
        ({"response_format": {"type": "structural_tag", "format": {"type": "regex", "pattern": "("}}},
         "response_format"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_named(http: httpx.Client, fields: dict[str, Any], param: str, stream: bool) -> None:
    error = refused(http, "/v1/chat/completions", **CHAT, **HOT, stream=stream, **fields)
    assert error["param"] == param, error
    assert error["code"] in ("invalid_constraint", "invalid_value")


def test_formats_that_are_not_checked_are_told(http: httpx.Client) -> None:
    schema = {"type": "string", "format": "html", "maxLength": 5}
    answer = chat(http, guided_json=schema)
    valid(text_of(answer), schema)
    assert any("html" in note for note in answer["warnings"])


# -- the other protocols


def test_completions(http: httpx.Client) -> None:
    for fields in ({"guided_json": SCHEMA}, {"response_format": {"type": "json_schema", "json_schema": NAMED}}):
        answer = post(http, "/v1/completions", prompt=["Water:", "More:"], n=2, **HOT, **fields)
        assert len(answer["choices"]) == 4
        for choice in answer["choices"]:
            valid(choice["text"])
    answer = post(http, "/v1/completions", prompt="A code:", regex=DIGITS, logprobs=1, **HOT)
    (choice,) = answer["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert "forced_tokens" in answer["usage"]["completion_tokens_details"]
    told = chunks(http, "/v1/completions", prompt="A code:", regex=DIGITS, **HOT)
    assert "".join(each["text"] for chunk in told for each in chunk["choices"]) == choice["text"]


def test_generate(http: httpx.Client) -> None:
    hot = {"temperature": 1.8, "sampling_seed": 5, "max_new_tokens": 200}
    params = [{**hot, "json_schema": json.dumps(SCHEMA)}, {**hot, "regex": DIGITS}, {**hot, "ebnf": EBNF}]
    answers = http.post("/generate", json={"text": ["a", "b", "c"], "sampling_params": params}).json()
    valid(answers[0]["text"])
    assert re.fullmatch(DIGITS, answers[1]["text"])
    assert re.fullmatch(WORDS, answers[2]["text"])
    assert answers[0]["meta_info"]["finish_reason"]["type"] == "stop"
    assert answers[0]["meta_info"]["forced_tokens"] > 0
    told = chunks(http, "/generate", text="b", sampling_params=params[1])
    assert told[-1]["text"] == answers[1]["text"]
    any_object = post(http, "/generate", text="x", sampling_params={**hot, "json_schema": "$$ANY$$"})
    if any_object["meta_info"]["finish_reason"]["type"] == "stop":
        assert isinstance(json.loads(any_object["text"]), dict)


def test_responses(http: httpx.Client) -> None:
    body = {"input": "Name some water.", "temperature": 1.8, "seed": 5, "max_output_tokens": 200}
    form = {"type": "json_schema", **NAMED, "strict": True}
    answer = post(http, "/v1/responses", **body, text={"format": form})
    assert answer["status"] == "completed"
    (item,) = answer["output"]
    valid(item["content"][0]["text"])
    assert answer["text"]["format"]["type"] == "json_schema"
    answer = post(http, "/v1/responses", **body, structured_outputs={"regex": DIGITS})
    assert re.fullmatch(DIGITS, answer["output"][0]["content"][0]["text"])
    error = refused(http, "/v1/responses", **body, text={"format": {"type": "json_schema", "schema": {}}})
    assert error["param"] == "text.format.name"


def test_messages(http: httpx.Client) -> None:
    body = {**CHAT, "max_tokens": 200, "temperature": 1.0}
    form = {"type": "json_schema", "schema": SCHEMA}
    for fields in ({"output_format": form}, {"output_config": {"format": form}}, {"guided_json": SCHEMA}):
        answer = post(http, "/v1/messages", **body, **fields)
        assert answer["stop_reason"] == "end_turn"
        valid(answer["content"][0]["text"])


def test_ollama(http: httpx.Client) -> None:
    options = {"temperature": 1.8, "seed": 5, "num_predict": 200}
    answer = post(http, "/api/chat", **CHAT, stream=False, format=SCHEMA, options=options)
    valid(answer["message"]["content"])
    answer = post(http, "/api/generate", model="tiny", prompt="Water", stream=False, format=SCHEMA, options=options)
    valid(answer["response"])
    assert answer["done_reason"] == "stop"


def test_programs(http: httpx.Client) -> None:
    def gen(constraint: dict[str, Any]) -> dict[str, Any]:
        op = {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "constraint": constraint}
        start = {"type": "text", "id": "0.0", "seq": "0", "parts": ["A code: "]}
        return {"version": 1, "ops": [start, op]}

    events = chunks(http, "/v1/programs", **gen({"type": "regex", "pattern": DIGITS}))
    (done,) = [each for each in events if each["type"] == "finished"]
    assert re.fullmatch(DIGITS, done["value"])
    error = refused(http, "/v1/programs", **gen({"type": "regex", "pattern": "("}))
    assert "regex" in error["message"]
    error = refused(http, "/v1/programs", **gen({"type": "regex", "patern": "a"}))
    assert error["param"].startswith("ops[1].constraint")


def test_other_requests_go_on_while_a_bomb_is_compiled(http: httpx.Client) -> None:
    bomb = {"regex": r"((a{1,90}b?){1,90}|\w{3,80}){2,9}"}
    answer = http.post("/v1/chat/completions", json={**CHAT, **HOT, **bomb})
    assert answer.status_code in (200, 400)
    assert text_of(chat(http, guided_choice=["fine"])) == "fine"
