"""Values of other types than `/openapi.json` says are refused, on every path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .serving import WAIT, serving

pytestmark = pytest.mark.model
OPS = [{"type": "text", "id": "0.0", "seq": "0", "parts": ["Once"]}]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving() as served, httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def sampling(**fields: Any) -> dict[str, Any]:
    return {"text": "a", "sampling_params": fields}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": [True, False]}, "prompt"),
        ("/v1/completions", {"prompt": "a", "max_tokens": True}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "3"}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 3.0}, "max_tokens"),  # as chat completions
        ("/v1/completions", {"prompt": "a", "n": "2"}, "n"),
        ("/v1/completions", {"prompt": "a", "echo": "yes"}, "echo"),
        ("/v1/completions", {"prompt": "a", "stream": "off"}, "stream"),
        ("/v1/completions", {"prompt": "a", "temperature": "0"}, "temperature"),
        (
            "/v1/completions",
            {"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
        ("/generate", {"input_ids": ["1", "2"]}, "input_ids"),
        ("/generate", {"text": "a", "stream": 1}, "stream"),
        ("/generate", {"text": "a", "return_logprob": "true"}, "return_logprob"),
        ("/generate", sampling(max_new_tokens="4"), "sampling_params.max_new_tokens"),
        ("/generate", sampling(temperature=True), "sampling_params.temperature"),
        ("/v1/programs", {"ops": OPS, "version": "1"}, "version"),
        ("/v1/programs", {"ops": OPS, "timeout": True}, "timeout"),
        ("/v1/programs", {"ops": OPS, "stream": "false"}, "stream"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens"),
        ("/detokenize", {"tokens": ["1"]}, "tokens"),
        ("/detokenize", {"tokens": [1], "skip_special_tokens": 0}, "skip_special_tokens"),
        ("/abort_request", {"abort_all": "yes"}, "abort_all"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3.0}, "max_tokens"),
    ],
)
def test_another_type_is_refused(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].partition("[")[0] == param
    assert error["message"].startswith(f"`{param}") and ", got " in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [5, 6], "max_tokens": 1, "temperature": 0, "logit_bias": {"5": 1}}),
        ("/generate", {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}),
        ("/v1/programs", {"ops": OPS, "timeout": 5}),
        ("/detokenize", {"tokens": [[1], [2]]}),
    ],
)
def test_a_whole_number_is_a_number(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    assert http.post(path, json=body).status_code == 200
