"""Clients that mean harm, or write it by mistake: in: a server. Out: findings about nonsense over HTTP, and about
grammars that cost more than they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from reliability_parts.board import Finding, Unmeasured, Violation
from reliability_parts.crowds import generate
from reliability_parts.nonsense import Nonsense
from reliability_parts.place import Place, Server
from reliability_parts.wire import BROKEN, Heard, Leaving, Line, ask, idle, soon

LANES = 8  # connections that send nonsense at once
HANG = 30.0  # seconds
TRACE = (b"Traceback", b'File "', b"site-packages")


# -- nonsense


def fuzzed(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """`requests` of them, one in twenty no HTTP."""
    flags = ("--threads", "1", "--context", "128", "--kv-tokens", "4096")
    with place.server(*flags, "--header-timeout", "2", "--body-timeout", "2") as server:
        engine = server.engine_now()
        found = asyncio.run(_fuzzed(server, int(size["requests"]), place))
        return [
            *found,
            Finding("engines lost", int(server.engine() != engine), most=0),
            Finding("traces in the server's log", server.traces(), most=0),
        ]


class Answers:
    """What came of nonsense: `statuses`; `bad`: the first few that may not be, in words."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.bad: list[str] = []
        self.errors = self.traces = self.hangs = self.cut = 0

    def add(self, answer: Heard, name: str, sent: bytes) -> None:
        """Judge one answer: no 5xx (but 504 for who set a time limit), no trace."""
        self.statuses[answer.status] += 1
        late = answer.status == 504 and (b'"timeout"' in sent or b"X-Request-Timeout" in sent)
        wrong = (answer.status >= 500 and not late) or (answer.status == 200 and not answer.whole)
        trace = any(word in answer.body for word in TRACE) and not any(word in sent for word in TRACE)
        self.errors += wrong
        self.traces += trace
        if (wrong or trace) and len(self.bad) < 5:
            self.bad.append(f"{name}: {answer.status} {bytes(answer.body[:160])!r} to {sent[:160]!r}")


async def _fuzzed(server: Server, requests: int, place: Place) -> list[Finding]:
    api = (await ask(server.url, "/openapi.json")).json()
    nonsense = Nonsense(api, urlsplit(server.url).netloc, place.seed)
    answers, numbers = Answers(), iter(range(requests))
    began = time.perf_counter()

    async def lane() -> None:
        line = Line(server.url)
        for number in numbers:
            if number % 20 == 19:
                await _raw(server.url, number, nonsense.raw(number), answers)
                continue
            sent = nonsense.request(number)
            await _framed(line, number, sent, answers)
            if (number + 1) % 5000 == 0:
                place.say(f"  {number + 1} requests, {time.perf_counter() - began:.0f} s")
        line.close()

    await asyncio.gather(*(lane() for _ in range(LANES)))
    server.check_alive()
    _, figures = await idle(server.url)
    good = await soon(ask(server.url, "/generate", generate(0, 4)), "a sane request afterwards")
    for each in answers.bad:
        place.say(f"  {each}")
    kv = figures["kv"]
    return [
        Finding("requests", requests),
        Finding("5xx", answers.errors, most=0),
        Finding("hangs", answers.hangs, most=0),
        Finding("traces in answers", answers.traces, most=0),
        Finding("requests without any answer", answers.cut, most=0),
        Finding("a sane request afterwards, status", good.status, least=200, most=200),
        Finding("slots lost", kv["total"] - kv["free"] - kv["cached"], most=0),
        Finding("answered 2xx", sum(n for status, n in answers.statuses.items() if 200 <= status < 300)),
        Finding("answered 4xx", sum(n for status, n in answers.statuses.items() if 400 <= status < 500)),
    ]


async def _framed(line: Line, number: int, sent: bytes, answers: Answers) -> None:
    if sent.startswith((b"HEAD ", b"TRACE ")):  # their answers have no body, whatever their headers say
        await _raw(f"http://{line.host}", number, sent, answers)
        return
    for attempt in (0, 1):
        try:
            answers.add(await asyncio.wait_for(line.send(sent), HANG), f"request {number}", sent)
            return
        except TimeoutError:
            line.close()
            answers.hangs += 1
            answers.bad.append(f"request {number} hangs: {sent[:200]!r}")
            return
        except BROKEN:  # an idle connection may be closed just when the next request is sent: one more try
            if attempt:
                answers.cut += 1
                answers.bad.append(f"request {number}: no answer to {sent[:200]!r}")


