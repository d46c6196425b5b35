"""A long mixed load: in: minutes. Out: the slopes of memory and of open files, each with its standard error.

Slopes are least squares over means of blocks, since neighbouring samples are alike. The memory is anonymous resident
memory of the server and of its engine. Minutes bound a slope of 1 % an hour only from some hours on: a short run says
that it cannot tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.runtime.settle import LARGE
from reliability_parts.board import Finding, Violation
from reliability_parts.crowds import generate
from reliability_parts.faults import chat
from reliability_parts.grammars import bombs
from reliability_parts.place import Place, Server, descriptors, resident
from reliability_parts.wire import Leaving, ask, idle, soon

CLIENTS = 6
EVERY = 0.5  # seconds between samples
BLOCKS = 12
ROUND = 60  # requests of a client's script
GRAIN = LARGE  # bytes that a heap may keep free at its end: a smaller rise says nothing
FILL = 6000  # requests before that
SCHEMAS = 60  # and after them, those that are constrained
FIRST = 0.2  # share of the time that warms up: pools and caches fill to their bounds


@dataclass(slots=True)
class Samples:
    """What was read of one process: seconds, bytes, open files."""

    at: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)


def slope(at: Sequence[float], values: Sequence[float], blocks: int = BLOCKS) -> tuple[float, float]:
    """Least squares over block means: the slope per unit of `at`, and its standard error. nan for too few samples."""
    count = len(at) // blocks
    if count < 1:
        return math.nan, math.nan
    xs = [statistics.mean(at[k * count : (k + 1) * count]) for k in range(blocks)]
    ys = [statistics.mean(values[k * count : (k + 1) * count]) for k in range(blocks)]
    middle, level = statistics.mean(xs), statistics.mean(ys)
    spread = sum((x - middle) ** 2 for x in xs)
    rise = sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - level - rise * (x - middle)) ** 2 for x, y in zip(xs, ys, strict=True))
    return rise, math.sqrt(rest / (blocks - 2) / spread)


def soaked(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """`minutes` of streams, chats, constraints, programs, refusals and disconnects."""
    flags = ("--threads", "1", "--context", "1024", "--kv-tokens", "4096")
    with place.server(*flags) as server:
        return asyncio.run(_soaked(server, 60 * size["minutes"], place))


async def _soaked(server: Server, seconds: float, place: Place) -> list[Finding]:
    rng = random.Random(place.seed)
    counts: Counter[str] = Counter()
    over = asyncio.Event()
    await _fill(server.url, int(FILL * min(1.0, seconds / 120)))
    clients = [asyncio.ensure_future(_client(server.url, rng.getrandbits(32), over, counts)) for _ in range(CLIENTS)]
    engine = server.engine_now()
    processes = {"server": server.process.pid, "engine": engine}
    samples = {name: Samples() for name in processes}
    began = time.perf_counter()
    told = began
    while (spent := time.perf_counter() - began) < seconds:
        await asyncio.sleep(EVERY)
        if spent > FIRST * seconds:
            for name, pid in processes.items():
                with contextlib.suppress(OSError):
                    samples[name].memory.append(resident(pid))
                    samples[name].files.append(descriptors(pid))
                    samples[name].at.append(spent / 3600)
        for each in clients:
            if each.done():
                each.result()
        if time.perf_counter() - told > 60:
            told = time.perf_counter()
            sizes = ", ".join(f"{name} {resident(pid) / 2**20:.2f} MiB" for name, pid in processes.items())
            place.say(f"  {spent / 60:.0f} min, {sum(counts.values())} requests; {sizes}")
    over.set()
    await soon(asyncio.gather(*clients), "clients of the soak")
    _, figures = await idle(server.url)
    kv = figures["kv"]
    found = [each for name, sample in samples.items() for each in slopes(name, sample)]
    return [
        *found,
        Finding("slots lost", kv["total"] - kv["free"] - kv["cached"], most=0),
        Finding("engines lost", figures["restarts"], most=0),
        Finding("traces in the log", server.traces(), most=0),
        Finding("requests", sum(counts.values())),
        Finding("minutes that count", (1 - FIRST) * seconds / 60),
    ]


def slopes(name: str, samples: Samples) -> list[Finding]:
    """What is promised of a process: memory grows by less than 1 % an hour, open files by less than one."""
    rise, error = slope(samples.at, samples.memory)
    if samples.at:
        error = max(error, GRAIN / (samples.at[-1] - samples.at[0]))
    base = statistics.mean(samples.memory) if samples.memory else math.nan
    files, _ = slope(samples.at, samples.files)
    # files are counted in ones: below one over the whole time, a slope says nothing
    span = samples.at[-1] - samples.at[0] if samples.at else math.nan
    steady = abs(files) * span < 1 if samples.at else False
    return [
        Finding(f"memory of the {name}", 100 * rise / base, "% an hour", most=1.0, error=100 * error / base),
        Finding(f"its level ({name})", base / 2**20, "MiB"),
        Finding(f"open files of the {name}", statistics.mean(samples.files or [math.nan])),
        Finding(f"growth of them over the time ({name})", 0.0 if steady else files * span, most=0.0),
    ]


async def _fill(url: str, requests: int) -> None:
    """Fill what is bounded by a count (sites of calls, words, constraints, threads that wait for constraints): growth
    up to a bound is no leak."""
    numbers, schemas = iter(range(requests)), iter(range(SCHEMAS))

    async def client() -> None:
        for number in numbers:
            await soon(ask(url, "/generate", generate(number, 1)), "a request of the warming up")

    async def constrained() -> None:
        for number in schemas:
            await soon(ask(url, *_one("schema", random.Random(number))[:2]), "a schema")

    for kind in (client, constrained):
        await asyncio.gather(*(kind() for _ in range(CLIENTS)))


async def _client(url: str, seed: int, over: asyncio.Event, counts: Counter[str]) -> None:
    """The same `ROUND` requests of all kinds again and again: what is new each time would fill what is bounded."""
    while not over.is_set():
        rng = random.Random(seed)
        for _ in range(ROUND):
            if not over.is_set():
                await _ask(url, rng, counts)


async def _ask(url: str, rng: random.Random, counts: Counter[str]) -> None:
    kind = rng.choice(("stream", "leave", "whole", "chat", "schema", "program", "wrong", "bomb", "fork"))
    path, body, leaving = _one(kind, rng)
    answer = await soon(ask(url, path, body, leaving=leaving), f"a request of the soak ({kind})")
    counts[kind] += 1
    if answer.left:
        return
    if not answer.whole or answer.status >= 500:
        raise Violation(f"{kind}: answered {answer.status}, whole: {answer.whole}, {bytes(answer.body[:200])!r}")


def _one(kind: str, rng: random.Random) -> tuple[str, dict[str, Any] | bytes, Leaving | None]:
    number, tokens = rng.randrange(500), rng.randrange(1, 60)
    body = generate(number, tokens, rng.randrange(2, 60))
    if kind in ("stream", "leave"):
        body |= {"stream": True}
    if kind == "schema":
        schema = {"type": "object", "properties": {f"p{number % 40}": {"type": "integer"}, "q": {"enum": ["a", "b"]}}}
        body["sampling_params"] |= {"json_schema": schema, "ignore_eos": False}
    if kind == "fork":
        body["sampling_params"] |= {"n": 3}
    if kind == "bomb":
        body["sampling_params"] |= {
            "regex": rng.choice([each for each in bombs(0).values() if "regex" in each])["regex"]
        }
    if kind == "chat":
        return "/v1/chat/completions", chat(number, tokens, stream=rng.random() < 0.5), None
    if kind == "program":
        return "/v1/programs", _program(number, tokens), None
    if kind == "wrong":
        return "/generate", rng.choice((b"{", b'{"text": 5}', b"[]", b'{"text":"x","n":-1}')), None
    leaving = Leaving(after=rng.randrange(1, 20), reset=rng.random() < 0.5) if kind == "leave" else None
    return "/generate", body, leaving


def _program(number: int, tokens: int) -> dict[str, Any]:
    """Two branches of one text."""
    sampling = {"max_tokens": tokens, "ignore_eos": True}
    ops = [
        {"type": "text", "id": "0.0", "seq": "0", "parts": [f"Tale {number} begins here"]},
        {"type": "fork", "id": "0.1", "seq": "0", "into": ["0.1.b0", "0.1.b1"]},
        *({"type": "gen", "id": f"0.1.b{k}.0", "seq": f"0.1.b{k}", "var": "x", "sampling": sampling} for k in range(2)),
    ]
    return {"version": 1, "header": {"name": "soak"}, "ops": ops}
