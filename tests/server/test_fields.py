"""Refusals name the field of the protocol that was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .serving import WAIT, serving

pytestmark = pytest.mark.model
LONG = "word " * 1500  # more than the context
HUGE = "x" * 20_000  # more than is tokenised at all
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving() as served, httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def refused(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": LONG}, "prompt"),
        ("/v1/completions", {"prompt": HUGE}, "prompt"),
        ("/v1/completions", {"prompt": [5] * 2000}, "prompt"),
        ("/v1/completions", {"prompt": "one", "max_tokens": 5000, "stream": True}, "prompt"),
        ("/v1/chat/completions", said(LONG), "messages"),
        ("/v1/chat/completions", {**said(LONG), "stream": True}, "messages"),
        ("/v1/responses", {"input": LONG}, "input"),
        ("/v1/responses", {"input": HUGE, "stream": True}, "input"),
        ("/generate", {"text": LONG}, "text"),
        ("/generate", {"input_ids": [5] * 2000}, "input_ids"),
        ("/generate", {"text": ["one", HUGE], "sampling_params": {"max_new_tokens": 0}}, "text"),
        ("/tokenize", {"prompt": HUGE}, "prompt"),
    ],
)
def test_a_prompt_that_is_too_long_names_its_field(http: httpx.Client, path: str, body: dict[str, Any], param: str):
    error = refused(http, path, body)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)


@pytest.mark.parametrize(
    ("path", "body", "foreign", "right"),
    [
        ("/v1/responses", {"input": "Hello", "max_tokens": 4}, "max_tokens", "max_output_tokens"),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "max_new_tokens": 4},
            "max_new_tokens",
            "max_completion_tokens",
        ),
        ("/v1/completions", {"prompt": "Hello", "max_new_tokens": 4}, "max_new_tokens", "max_tokens"),
        ("/generate", {"text": "Hello", "max_new_tokens": 4}, "max_new_tokens", "sampling_params.max_new_tokens"),
        (
            "/generate",
            {"text": "Hello", "sampling_params": {"max_tokens": 4}},
            "max_tokens",
            "max_new_tokens",
        ),
    ],
)
def test_a_limit_of_another_protocol_is_refused(
    http: httpx.Client, path: str, body: dict[str, Any], foreign: str, right: str
):
    error = refused(http, path, body)
    assert error["param"] == foreign
    assert f"`{right}`" in error["message"]


def test_dialects_refuse_it_in_their_own_shape(http: httpx.Client):
    body = {"model": "tiny", "messages": HELLO}
    answer = http.post("/v1/messages", json={**body, "max_tokens": 4, "max_completion_tokens": 4})
    assert answer.status_code == 400 and "`max_tokens`" in answer.json()["error"]["message"]
    for more in ({"max_tokens": 4}, {"options": {"max_tokens": 4}}):
        answer = http.post("/api/chat", json={**body, **more})
        assert answer.status_code == 400 and "num_predict`" in answer.json()["error"]


SIX = {"regex": "[A-F]{40}"}  # no text of two tokens
CHAT = {"model": "tiny", "messages": HELLO}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 2, **SIX}, "max_tokens"),
        ("/v1/completions", {"prompt": "Hello", "max_completion_tokens": 2, **SIX}, "max_completion_tokens"),
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 2, "stream": True, **SIX}, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 2, **SIX}, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 2, **SIX}, "max_completion_tokens"),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 2, **SIX}, "max_output_tokens"),
        (
            "/generate",
            {"text": "Hello", "sampling_params": {"max_new_tokens": 2, **SIX}},
            "sampling_params.max_new_tokens",
        ),
    ],
)
def test_a_constraint_that_does_not_fit_names_the_limit(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
):
    error = refused(http, path, body)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}=2: the shortest text")


def test_dialects_name_their_limit(http: httpx.Client):
    answer = http.post("/v1/messages", json={**CHAT, "max_tokens": 2, **SIX})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("max_tokens=2: ")
    answer = http.post("/api/chat", json={**CHAT, "options": {"num_predict": 2}, **SIX})
    assert answer.status_code == 400 and answer.json()["error"].startswith("options.num_predict=2: ")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "/v1/completions",
            {"prompt": "Hello", "max_tokens": 2, "min_tokens": 5},
            "min_tokens=5: must not exceed max_tokens=2",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "max_completion_tokens": 2, "min_tokens": 5},
            "min_tokens=5: must not exceed max_completion_tokens=2",
        ),
        (
            "/v1/responses",
            {"input": "Hello", "max_output_tokens": 2, "min_tokens": 5},
            "min_tokens=5: must not exceed max_output_tokens=2",
        ),
        (
            "/generate",
            {"text": "Hello", "sampling_params": {"max_new_tokens": 2, "min_new_tokens": 5}},
            "min_new_tokens=5: must not exceed max_new_tokens=2",
        ),
    ],
)
def test_a_least_length_above_the_limit_names_both(http: httpx.Client, path: str, body: dict[str, Any], message: str):
    assert refused(http, path, body)["message"] == message
