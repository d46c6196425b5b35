"""Equality over HTTP: the same request has the same text, tokens and logprobs, to the bit, streamed or whole, cold or
warm, and from the engine that comes after one that was killed.

Positive controls: logprobs that are rounded now and then, an engine of another precision.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from ramet.runtime.translate import Translator

from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
TOKENS = 24
SAMPLED = {"temperature": 0.9, "top_p": 0.9, "seed": 7, "ignore_eos": True}
TEXT = "Once upon a time there was"
OPS = [
    {"type": "text", "id": "0.0", "seq": "0", "parts": [TEXT]},
    {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {**SAMPLED, "max_tokens": TOKENS, "logprobs": 2}},
]
NATIVE = {"temperature": 0.9, "top_p": 0.9, "sampling_seed": 7, "ignore_eos": True, "max_new_tokens": TOKENS}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"text": TEXT, "sampling_params": NATIVE, "return_logprob": True, "top_logprobs_num": 2},
    "/v1/completions": {"model": "tiny", "prompt": TEXT, "max_tokens": TOKENS, "logprobs": 2, **SAMPLED},
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": TOKENS,
        "logprobs": True,
        "top_logprobs": 2,
        **SAMPLED,
    },
    "/v1/programs": {"version": 1, "ops": OPS, "header": {"seed": 3}},
}
Answer = tuple[str, list[Any]]  # text and logprobs


def _native(parts: list[dict[str, Any]], stream: bool) -> Answer:
    return parts[-1]["text"], [
        parts[-1]["meta_info"][name] for name in ("output_token_logprobs", "output_top_logprobs")
    ]


def _text(parts: list[dict[str, Any]], stream: bool) -> Answer:
    shown = [part["choices"][0] for part in parts if part["choices"]]
    logs = [choice["logprobs"] for choice in shown if choice.get("logprobs")]
    names = ("tokens", "token_logprobs", "top_logprobs")
    return "".join(choice["text"] for choice in shown), [[each for log in logs for each in log[n]] for n in names]


def _chat(parts: list[dict[str, Any]], stream: bool) -> Answer:
    shown = [part["choices"][0] for part in parts if part["choices"]]
    said = [choice["delta" if stream else "message"].get("content") or "" for choice in shown]
    return "".join(said), [each for choice in shown for each in (choice.get("logprobs") or {}).get("content") or ()]


def _program(parts: list[dict[str, Any]], stream: bool) -> Answer:
    events = parts if stream else parts[0]["events"]
    (done,) = (event for event in events if event["type"] == "finished")
    told = [event for event in events if event["type"] == "token"]
    logs = [each for event in told for each in event["logprobs"]] if told else done["meta"]["logprobs"]
    return done["value"], [done["meta"]["tokens"], done["meta"]["logprobs"], logs]


READ: dict[str, Callable[[list[dict[str, Any]], bool], Answer]] = {
    "/generate": _native,
    "/v1/completions": _text,
    "/v1/chat/completions": _chat,
    "/v1/programs": _program,
}


def answer(served: Served, path: str, *, stream: bool) -> Answer:
    """Text and logprobs of the route's request."""
    found = httpx.post(served.url + path, json={**BODIES[path], "stream": stream}, timeout=WAIT)
    assert found.status_code == 200, found.text
    if not stream:
        return READ[path]([found.json()], False)
    lines = [line[6:] for line in found.text.splitlines() if line.startswith("data: {")]
    return READ[path](list(map(json.loads, lines)), True)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


def equal(served: Served, path: str) -> None:
    """The check: whole and streamed, after a flush and from a warm cache."""
    found = []
    for stream in (False, True, True, False):
        if len(found) in (0, 2):
            assert httpx.post(f"{served.url}/flush_cache", timeout=WAIT).json()["success"]
        found.append(answer(served, path, stream=stream))
    text, logs = found[0]
    assert len(text) > TOKENS and len(json.dumps(logs)) > 20 * TOKENS, "it says something"
    assert all(each == found[0] for each in found[1:])


@pytest.mark.parametrize("path", BODIES)
def test_streamed_or_not_cold_or_warm(served: Served, path: str) -> None:
    equal(served, path)


def rough(self: Translator, *told: Any) -> Any:
    """Logprobs of less precision, now and then."""
    found = LOGPROBS(self, *told)
    return [msgspec.structs.replace(each, logprob=round(each.logprob, 2)) for each in found] if self.odd() else found


LOGPROBS = Translator._logprobs


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_control_logprobs_that_differ_now_and_then_are_seen(
    served: Served, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = iter(range(1 << 20))
    monkeypatch.setattr(Translator, "odd", lambda self: next(counted) % 7 == 3, raising=False)
    monkeypatch.setattr(Translator, "_logprobs", rough)
    with pytest.raises(AssertionError):
        equal(served, path)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_before_and_after_an_engine_is_killed(dtype: str) -> None:
    """The next engine gives the same bits; one of another precision (the control) does not."""
    with serving(in_process=False) as served:
        before = [answer(served, path, stream=False) for path in BODIES]
        served.client._config = msgspec.structs.replace(served.client._config, dtype=dtype)
        engine, (_, listener) = served.client.process_id, served.client._made  # type: ignore[misc]
        assert engine is not None
        served.service._gate._limits = replace(served.service.limits, patience=WAIT)  # newcomers wait for the next one
        os.kill(engine, signal.SIGKILL)
        listener.join(WAIT)
        after = [answer(served, path, stream=True) for path in BODIES]
    assert (after == before) == (dtype == "float32")
