"""Misspelt fields inside other fields are spoken of, or refused; what official clients send is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import anthropic.types as anthropic
import anthropic.types.beta as beta
import httpx
import ollama
import openai.types.chat as chat
import openai.types.responses as responses
import openai.types.shared_params as shared
import pytest

from ramet.runtime.server.nested import ANTHROPIC, OLLAMA, OPENAI, RESPONSES, Known, known, strangers

from .serving import WAIT, serving

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"messages": HELLO, "max_completion_tokens": 1}
MESSAGE = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
OLLAMAS = {"model": "tiny", "messages": HELLO, "options": {"num_predict": 1}, "stream": False}
SCHEMA = {"type": "object", "properties": {"paramaters": {"type": "string"}}}


def parts(**more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "Hello", **more}]}]


def function(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", **more}}


MISSPELT: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "text": ("/v1/responses", {"input": "a", "text": {"fromat": {"type": "json_object"}}}, "text.fromat", "format"),
    "output_config": (
        "/v1/messages",
        {**MESSAGE, "output_config": {"fromat": {"a": 1}}},
        "output_config.fromat",
        "format",
    ),
    "function": (
        "/v1/chat/completions",
        {**CHAT, "tools": [function(), function(name="see", paramaters=SCHEMA)]},
        "tools[1].function.paramaters",
        "parameters",
    ),
    "functions": (
        "/v1/chat/completions",
        {**CHAT, "functions": [{"name": "look", "paramaters": SCHEMA}]},
        "functions[0].paramaters",
        "parameters",
    ),
    "custom": (
        "/v1/chat/completions",
        {**CHAT, "tools": [{"type": "custom", "custom": {"name": "look", "formt": {"type": "text"}}}]},
        "tools[0].custom.formt",
        "format",
    ),
    "flat": (
        "/v1/responses",
        {"input": "a", "tools": [{"type": "function", "name": "look", "paramaters": SCHEMA}]},
        "tools[0].paramaters",
        "parameters",
    ),
    "choice": (
        "/v1/messages",
        {
            **MESSAGE,
            "tools": [{"name": "a", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto", "disable_paralel_tool_use": True},
        },
        "tool_choice.disable_paralel_tool_use",
        "disable_parallel_tool_use",
    ),
    "schema": (
        "/v1/messages",
        {**MESSAGE, "tools": [{"name": "a", "input_schema": SCHEMA, "descripton": "b"}]},
        "tools[0].descripton",
        "description",
    ),
    "turn": ("/v1/messages", {**MESSAGE, "messages": [{**HELLO[0], "foo": 1}]}, "messages[0].foo", ""),
    "block": ("/v1/messages", {**MESSAGE, "messages": parts(foo=1)}, "messages[0].content[0].foo", ""),
    "system": ("/v1/messages", {**MESSAGE, "system": [{"type": "text", "text": "a", "foo": 1}]}, "system[0].foo", ""),
    "part": ("/v1/chat/completions", {**CHAT, "messages": parts(foo=1)}, "messages[0].content[0].foo", ""),
    "input": ("/v1/responses", {"input": parts(foo=1)}, "input[0].content[0].foo", ""),
    "ollama": ("/api/chat", {**OLLAMAS, "messages": [{**HELLO[0], "foo": 1}]}, "messages[0].foo", ""),
    "ollama tool": (
        "/api/chat",
        {**OLLAMAS, "tools": [function(paramaters=SCHEMA)]},
        "tools[0].function.paramaters",
        "parameters",
    ),
    "option": (
        "/v1/decisions",
        {
            "input": "a",
            "questions": [
                {
                    "id": "a",
                    "type": "choice",
                    "question": "b",
                    "options": [{"name": "c"}, {"name": "d", "descripton": "e"}],
                }
            ],
        },
        "questions[0].options[1].descripton",
        "description",
    ),
    "tokens": (
        "/tokenize",
        {"messages": HELLO, "tools": [function(paramaters=SCHEMA)]},
        "tools[0].function.paramaters",
        "parameters",
    ),
}


@pytest.fixture(scope="module")
def lenient() -> Iterator[httpx.Client]:
    with serving() as served, httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx.Client]:
    with serving(strict_requests=True) as served, httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


@pytest.mark.model
@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_field_is_spoken_of(lenient: httpx.Client, name: str) -> None:
    path, body, place, meant = MISSPELT[name]
    answer = lenient.post(path, json=body)
    assert answer.status_code == 200, answer.text
    want = f"`{place}` is not known and was ignored" + (f"; did you mean `{meant}`?" if meant else "")
    assert answer.headers["x-ramet-warnings"] == want
    assert answer.json()["warnings"] == [want]


@pytest.mark.model
@pytest.mark.parametrize(("text", "n"), [(["a", "b"], 1), ("a", 2)])
def test_an_answer_that_is_a_list_has_its_warnings_in_the_header(lenient: httpx.Client, text: Any, n: int) -> None:
    params = {"max_new_tokens": 1, "n": n, "temprature": 0}
    answer = lenient.post("/generate", json={"text": text, "sampling_params": params})
    assert len(answer.json()) == 2
    assert "did you mean `temperature`" in answer.headers["x-ramet-warnings"]


@pytest.mark.model
@pytest.mark.parametrize("name", MISSPELT)
def test_a_strict_server_refuses_it(strict: httpx.Client, name: str) -> None:
    path, body, place, _ = MISSPELT[name]
    answer = strict.post(path, json=body)
    assert answer.status_code == 400
    assert place in answer.text and "is not a field of this request" in answer.text


ORDINARY: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "annotations": [],
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "seen"}]},
            ],
            "max_completion_tokens": 1,
            "tools": [{**function(parameters=SCHEMA, strict=True, description="a"), "cache_control": None}],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "look"}}]},
            },
        },
    ),
    "responses": (
        "/v1/responses",
        {
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {
                    "type": "message",
                    "id": "m",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
                },
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "id": "f",
                    "name": "look",
                    "arguments": "{}",
                    "status": "completed",
                },
                {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "c"}]},
            ],
            "max_output_tokens": 1,
            "text": {"format": {"type": "text"}, "verbosity": "low"},
            "tools": [
                {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True, "defer_loading": False}
            ],
            "tool_choice": "none",
        },
    ),
    "messages": (
        "/v1/messages",
        {
            "model": "tiny",
            "max_tokens": 1,
            "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                *parts(citations=None, cache_control={"type": "ephemeral", "ttl": "5m"}),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "b", "signature": "c"},
                        {
                            "type": "tool_use",
                            "id": "t1",
                            "name": "look",
                            "input": {"foo": 1},
                            "caller": {"type": "direct"},
                        },
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t1",
                            "content": [{"type": "text", "text": "d"}],
                            "is_error": False,
                        }
                    ],
                },
            ],
            "tools": [
                {
                    "type": "custom",
                    "name": "look",
                    "description": "e",
                    "input_schema": SCHEMA,
                    "cache_control": {"type": "ephemeral"},
                }
            ],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "output_config": {"effort": "low"},
        },
    ),
    "ollama": (
        "/api/chat",
        {
            **OLLAMAS,
            "messages": [
                *HELLO,
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "a",
                    "tool_calls": [{"function": {"name": "look", "arguments": {"foo": 1}}}],
                },
                {"role": "tool", "content": "b", "tool_name": "look"},
            ],
            "tools": [function(description="c", parameters=SCHEMA)],
        },
    ),
}


@pytest.mark.model
@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_request_is_not(strict: httpx.Client, name: str) -> None:
    path, body = ORDINARY[name]
    answer = strict.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert "x-ramet-warnings" not in answer.headers


FUNCTION, CUSTOM = OPENAI["tools"].inside["function"], OPENAI["tools"].inside["custom"]
PART, BLOCK = OPENAI["messages"].inside["content"], ANTHROPIC["messages"].inside["content"]
OF_A_BLOCK = {"type", "text", "id", "tool_use_id", "name", "input", "content", "is_error"}  # the body's own fields
OF_A_TURN = {"role", "content"}


def keys(kind: Any) -> set[str]:
    return set().union(*map(keys, get_args(kind))) if get_args(kind) else set(kind.__annotations__)


@pytest.mark.parametrize(
    ("here", "sent"),
    [
        (OPENAI["tools"], keys(chat.ChatCompletionFunctionToolParam) | keys(chat.ChatCompletionCustomToolParam)),
        (FUNCTION, keys(shared.FunctionDefinition)),
        (CUSTOM, {"name", "description", "format"}),
        (PART, keys(chat.ChatCompletionContentPartTextParam) | keys(chat.ChatCompletionContentPartRefusalParam)),
        (PART, keys(responses.ResponseInputTextParam) | keys(responses.ResponseOutputTextParam)),
        (OPENAI["tool_choice"], keys(chat.ChatCompletionNamedToolChoiceParam)),
        (OPENAI["tool_choice"], keys(chat.ChatCompletionAllowedToolChoiceParam)),
        (RESPONSES["tool_choice"], keys(responses.ToolChoiceFunctionParam) | keys(responses.ToolChoiceAllowedParam)),
        (RESPONSES["tools"], keys(responses.FunctionToolParam) | keys(responses.CustomToolParam)),
        (RESPONSES["text"], keys(responses.ResponseTextConfigParam)),
        (ANTHROPIC["tools"], keys(anthropic.ToolParam) | keys(beta.BetaToolParam)),
        (ANTHROPIC["tool_choice"], keys(anthropic.ToolChoiceToolParam) | keys(anthropic.ToolChoiceAnyParam)),
        (ANTHROPIC["output_config"], keys(anthropic.OutputConfigParam) | keys(beta.BetaOutputConfigParam)),
        (ANTHROPIC["messages"], (keys(anthropic.MessageParam) | keys(beta.BetaMessageParam)) - OF_A_TURN),
        (BLOCK, keys(anthropic.TextBlockParam) - OF_A_BLOCK),
        (BLOCK, keys(anthropic.ToolUseBlockParam) - OF_A_BLOCK),
        (BLOCK, keys(anthropic.ToolResultBlockParam) - OF_A_BLOCK),
        (BLOCK, keys(anthropic.ThinkingBlockParam) - OF_A_BLOCK),
        (BLOCK, keys(anthropic.RedactedThinkingBlockParam) - OF_A_BLOCK),
        (OLLAMA["tools"], set(ollama.Tool.model_fields)),
        (OLLAMA["tools"].inside["function"], set(ollama.Tool.Function.model_fields)),
    ],
)
def test_all_fields_of_the_vendors_packages_are_known(here: Known, sent: set[str]) -> None:
    assert sent and not sent - here.fields


def test_null_and_empty_fields_ask_for_nothing() -> None:
    empty = {"a": None, "b": [], "c": {}, "d": "", "known": 1}
    assert not list(strangers([empty, 5, "text", None, [empty]], known("known"), "x"))
    assert [each.place for each in strangers({"a": False, "b": 0}, known(), "x")] == ["x.a", "x.b"]


def test_long_names_are_cut() -> None:
    (found,) = strangers({"y" * 10_000: 1}, known(), "x")
    assert len(found.place) < 100 and len(found.name) <= 64
