"""/tokenize, /detokenize, /tokenizer_info: the model's own tokenizer, in the shapes of vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
TEXT = "Grüße, world: 12"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def ask(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_there_and_back(served: Served, http: httpx.Client) -> None:
    got = ask(http, "/tokenize", prompt=TEXT, model="tiny", return_token_strs=True)
    ids = served.service.tokenizer.encode(TEXT)
    assert (got["tokens"], got["count"], got["max_model_len"]) == (ids, len(ids), 1024)
    assert len(got["token_strs"]) == len(ids)
    assert ask(http, "/detokenize", tokens=ids)["prompt"] == TEXT
    assert ask(http, "/detokenize", tokens=[ids, []])["text"] == [TEXT, ""]
    many = ask(http, "/tokenize", prompt=[TEXT, "a"], add_special_tokens=False)
    assert many["tokens"][0] == ids
    assert many["count"] == [len(ids), 1]


def test_names_of_control_tokens(http: httpx.Client) -> None:
    info = http.get("/tokenizer_info").json()
    (end,) = ask(http, "/tokenize", prompt=info["eos_token"], add_special_tokens=False)["tokens"]  # lm-eval's way
    assert end == info["eos_token_id"]
    plain = ask(http, "/tokenize", prompt=info["eos_token"], parse_special=False)
    assert plain["count"] > 1
    assert ask(http, "/detokenize", tokens=[end])["text"] == info["eos_token"]
    assert ask(http, "/detokenize", tokens=[end], skip_special_tokens=True)["text"] == ""


def test_a_chat_is_counted_as_it_runs(served: Served, http: httpx.Client) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello <|im_end|>"}]}]
    got = ask(http, "/tokenize", messages=messages)
    rendered = http.get("/tokenizer_info").json()["chat_template"]
    assert "im_start" in rendered
    tokenizer = served.service.tokenizer
    assert (
        sum(token == tokenizer.special_id("<|im_end|>") for token in got["tokens"])
        == sum(token == tokenizer.special_id("<|im_start|>") for token in got["tokens"]) - 1
    )
    shorter = ask(http, "/tokenize", messages=messages, add_generation_prompt=False)
    assert got["tokens"][: shorter["count"]] == shorter["tokens"]
    assert got["count"] > shorter["count"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"add_generation_prompt": False},
    ],
    ids=lambda fields: ", ".join(fields) or "plain",
)
def test_a_chat_has_the_tokens_of_its_completion(http: httpx.Client, fields: dict[str, Any]) -> None:
    asked = {**HELLO, **fields}
    run = ask(http, "/v1/chat/completions", **asked, max_tokens=1, return_token_ids=True)
    counted = ask(http, "/tokenize", **asked)
    assert counted["tokens"] == run["prompt_token_ids"]
    assert counted["count"] == run["usage"]["prompt_tokens"]


def test_a_history_with_calls_is_counted(http: httpx.Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    made = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "rain"}]
    asked = {"messages": [*HELLO["messages"], *made], "tools": [TOOL]}
    run = ask(http, "/v1/chat/completions", **asked, max_tokens=1)
    assert ask(http, "/tokenize", **asked)["count"] == run["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ("/tokenize", {**HELLO, "chat_template": "x"}, "chat_template"),
        ("/tokenize", {**HELLO, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ("/tokenize", {**HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
        ("/tokenize", {"prompt": "a", "tools": [TOOL]}, "tools"),
        ("/tokenize", {"prompt": []}, "prompt"),
        ("/tokenize", {"prompt": "a " * 100_000}, "prompt"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
def test_nonsense_is_named(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
