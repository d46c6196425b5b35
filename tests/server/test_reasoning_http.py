"""Thoughts over HTTP: a model whose template opens `<think>`, in every protocol's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.server.reasoning import CLOSE, split
from ramet.runtime.template import CHATML

from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
OPENING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
LONG = 48  # tokens in which a thought ends, with the seed and the bias below
DIGITS = "[0-9]{3}-[0-9]{2}"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"context": 512}, template=OPENING) as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


@pytest.fixture(scope="module")
def hasty(served: Served) -> dict[str, Any]:
    """A random model that writes little but pieces of `</think>`."""
    ids = served.service.tokenizer.encode(CLOSE)
    return {"temperature": 1.0, "seed": 43, "logit_bias": dict.fromkeys(map(str, ids), 60)}


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chat(http: httpx.Client, **body: Any) -> dict[str, Any]:
    return post(http, "/v1/chat/completions", **{**CHAT, "max_tokens": LONG, **body})


def message_of(answer: dict[str, Any]) -> dict[str, Any]:
    (choice,) = answer["choices"]
    message: dict[str, Any] = choice["message"]
    return message


def events(http: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def deltas(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    told = events(http, "/v1/chat/completions", **{**CHAT, "max_tokens": LONG, **body})
    return [choice["delta"] for chunk in told for choice in chunk["choices"]]


# -- chat completions


def test_thoughts_are_told_apart(http: httpx.Client, hasty: dict[str, Any]) -> None:
    raw = message_of(chat(http, **hasty, separate_reasoning=False))
    assert CLOSE in raw["content"]
    assert "reasoning_content" not in raw
    answer = chat(http, **hasty)
    message = message_of(answer)
    thought, said = split(raw["content"], "inside")
    assert thought is not None
    assert (message["reasoning_content"], message["reasoning"], message["content"]) == (thought, thought, said)
    details = answer["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] < answer["usage"]["completion_tokens"]


def test_tokens_of_a_thought_are_counted_with_its_mark(
    served: Served, http: httpx.Client, hasty: dict[str, Any]
) -> None:
    answer = chat(http, **hasty, return_token_ids=True)
    count = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    ids = answer["choices"][0]["token_ids"]
    assert CLOSE in served.service.tokenizer.decode(ids[:count])
    assert CLOSE not in served.service.tokenizer.decode(ids[: count - 1])


def test_a_stream_tells_the_same(http: httpx.Client, hasty: dict[str, Any]) -> None:
    message = message_of(chat(http, **hasty))
    told = deltas(http, **hasty)
    assert "".join(each.get("reasoning_content") or "" for each in told) == message["reasoning_content"]
    assert "".join(each.get("content") or "" for each in told) == message["content"]
    kinds = [name for each in told for name in ("reasoning_content", "content") if each.get(name)]
    assert kinds == sorted(kinds, reverse=True), "thoughts come before the answer"
    late = [each for each in deltas(http, **hasty, stream_reasoning=False) if each.get("reasoning_content")]
    assert [each["reasoning_content"] for each in late] == [message["reasoning_content"]]


def test_thoughts_can_be_left_out_of_the_answer(http: httpx.Client, hasty: dict[str, Any]) -> None:
    whole, told = message_of(chat(http, **hasty)), message_of(chat(http, **hasty, include_reasoning=False))
    assert whole["content"] == told["content"]
    assert not told.get("reasoning_content")


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
    ],
)
def test_thoughts_can_be_left_out_of_the_conversation(
    http: httpx.Client, hasty: dict[str, Any], fields: dict[str, Any]
) -> None:
    answer = chat(http, **hasty, **fields)
    assert message_of(answer)["reasoning_content"] is None
    raw = message_of(chat(http, **hasty, **fields, separate_reasoning=False))
    assert message_of(answer)["content"] == raw["content"], "marks are text like any other there"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] > chat(http, **hasty)["usage"]["prompt_tokens"]


@pytest.mark.parametrize("fields", [{}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_an_empty_thought_is_counted(http: httpx.Client, fields: dict[str, Any]) -> None:
    asked = {"messages": CHAT["messages"], **fields}
    run = chat(http, **asked, max_tokens=1)
    assert post(http, "/tokenize", **asked)["count"] == run["usage"]["prompt_tokens"]


def test_a_thought_that_is_cut(http: httpx.Client) -> None:
    answer = chat(http, seed=1, max_tokens=5)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    "fields", [{"regex": DIGITS}, {"guided_json": {"type": "integer", "maximum": 9, "minimum": 0}}]
)
def test_a_constraint_is_of_the_answer(http: httpx.Client, hasty: dict[str, Any], fields: dict[str, Any]) -> None:
    answer = chat(http, **hasty, **fields, max_tokens=300)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["reasoning_content"]
    assert re.fullmatch(DIGITS if "regex" in fields else "[0-9]", choice["message"]["content"])
    quiet = chat(http, **hasty, **fields, reasoning_effort="none")
    assert re.fullmatch(DIGITS if "regex" in fields else "[0-9]", message_of(quiet)["content"])


def test_a_message_that_goes_on_behind_its_thought(http: httpx.Client, hasty: dict[str, Any]) -> None:
    said = [*CHAT["messages"], {"role": "assistant", "content": "Well.\n</think>\n\nIt"}]
    fields = {**hasty, "messages": said, "continue_final_message": True}
    answer = message_of(chat(http, **fields))
    assert answer["reasoning_content"] is None
    assert answer["content"] == message_of(chat(http, **fields, separate_reasoning=False))["content"]


# -- the other protocols


def test_responses(http: httpx.Client, hasty: dict[str, Any]) -> None:
    body = {"input": CHAT["messages"][0]["content"], "max_output_tokens": LONG, **hasty}
    answer = post(http, "/v1/responses", **body)
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message"]
    thought = answer["output"][0]["content"][0]
    assert thought["type"] == "reasoning_text"
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    told = events(http, "/v1/responses", **body)
    assert "".join(e["delta"] for e in told if e["type"] == "response.reasoning_text.delta") == thought["text"]
    text = answer["output"][1]["content"][0]["text"]
    assert "".join(e["delta"] for e in told if e["type"] == "response.output_text.delta") == text
    quiet = post(http, "/v1/responses", **body, reasoning={"effort": "none"})
    assert [item["type"] for item in quiet["output"]] == ["message"]


def test_messages(http: httpx.Client, hasty: dict[str, Any]) -> None:
    body = {**CHAT, "max_tokens": LONG, "temperature": 1.0}
    cut = post(http, "/v1/messages", **body, thinking={"type": "enabled", "budget_tokens": 1024})
    assert cut["content"][0]["type"] == "thinking"
    quiet = post(http, "/v1/messages", **body)
    assert [block["type"] for block in quiet["content"]] == ["text"]
    assert quiet["usage"]["input_tokens"] + quiet["usage"]["cache_read_input_tokens"] > (
        cut["usage"]["input_tokens"] + cut["usage"]["cache_read_input_tokens"]
    )
    told = events(http, "/v1/messages", **body, thinking={"type": "enabled", "budget_tokens": 1024})
    assert any(e["type"] == "content_block_delta" and e["delta"]["type"] == "thinking_delta" for e in told)


def test_ollama(http: httpx.Client) -> None:
    options = {"num_predict": 12, "seed": 4, "temperature": 1.0}
    thinking = post(http, "/api/chat", **CHAT, stream=False, options=options, think=True)
    assert thinking["message"]["thinking"]
    assert thinking["message"]["content"] == ""
    default = post(http, "/api/chat", **CHAT, stream=False, options=options)
    assert default["message"]["thinking"] == thinking["message"]["thinking"]
    quiet = post(http, "/api/chat", **CHAT, stream=False, options=options, think=False)
    assert not quiet["message"].get("thinking")
    assert quiet["message"]["content"]
    generated = post(http, "/api/generate", model="tiny", prompt="Why?", stream=False, options=options, think=True)
    assert generated["thinking"]
    with http.stream("POST", "/api/chat", json={**CHAT, "options": options, "think": True}) as answer:
        lines = [json.loads(line) for line in answer.iter_lines() if line]
    assert "".join(line["message"].get("thinking") or "" for line in lines) == thinking["message"]["thinking"]
