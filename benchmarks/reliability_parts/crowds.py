"""Many clients at once: in: a server process. Out: findings about a storm of disconnects, ten times too much work, and
four times too little memory.

What is right is what the same request gives alone, on the same server, afterwards: the engine promises the same bits.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reliability_parts.board import Finding, Unmeasured, Violation
from reliability_parts.place import Place
from reliability_parts.wire import DONE, Heard, Leaving, ask, idle, info, soon

KINDS = 48  # different requests of a crowd
STAY, LEAVE = 24, 900  # tokens that those ask for who stay, and who leave


def generate(kind: int, tokens: int, words: int = 6, **more: Any) -> dict[str, Any]:
    """A body for /generate: a prompt and a seed of its own, exactly `tokens` tokens."""
    text = f"Story {kind}. " + " ".join(f"word{(kind * 31 + k) % 97}" for k in range(words))
    sampling = {"max_new_tokens": tokens, "temperature": 1.0, "sampling_seed": kind, "ignore_eos": True}
    return {"text": text, "sampling_params": sampling, **more}


def streamed(kind: int, tokens: int) -> dict[str, Any]:
    """The same as a stream of what is new."""
    return generate(kind, tokens, stream=True, incremental_streaming_output=True)


def text_of(answer: Heard) -> str:
    """A stream's text, put together."""
    return "".join(json.loads(event).get("text", "") for event in answer.events if event != DONE)


async def alone(url: str, body: dict[str, Any]) -> str:
    """The text of a request that has the server to itself."""
    answer = await soon(ask(url, "/generate", body), "a request alone")
    if answer.status != 200:
        raise Unmeasured(f"a request alone was answered with {answer.status}: {bytes(answer.body[:200])!r}")
    return str(answer.json()["text"])


# -- half of a crowd vanishes


