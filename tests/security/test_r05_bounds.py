"""R5: every number of a request has bounds; beyond them it is a 400 that names the field, at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ..server.serving import WAIT, serving

pytestmark = pytest.mark.model
HUGE = 10**9


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving() as served, httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


NATIVE = [  # field of sampling_params, beyond the bounds, inside
    ("n", HUGE, 2),
    ("n", 0, 1),
    ("n", -1, 1),
    ("temperature", -0.1, 0.1),
    ("temperature", "hot", 1),
    ("top_p", 1.1, 1),
    ("top_k", -5, 5),
    ("min_p", 2, 0.1),
    ("max_new_tokens", -1, 1),
    ("max_new_tokens", 10**30, 1),
    ("max_new_tokens", 1.5, 1),
    ("stop", ["x"] * 1000, ["x"]),
    ("stop", "x" * 100_000, "x"),
    ("repetition_penalty", -1, 1.1),
    ("frequency_penalty", 1e30, 0.5),
    ("sampling_seed", 10**40, 1),
    ("logit_bias", {str(i): 1 for i in range(301)}, {"1": 1}),
    ("logit_bias", {"99999999": 1}, {"1": 1}),
    ("logit_bias", {"1": 10**6}, {"1": 1}),
    ("stop_token_ids", [-1], [1]),
]


@pytest.mark.parametrize(("field", "beyond", "inside"), NATIVE)
def test_sampling(http: httpx.Client, field: str, beyond: Any, inside: Any):
    for value, status in ((beyond, 400), (inside, 200)):
        answer = http.post("/generate", json={"text": "one", "sampling_params": {"max_new_tokens": 1, field: value}})
        assert answer.status_code == status, answer.text
    assert answer.status_code == 200


OPENAI = [
    ("n", HUGE, 2),
    ("temperature", 1e300, 1),
    ("top_logprobs", 10**6, 2),
    ("max_tokens", 0, 1),
    ("max_tokens", HUGE, 1),
    ("seed", 10**40, 3),
    ("presence_penalty", -100, 1),
    ("stop", ["x"] * 1000, ["x"]),
    ("logit_bias", {"x": 1}, {"1": 1}),
]


@pytest.mark.parametrize(("field", "beyond", "inside"), OPENAI)
def test_chat(http: httpx.Client, field: str, beyond: Any, inside: Any):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "one"}], "max_tokens": 1, "logprobs": True}
    for value, status in ((beyond, 400), (inside, 200)):
        answer = http.post("/v1/chat/completions", json={**body, field: value})
        assert answer.status_code == status, answer.text
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("field", "beyond", "inside"),
    [
        ("prompt", ["x"] * 129, ["x"] * 2),
        ("prompt", [HUGE], [1]),
        ("prompt", [-1], [1]),
        ("prompt", "word " * 3000, "word"),
        ("logprobs", 10**6, 1),
        ("best_of", HUGE, 1),
    ],
)
def test_completions(http: httpx.Client, field: str, beyond: Any, inside: Any):
    for value, status in ((beyond, 400), (inside, 200)):
        answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1, field: value})
        assert answer.status_code == status, answer.text
    assert answer.status_code == 200
