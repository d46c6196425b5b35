"""A constraint that compiles and meets one of its limits later, while text is generated (R4): it is a 400 all the same,
in a stream the last event, and nobody else notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ramet.runtime import collect

from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
COSTLY = {
    "of expressions": {"regex": "(b{1,100}){1,100}"},
    "of items": {"ebnf": 'root ::= root root root | root root | "b" | ""'},
}
PLAIN = {"text": "Once upon", "sampling_params": {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


def body(name: str, **more: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": 60, "temperature": 1.0, "sampling_seed": 0, "ignore_eos": True, **COSTLY[name]}
    return {"text": "Story 0.", "sampling_params": sampling, **more}


def post(served: Served, sent: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{served.url}/generate", json=sent, timeout=WAIT)


@pytest.mark.parametrize("name", COSTLY)
def test_it_is_a_400_that_says_which_limit(served: Served, name: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        alone = post(served, PLAIN).json()["text"]
        beside = pool.submit(post, served, PLAIN)
        answer = post(served, body(name))
        assert beside.result().json()["text"] == alone
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert "no token can be sampled" in error["message"] and "(limit: " in error["message"]
    assert post(served, PLAIN).json()["text"] == alone


def test_in_a_stream_it_is_the_last_event(served: Served) -> None:
    answer = post(served, body("of items", stream=True))
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    if answer.status_code == 200:  # text had been sent
        assert "(limit: " in json.loads(events[-1])["error"]["message"]
    else:
        assert answer.status_code == 400
    assert "[DONE]" not in answer.text


def test_without_the_rule_it_is_a_500(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the engine is in this process."""
    monkeypatch.setattr(collect, "_kind", lambda why: "generation")
    assert post(served, body("of items")).status_code == 500


def test_what_is_no_limit_stays_a_fault_of_the_server() -> None:
    assert collect._kind("all are forbidden, or the logits are not finite") == "generation"
    assert collect._kind("ValueError: something broke") == "generation"