def storm(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """`clients` streams at once. A quarter leaves at random moments, a quarter all at once when those who stay are
    done; half of them by a reset, half by closing."""
    clients = int(size["clients"])
    room = clients * (STAY + 64) + clients // 2 * LEAVE
    many = str(clients + 16)
    flags = ("--threads", "1", "--context", "2048", "--kv-tokens", str(room))
    with place.server(*flags, "--max-running", many, "--max-running-requests", many) as server:
        return asyncio.run(_storm(server.url, clients, place.seed))


async def _storm(url: str, clients: int, seed: int) -> list[Finding]:
    rng = random.Random(seed)
    end = asyncio.Event()
    staying: dict[int, asyncio.Future[Heard]] = {}
    early, late = list[asyncio.Future[Heard]](), list[asyncio.Future[Heard]]()
    began = time.perf_counter()
    for i in range(clients):
        reset = i % 8 < 4
        if i % 2 == 0:
            staying[i] = asyncio.ensure_future(ask(url, "/generate", streamed(i % KINDS, STAY)))
        elif i % 4 == 1:
            leaving = Leaving(after=rng.randrange(1, 12), reset=reset)
            early.append(asyncio.ensure_future(ask(url, "/generate", streamed(i, LEAVE), leaving=leaving)))
        else:
            late.append(asyncio.ensure_future(_last(url, i, Leaving(now=end, reset=reset))))
    stayed = await soon(asyncio.gather(*staying.values()), "streams whose neighbours vanish")
    await soon(asyncio.gather(*early), "clients that leave")
    seconds = time.perf_counter() - began
    held = await info(url)
    end.set()
    left = await soon(asyncio.gather(*late), "clients that leave at once")
    back, figures = await idle(url)
    kv = figures["kv"]
    wanted = {kind: await alone(url, generate(kind, STAY)) for kind in sorted({i % KINDS for i in staying})}
    right = sum(
        answer.whole and answer.events[-1:] == [DONE] and text_of(answer) == wanted[i % KINDS]
        for i, answer in zip(staying, stayed, strict=True)
    )
    return [
        Finding("survivors whose text is that of the request alone", right / len(stayed), least=1.0),
        Finding("slots back after the last left", back, "s", most=1.0),
        Finding("slots lost", kv["total"] - kv["free"] - kv["cached"] - kv["used"], most=0),
        Finding("engines lost", figures["restarts"], most=0),
        Finding("answers other than 200", sum(each.status != 200 for each in stayed), most=0),
        Finding("programs that were live when the last left", held["programs"], least=1),
        Finding("clients that left", len(early) + sum(each.left for each in left)),
        Finding("KV slots in use then", held["kv"]["used"]),
        Finding("tokens a second, all streams", len(stayed) * STAY / seconds),
    ]


async def _last(url: str, kind: int, leaving: Leaving) -> Heard:
    return await ask(url, "/generate", streamed(kind, LEAVE), leaving=leaving)


# -- ten times too much


@dataclass(slots=True)
class Offered:
    """What became of requests that came at a fixed rate, whether answered or not."""

    statuses: Counter[int] = field(default_factory=Counter)
    without_when: int = 0  # 429 without Retry-After
    tokens: int = 0  # of complete answers
    refusals: list[float] = field(default_factory=list)  # seconds until a 429

    def add(self, answer: Heard) -> None:
        """Count one answer."""
        self.statuses[answer.status if answer.whole else 0] += 1
        if answer.status == 429:
            self.without_when += answer.retry_after() < 1
            self.refusals.append(answer.seconds)
        elif answer.status == 200 and answer.whole:
            self.tokens += int(answer.json()["meta_info"]["completion_tokens"])


def overload(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """Capacity: tokens/s under as many clients as are let in and as wait. Overload: ten times as many requests a second
    as that answers, whoever is refused goes away. Both in turns of `seconds`, `turns` times."""
    flags = ("--threads", "1", "--max-running-requests", "8", "--max-queue", "16", "--context", "1024")
    with place.server(*flags, real=True) as server:
        return asyncio.run(_overload(server.url, int(size["turns"]), size["seconds"], int(size["tokens"]), place.seed))


async def _overload(url: str, turns: int, seconds: float, tokens: int, seed: int) -> list[Finding]:
    offered, ratios, capacities = Offered(), list[float](), list[float]()
    before = (await info(url))["generated_tokens"]
    closed, rng = Offered(), random.Random(seed)
    numbers = itertools.count()
    rates = list[float]()
    for turn in range(turns + 1):
        capacity = await _closed(url, 16, seconds, tokens, closed, numbers)
        arrivals = 10 * capacity / tokens
        kept = await _open(url, arrivals, seconds, tokens, offered, numbers, rng)
        if turn:  # the first turn warms up
            ratios.append(kept / capacity)
            capacities.append(capacity)
            rates.append(arrivals)
    _, figures = await idle(url)
    wasted = figures["generated_tokens"] - before - offered.tokens - closed.tokens
    other = {status for status in offered.statuses if status not in (200, 429)}
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 2 else 0.0
    return [
        Finding("share of capacity that is kept", statistics.mean(ratios), least=0.9, error=error),
        Finding("answers other than 200 and 429", sum(offered.statuses[status] for status in other), most=0),
        Finding("429 without Retry-After", offered.without_when, most=0),
        Finding("tokens computed for nobody", wasted, most=0),
        Finding("answers 200", offered.statuses[200], least=1),
        Finding("answers 429", offered.statuses[429], least=1),
        Finding("offered", statistics.median(rates), "requests/s"),
        Finding("capacity", statistics.median(capacities), "tokens/s"),
        Finding("median time to a refusal", 1e3 * statistics.median(offered.refusals or [math.nan]), "ms"),
    ]


async def _paced(url: str, seconds: float) -> float:
    """Tokens a second, by the engine's own count, over a while that begins when it is busy."""
    await asyncio.sleep(min(1.0, seconds / 4))
    began, first = time.perf_counter(), (await info(url))["generated_tokens"]
    await asyncio.sleep(seconds)
    return float((await info(url))["generated_tokens"] - first) / (time.perf_counter() - began)


async def _closed(url: str, clients: int, seconds: float, tokens: int, kept: Offered, numbers: Any) -> float:
    """Tokens/s under clients that ask again when they were answered."""
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            kept.add(await ask(url, "/generate", generate(next(numbers), tokens)))

    running = [asyncio.ensure_future(client()) for _ in range(clients)]
    pace = await _paced(url, seconds)
    over.set()
    await soon(asyncio.gather(*running), "clients of a full server")
    if set(kept.statuses) != {200}:
        raise Unmeasured(f"capacity was not found: answers {dict(kept.statuses)}")
    return pace


async def _open(
    url: str, rate: float, seconds: float, tokens: int, offered: Offered, numbers: Any, rng: random.Random
) -> float:
    """Tokens/s under `rate` requests a second (a Poisson process), whatever becomes of them."""
    running = set[asyncio.Task[None]]()

    async def one() -> None:
        offered.add(await ask(url, "/generate", generate(next(numbers), tokens)))

    async def arrive() -> None:
        at = time.perf_counter()
        while True:
            at += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            running.add(asyncio.create_task(one()))

    arriving = asyncio.ensure_future(arrive())
    pace = await _paced(url, seconds)
    arriving.cancel()
    await asyncio.gather(arriving, return_exceptions=True)
    await soon(asyncio.gather(*running), "requests under overload")
    return pace


# -- four times too little memory


def overcommit(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """Requests that together need four times the KV slots that there are, all at once: plain ones and forks of four."""
    requests = int(size["requests"])
    slots, words, tokens = int(size["slots"]), 40, 0
    tokens = 4 * slots // requests - 3 * words
    if tokens < 16:
        raise Unmeasured(f"{requests} requests are too many for {slots} slots")
    flags = ("--threads", "1", "--context", "2048", "--kv-tokens", str(slots))
    with place.server(*flags) as server:
        return asyncio.run(_overcommit(server.url, requests, words, tokens, slots))


async def _overcommit(url: str, requests: int, words: int, tokens: int, slots: int) -> list[Finding]:
    bodies = [generate(i, tokens, words) for i in range(requests)]
    for body in bodies[::8]:
        body["sampling_params"] |= {"n": 4, "max_new_tokens": tokens // 4}
    answers = await soon(asyncio.gather(*(ask(url, "/generate", body) for body in bodies)), "over-committed requests")
    _, after = await idle(url)
    wrong = [answer for answer in answers if answer.status != 200 or not answer.whole]
    if wrong:
        raise Violation(
            f"{len(wrong)} of {requests} were not answered: {wrong[0].status} {bytes(wrong[0].body[:200])!r}"
        )
    found = [_choices(answer.json()) for answer in answers]
    needed = sum(choice["meta_info"]["completion_tokens"] for choices in found for choice in choices)
    needed += sum(choices[0]["meta_info"]["prompt_tokens"] for choices in found)
    short = sum(choice["meta_info"]["finish_reason"]["type"] != "length" for choices in found for choice in choices)
    equal = 0
    for body, choices in zip(bodies, found, strict=True):
        single = await soon(ask(url, "/generate", body), "a request alone")
        equal += [each["text"] for each in _choices(single.json())] == [each["text"] for each in choices]
    kv = after["kv"]
    return [
        Finding("answers equal to those alone", equal / requests, least=1.0),
        Finding("answers that end early", short, most=0),
        Finding("KV asked for, in pools", needed / slots, least=3.9),
        Finding("slots lost", kv["total"] - kv["free"] - kv["cached"], most=0),
        Finding("engines lost", after["restarts"], most=0),
        Finding("requests", requests),
        Finding("retractions", after["retractions"]),
        Finding("evicted tokens", after["evicted_tokens"]),
    ]


def _choices(value: Any) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else [value]
