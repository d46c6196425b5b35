"""An OpenAI-style client with as little between program and server as can be: one pool of kept-alive connections.

In: prompts. Out: texts, choices, scores; `Tally`: what was sent and what the server counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

LEAST = -99.0  # logprob of a choice that is not among the likeliest tokens


class NotExpressible(Exception):
    """A server lacks what a workload needs; the text says what."""


@dataclass(slots=True)
class Tally:
    """Sums over calls. `computed`: prompt tokens that were not cached, and generated ones."""

    calls: int = 0
    prompt: int = 0
    cached: int = 0
    decoded: int = 0
    forced: int = 0

    @property
    def computed(self) -> int:
        """See `Tally`."""
        return self.prompt - self.cached + self.decoded


class Client:
    """One server's `/v1/completions`. `scores`: the server gives logprobs of prompts. Use it as a context manager."""

    def __init__(self, url: str, *, scores: bool) -> None:
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=600.0, trust_env=False)
        self._scores = scores
        self.tally = Tally()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def gen(
        self,
        prompt: str,
        tokens: int,
        *,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """A continuation of `tokens` tokens, or a JSON value under `schema`."""
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": temperature, "ignore_eos": True}
        if seed is not None:
            body["seed"] = seed
        if logprobs:
            body["logprobs"] = 1
        if schema is not None:
            body |= {"json_schema": schema, "ignore_eos": False}
        choices = await self._post(body)
        text = choices[0]["text"]
        assert isinstance(text, str), "a completion is a text"
        return text

    async def pick(self, prompt: str, choices: Sequence[str]) -> str:
        """The likeliest of choices of one token: one call, the likeliest tokens."""
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20, "ignore_eos": True}
        answer = await self._post(body)
        top = _likeliest(answer[0])
        return max(choices, key=lambda choice: top.get(choice, LEAST))

    async def score(self, prompt: str, ends: Sequence[str]) -> str:
        """The likeliest ending, by the mean logprob of its tokens: one call with a prompt for each."""
        if not self._scores:
            raise NotExpressible("the server gives no logprobs of prompts")
        body = {"prompt": [prompt + end for end in ends], "max_tokens": 0, "echo": True, "logprobs": 0}
        answers = await self._post(body)
        rates = []
        for answer in answers:
            told = answer["logprobs"]
            pairs = zip(told["token_logprobs"], told["text_offset"], strict=True)
            own = [value for value, offset in pairs if offset >= len(prompt) and value is not None]
            rates.append(sum(own) / max(1, len(own)))
        return ends[rates.index(max(rates))]

    async def _post(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        answer = await self._http.post("/v1/completions", json={"model": "default", **body})
        if answer.status_code != 200:
            raise NotExpressible(f"the server answered {answer.status_code}: {answer.text[:120]}")
        told = answer.json()
        self._count(told)
        choices = told["choices"]
        assert isinstance(choices, list), "OpenAI's protocol"
        return choices

    def _count(self, told: Mapping[str, Any]) -> None:
        usage, tally = told["usage"], self.tally
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        if cached is None:
            cached = (told.get("timings") or {}).get("cache_n", 0)
        tally.calls += 1
        tally.prompt += usage["prompt_tokens"]
        tally.cached += cached
        tally.decoded += usage["completion_tokens"]
        tally.forced += (usage.get("completion_tokens_details") or {}).get("forced_tokens", 0)


def _likeliest(choice: Mapping[str, Any]) -> dict[str, float]:
    """Token to logprob of the first place, in OpenAI's old form or in the newer one of chats."""
    told = choice["logprobs"] or {}
    if told.get("top_logprobs"):
        first = told["top_logprobs"][0]
        assert isinstance(first, dict), "token to logprob"
        return first
    return (
        {each["token"]: each["logprob"] for each in told["content"][0]["top_logprobs"]} if told.get("content") else {}
    )
