"""Two tenants of one server: in: a server with two keys. Out: findings about who gets how much, and about what one can
learn of the other's prompts.

The probe is PROMPTPEEK's: ask what another may have asked, and look at the count of cached tokens and at the time to
the first token. A signal would be times by which what the other has cached can be told from what nobody has: the area
under the ROC curve (Mann and Whitney 1947), 0.5 when there is none. The control is the owner's own prompts.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from reliability_parts.board import Finding, Unmeasured
from reliability_parts.crowds import generate
from reliability_parts.place import Place
from reliability_parts.wire import Heard, ask, idle, soon

KEYS = ("alice-key", "bob-key")
LENGTH = 400  # words of a probe
ROWS, LONG, SHORT = 8, 200, 50  # sequences at once; tokens of the flood's answers, and of the other's
FEW = 24  # clients of the tenant that does not flood
FLAGS = ("--threads", "1", "--context", "2048", "--api-key", KEYS[0], "--api-key", KEYS[1])


def of(tenant: int) -> dict[str, str]:
    """A tenant's headers."""
    return {"x-api-key": KEYS[tenant]}


# -- shares


def fair(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """One tenant asks with `flood` clients for long texts, the other with `FEW` for short ones, so that some of them
    always wait; the engine decodes 8 sequences at once."""
    with place.server(*FLAGS, "--max-running", str(ROWS), "--kv-tokens", "16384") as server:
        return asyncio.run(_fair(server.url, int(size["flood"]), size["seconds"]))


async def _fair(url: str, flood: int, seconds: float) -> list[Finding]:
    alone = await _shared(url, 0, FEW, seconds / 2)
    both = await _shared(url, flood, FEW, seconds)
    await idle(url, headers=of(0))
    if both.tokens[0] < 1:
        raise Unmeasured("the flood was not served at all")
    share = both.tokens[1] / sum(both.tokens)
    error = 100 * ROWS * LONG / 2 / sum(both.tokens)  # half a batch of the flood may fall to either side of the window
    return [
        Finding("share of tokens of the one beside the flood", 100 * share, "%", least=40.0, error=error),
        Finding("its requests refused or failed", both.failed[1], most=0),
        Finding("requests of the flood that failed", both.failed[0], most=0),
        Finding("its answers", len(both.spent[1]), least=1),
        Finding("its median time to an answer", 1e3 * statistics.median(both.spent[1] or [float("nan")]), "ms"),
        Finding("the same without the flood", 1e3 * statistics.median(alone.spent[1] or [float("nan")]), "ms"),
        Finding("tokens/s of the flood", both.tokens[0] / seconds),
    ]


class Shares:
    """Tokens, seconds of answers and failures of each tenant within the time that counts."""

    def __init__(self) -> None:
        self.tokens = [0, 0]
        self.failed = [0, 0]
        self.spent: tuple[list[float], list[float]] = ([], [])


async def _shared(url: str, flood: int, few: int, seconds: float) -> Shares:
    found, over = Shares(), asyncio.Event()
    start = time.perf_counter() + 1.0
    end = start + seconds

    async def client(tenant: int, number: int, tokens: int) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            kind = 1_000_000 * tenant + 1000 * number + turn
            body = generate(kind, tokens, stream=True, incremental_streaming_output=True)
            answer = await soon(ask(url, "/generate", body, headers=of(tenant)), "a tenant's request")
            found.failed[tenant] += answer.status != 200 or not answer.whole
            inside = sum(start <= at < end for at in answer.times[:-1])
            found.tokens[tenant] += round(inside * tokens / max(1, len(answer.times) - 1))
            if start <= answer.times[-1] < end:
                found.spent[tenant].append(answer.seconds)

    clients = [client(0, k, LONG) for k in range(flood)] + [client(1, k, SHORT) for k in range(few)]
    running = [asyncio.ensure_future(each) for each in clients]
    await asyncio.sleep(end - time.perf_counter())
    over.set()
    await soon(asyncio.gather(*running), "tenants' requests")
    return found


# -- what can be learned


def probed(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """`secrets` prompts of one tenant, asked for by the other, in between as many that nobody has asked for."""
    with place.server(*FLAGS, "--kv-tokens", "1048576") as server:
        return asyncio.run(_probed(server.url, int(size["secrets"]), place.seed))


def secret(number: int, seed: int) -> str:
    """About 1,700 tokens, others for each number from the first word on (short of a letter or two)."""
    rng = random.Random(f"{seed} secret {number}")
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(3, 9))) for _ in range(LENGTH))


async def _probed(url: str, secrets: int, seed: int) -> list[Finding]:
    rng = random.Random(seed)
    for number in range(-8, 0):  # warm up both
        await _probe(url, number % 2, secret(number, seed))
    for number in range(secrets):
        await _probe(url, 0, secret(number, seed))
    order = [(number, known) for number in range(secrets) for known in (True, False)]
    rng.shuffle(order)
    theirs: dict[bool, list[float]] = {True: [], False: []}
    own: dict[bool, list[float]] = {True: [], False: []}
    told = {"theirs": 0, "new": 0, "own": 0, "all": 0}
    for number, known in order:
        other = number if known else 10_000 + number
        cached, _, spent = await _probe(url, 1, secret(other, seed))
        theirs[known].append(spent)
        told["theirs" if known else "new"] += cached
        mine = number if known else 20_000 + number
        cached, prompt, spent = await _probe(url, 0, secret(mine, seed))
        own[known].append(spent)
        told["own"] += cached if known else 0
        told["all"] += prompt if known else 0
    sigma = ((2 * secrets + 1) / (12 * secrets * secrets)) ** 0.5
    area = separation(theirs[False], theirs[True])
    return [
        # a letter that its own earlier probes began with is the prober's, so new prompts have some, too
        Finding("another's prompt that is told as cached", 100 * told["theirs"] / told["all"], "%", most=1.0),
        Finding("the same of new prompts", 100 * told["new"] / told["all"], "%"),
        Finding("by times, another's prompt is told from a new one: |area - 0.5|", abs(area - 0.5), most=3 * sigma),
        Finding("the control: its own prompts, area", separation(own[False], own[True]), least=0.9),
        Finding("the control: share of its own tokens cached", told["own"] / max(1, told["all"]), least=0.95),
        Finding("median to a first token, the other's prompts", 1e3 * statistics.median(theirs[True]), "ms"),
        Finding("new ones", 1e3 * statistics.median(theirs[False]), "ms"),
        Finding("one's own", 1e3 * statistics.median(own[True]), "ms"),
        Finding("prompts", secrets),
    ]


async def _probe(url: str, tenant: int, text: str) -> tuple[int, int, float]:
    """Cached tokens, all tokens, and the seconds of an answer of one token."""
    body: dict[str, Any] = {"text": text, "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    answer: Heard = await soon(ask(url, "/generate", body, headers=of(tenant)), "a probe")
    if answer.status != 200:
        raise Unmeasured(f"a probe was answered with {answer.status}: {bytes(answer.body[:200])!r}")
    meta = answer.json()["meta_info"]
    return meta["cached_tokens"], meta["prompt_tokens"], answer.seconds


def separation(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The probability that one of `slow` exceeds one of `fast` (ties count half): 0.5 where they are alike."""
    wins = sum((a > b) + 0.5 * (a == b) for a in slow for b in fast)
    return wins / (len(slow) * len(fast))