async def _raw(url: str, number: int, sent: bytes, answers: Answers) -> None:
    """Send, say that there is no more, and read until the server closes. No answer at all is one, too."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    data = b""
    try:
        async with asyncio.timeout(HANG):
            with contextlib.suppress(OSError):
                writer.write(sent)
                await writer.drain()
                writer.write_eof()
                while part := await reader.read(1 << 16):
                    data += part
    except TimeoutError:
        answers.hangs += 1
        answers.bad.append(f"raw {number} hangs: {sent[:200]!r}")
    finally:
        writer.close()
    words = data[:64].split(b" ", 2)
    if data.startswith(b"HTTP/1.1 ") and words[1][:3].isdigit():
        answers.add(Heard(int(words[1][:3]), body=bytearray(data), whole=True), f"raw {number}", sent)


# -- grammars


def _deep(depth: int, name: str) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {name: value}}
    return value


def _doubling(levels: int, name: str) -> dict[str, Any]:
    parts = {
        f"{name}{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/{name}{i + 1}"}] * 2, "items": False}
        for i in range(levels)
    }
    return {"$ref": f"#/$defs/{name}0", "$defs": {**parts, f"{name}{levels}": {"type": "null"}}}


def _lists(number: int) -> dict[str, Any]:
    items = [{"type": "string", "pattern": f"^(a|b){{{number},{number + i}}}$"} for i in range(1, 600)]
    return {"anyOf": [{"type": "array", "items": item} for item in items]}


def _products(name: str) -> dict[str, Any]:
    return {
        "allOf": [{"anyOf": [{"type": "object", "required": [f"{name}{j}{i}"]} for i in range(20)]} for j in range(6)]
    }


def bombs(number: int) -> dict[str, dict[str, Any]]:
    """Constraints, small as requests and costly (or endless) where nothing bounds them: name and the field that has it;
    others for each number, so that no answer is remembered. The words in a row are of CVE-2026-25048's class; the rest
    are those of the tests of R4."""
    x = "bcdefghijklmnopqrstuvwxyz"[number % 25]
    wide = {"type": "object", "properties": {f"{x}{i}": {"type": "string"} for i in range(1500)}}
    found: dict[str, dict[str, Any]] = {
        "words in a row": {"regex": rf"{x}(\w{{1,50}}\s){{1,50}}"},
        "ambiguous words": {"regex": rf"{x}(\w+\s*)+"},
        "nested plus": {"regex": f"({x}+{x}+)+y"},
        "repetitions of repetitions": {"regex": f"({x}{{1,1000}}){{1,1000}}"},
        "wide repetition": {"regex": f"({x}{{1,100}}){{1,100}}"},
        "many states": {"regex": f"(.*{x}.{{12}})"},
        "parentheses": {"regex": "(" * 20_000 + x + ")" * 20_000},
        "6,000 alternatives": {"regex": "|".join(f"{x}ord{i}" for i in range(6000))},
        "one long repetition": {"regex": f"{x}{{1,1000000}}"},
        "ambiguous grammar": {"ebnf": f'root ::= root root root | root root | "{x}" | ""'},
        "left recursion": {
            "ebnf": f"root ::= {x}\n{x} ::= z\nz ::= {x} | " + " | ".join(f'"{i}"' for i in range(3000))
        },
        "long text": {"json_schema": {"type": "string", "minLength": 5000 + number, "maxLength": 9000}},
        "long list": {"json_schema": {"type": "array", "minItems": 1000 + number, "maxItems": 5000}},
        "1,500 properties": {"json_schema": wide},
        "a pattern in a schema": {"json_schema": {"type": "string", "pattern": rf"^{x}(\w{{1,50}}\s){{1,50}}$"}},
        "doubling references": {"json_schema": _doubling(40, x)},
        "products": {"json_schema": _products(x)},
        "deep": {"json_schema": _deep(100, x)},
        "20,000 values": {"json_schema": {"enum": list(range(number, 20_000 + number))}},
        "loop of references": {"json_schema": {"$ref": f"#/$defs/{x}", "$defs": {x: {"$ref": f"#/$defs/{x}"}}}},
    }
    found |= {f"599 lists of texts, {i}": {"json_schema": _lists(4 * number + i)} for i in range(1, 5)}
    return found


def bombed(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """A stream of `tokens` tokens of the real model, alone and while bombs come one after another (and `at_once` at
    once), in turns, `turns` times. The engine has one core, what compiles has what is left."""
    flags = ("--threads", "1", "--context", "2048", "--kv-tokens", "8192")
    with place.server(*flags, real=True) as server:
        return asyncio.run(_bombed(server, int(size["turns"]), int(size["tokens"]), int(size["at_once"]), place))


async def _bombed(server: Server, turns: int, tokens: int, lanes: int, place: Place) -> list[Finding]:
    quiet, loud, times = list[list[float]](), list[list[float]](), dict[str, float]()
    statuses: Counter[int] = Counter()
    numbers = itertools.count()
    rest = (item for number in itertools.count() for item in bombs(number).items())
    ordinary = generate(0, 4)
    ordinary["sampling_params"] |= {"regex": "[a-z]{1,4}"}
    await soon(
        ask(server.url, "/generate", ordinary), "an ordinary constraint"
    )  # what compiles is loaded with the first
    for turn in range(turns + 1):
        for beside in (False, True):
            sent = rest if beside else iter(())
            gaps = await _bystander(server.url, next(numbers), tokens, sent, lanes, times, statuses)
            if turn:  # the first turn warms up
                (loud if beside else quiet).append(gaps)
    step = statistics.median(gap for gaps in quiet for gap in gaps)
    alone, both = ([max(gaps) for gaps in runs] for runs in (quiet, loud))
    later = [b - a for a, b in zip(alone, both, strict=True)]
    error = statistics.stdev(later) / len(later) ** 0.5 if len(later) > 1 else math.nan
    worst = max(times, key=lambda name: times[name])
    place.say(f"  the slowest answer: {worst}, {times[worst]:.2f} s")
    other = {status for status in statuses if status not in (200, 400, 503)}
    return [
        Finding("longest time until a bomb was refused or compiled", max(times.values()), "s", most=2.0 + SLACK),
        Finding("answers other than 200, 400, 503", sum(statuses[status] for status in other), most=0),
        Finding("the bystander's longest gap grows by", statistics.mean(later), "ms", most=step, error=error),
        Finding("longest gap without bombs, mean over turns", statistics.mean(alone), "ms"),
        Finding("longest gap with them", statistics.mean(both), "ms"),
        Finding("a step", step, "ms"),
        Finding("bombs sent", sum(statuses.values()), least=1),
        Finding("of these refused", statuses[400] + statuses[503], least=1),
    ]


SLACK = 0.1  # seconds for a request's way there and back on a machine whose cores are all busy


async def _bystander(
    url: str,
    number: int,
    tokens: int,
    rest: Iterator[tuple[str, dict[str, Any]]],
    lanes: int,
    times: dict[str, float],
    statuses: Counter[int],
) -> list[float]:
    """Milliseconds between the tokens of a stream, while `lanes` clients send one bomb after another of `rest`."""
    over = asyncio.Event()

    async def bomber() -> None:
        for name, field in rest:
            if over.is_set():
                return
            body = generate(0, 1)
            body["sampling_params"] |= field
            answer = await soon(ask(url, "/generate", body), f"bomb {name!r}", HANG)
            times[name] = max(times.get(name, 0.0), answer.seconds)
            statuses[answer.status if answer.whole else 0] += 1

    body = generate(number, tokens, stream=True, incremental_streaming_output=True)
    bombers = [asyncio.ensure_future(bomber()) for _ in range(lanes)]
    answer = await soon(ask(url, "/generate", body, leaving=Leaving()), "the bystander")
    over.set()
    await asyncio.gather(*bombers)
    if not answer.whole:
        raise Violation("the bystander's stream was cut")
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(answer.times)]
    if len(gaps) < tokens // 4:
        raise Unmeasured(f"{tokens} tokens came in {len(gaps)} pieces: too few gaps to compare")
    return gaps
