"""R5: every number of a request has bounds; beyond them it is a 400 that names the field, at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.server import generate, sampling

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


# --- positive controls: a bound that is taken out is seen to be missing by the very same requests


def statuses(http: httpx.Client, field: str, beyond: Any) -> int:
    """The status of a native request with a value beyond the bounds."""
    body = {"text": "one", "sampling_params": {"max_new_tokens": 1, field: beyond}}
    return http.post("/generate", json=body).status_code


LOOSER: dict[str, tuple[str, Any, str, Any]] = {  # what is taken out: field, value beyond, what holds it, instead
    "any probability": ("top_p", 1.1, "_READERS.top_p", lambda value, name: min(value, 1.0)),
    "any top_k": ("top_k", -5, "_READERS.top_k", lambda value, name: max(value, 0)),
    "any min_p": ("min_p", 2, "_READERS.min_p", lambda value, name: min(value, 1.0)),
    "any stops": ("stop", ["x"] * 1000, "_READERS.stop", lambda value, name: tuple(value[:4])),
    "a stop of any length": ("stop", "x" * 100_000, "_READERS.stop", lambda value, name: (value[:8],)),
    "any penalty": ("frequency_penalty", 1e30, "_READERS.frequency_penalty", lambda value, name: min(value, 2.0)),
    "any seed": ("sampling_seed", 10**40, "_READERS.seed", lambda value, name: value % (1 << 63)),
    "biases without number": (
        *("logit_bias", {str(i): 1 for i in range(301)}, "_READERS.logit_bias"),
        lambda value, name: {int(token): bias for token, bias in list(value.items())[:3]},
    ),
    "a bias of any size": ("logit_bias", {"1": 10**6}, "_READERS.logit_bias", lambda value, name: {1: 1.0}),
    "a token that is not in the vocabulary": (
        *("logit_bias", {"99999999": 1}, "_READERS.logit_bias"),
        lambda value, name: {1: 1.0},
    ),
    "negative stop ids": ("stop_token_ids", [-1], "_READERS.stop_token_ids", lambda value, name: (1,)),
    "whole numbers of any size": ("max_new_tokens", 10**30, "whole", lambda value, name: 1),
    "any count": ("n", HUGE, "count_of", lambda value, name, **limits: 1),
    "no completion at all": ("n", 0, "count_of", lambda value, name, **limits: 1),
}


@pytest.mark.parametrize("name", LOOSER)
def test_control_a_bound_that_is_taken_out_is_missed(
    http: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, beyond, place, instead = LOOSER[name]
    assert any(each[:2] == (field, beyond) for each in NATIVE)
    assert statuses(http, field, beyond) == 400
    if place.startswith("_READERS."):
        loose = {**sampling._READERS, place.removeprefix("_READERS."): instead}
        monkeypatch.setattr(sampling, "_READERS", loose)
    else:
        for module in (sampling, generate):
            if hasattr(module, place):
                monkeypatch.setattr(module, place, instead)
    assert statuses(http, field, beyond) == 200
