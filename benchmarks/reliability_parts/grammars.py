"""Grammars that cost more than they say, beside somebody's stream: in: a server. Out: findings about both.

The clients that send them are a process of their own (`python -m`, at a low priority): they stand for clients on
other machines, which take no time from the server. It is told where to send by a line on standard input, ends with it,
and prints what came of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from reliability_parts.board import Finding, Unmeasured, Violation
from reliability_parts.crowds import generate
from reliability_parts.place import Place, Server
from reliability_parts.wire import Leaving, ask, soon

HANG = 30.0  # seconds
DRAWS = 200  # of the bootstrap
NICE = 10  # of those who send bombs
SLACK = 0.1  # seconds for a request's way there and back on a machine whose cores are all busy


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


# -- who sends them


async def send(url: str, first: int, lanes: int) -> dict[str, Any]:
    """One after another, `lanes` at once, until standard input ends. Out: the longest seconds of each by name, how
    often each status came (0: cut), and the number to go on with."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)
    numbers = itertools.count(first)
    rest = (item for number in numbers for item in bombs(number).items())
    times, statuses = dict[str, float](), Counter[int]()

    async def lane() -> None:
        for name, field in rest:
            if over.is_set():
                return
            body = generate(0, 1)
            body["sampling_params"] |= field
            answer = await soon(ask(url, "/generate", body), f"bomb {name!r}", HANG)
            times[name] = max(times.get(name, 0.0), answer.seconds)
            statuses[answer.status if answer.whole else 0] += 1

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return {"times": times, "statuses": dict(statuses), "next": next(numbers)}


class Bombers:
    """What all of them have seen: `times` by bomb, `statuses`."""

    def __init__(self, url: str, lanes: int) -> None:
        self._url, self._lanes = url, lanes
        self._next = 0
        self.times: dict[str, float] = {}
        self.statuses: Counter[int] = Counter()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """They send for the time of a block."""
        pipe = asyncio.subprocess.PIPE
        paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        command = (sys.executable, "-P", "-m", "reliability_parts.grammars")
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": paths}
        )
        assert process.stdin is not None and process.stdout is not None, "they are pipes"
        try:
            process.stdin.write(json.dumps([self._url, self._next, self._lanes]).encode() + b"\n")
            await soon(process.stdout.readline(), "those who send bombs", HANG)
            yield
            process.stdin.close()
            told = json.loads(await soon(process.stdout.read(), "what came of the bombs", 2 * HANG))
        except BaseException:
            process.kill()
            raise
        finally:
            await process.wait()
        self._next = told["next"]
        for name, seconds in told["times"].items():
            self.times[name] = max(self.times.get(name, 0.0), seconds)
        self.statuses.update({int(status): count for status, count in told["statuses"].items()})


# -- who stands beside


def bombed(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """A stream of `tokens` tokens of the real model, alone and while bombs come one after another (and `at_once` at
    once), in turns, `turns` times. The engine has one core, what compiles has what is left."""
    flags = ("--threads", "1", "--context", "2048", "--kv-tokens", "8192")
    with place.server(*flags, real=True) as server:
        return asyncio.run(_bombed(server, int(size["turns"]), int(size["tokens"]), int(size["at_once"]), place))


async def _bombed(server: Server, turns: int, tokens: int, lanes: int, place: Place) -> list[Finding]:
    quiet, loud = list[list[float]](), list[list[float]]()
    bombers = Bombers(server.url, lanes)
    ordinary = generate(0, 4)
    ordinary["sampling_params"] |= {"regex": "[a-z]{1,4}"}
    # what compiles is loaded with the first
    await soon(ask(server.url, "/generate", ordinary), "an ordinary constraint")
    for turn in range(turns + 1):
        alone = await _bystander(server.url, 2 * turn, tokens)
        async with bombers.at_work():
            beside = await _bystander(server.url, 2 * turn + 1, tokens)
        if turn:  # the first turn warms up
            quiet.append(alone)
            loud.append(beside)
    worst = max(bombers.times, key=lambda name: bombers.times[name])
    place.say(f"  the slowest answer: {worst}, {bombers.times[worst]:.2f} s")
    statuses = bombers.statuses
    other = {status for status in statuses if status not in (200, 400, 503)}
    return [
        Finding(
            "longest time until a bomb was refused or compiled", max(bombers.times.values()), "s", most=2.0 + SLACK
        ),
        Finding("answers other than 200, 400, 503", sum(statuses[status] for status in other), most=0),
        *lateness(quiet, loud, tokens),
        Finding("bombs sent", sum(statuses.values()), least=1),
        Finding("of these refused", statuses[400] + statuses[503], least=1),
    ]


def lateness(quiet: Sequence[Sequence[float]], loud: Sequence[Sequence[float]], tokens: int) -> list[Finding]:
    """How much later a stream's tokens come beside bombs, by its gaps (ms) in turns without and with them. Where a
    stream of `tokens` tokens was read in so large pieces that it has less than a quarter as many gaps, the growth's
    error is unknown: the reader had no time.

    Of 15,000 gaps beside 500 bombs, the 99th percentile tells whether most bombs delay a stream, the 99.9th whether one
    kind of 24 does. The longest gap tells of the machine: it is shown, and nothing is promised of it. Standard errors
    are the bootstrap's, over turns."""
    step = statistics.median(gap for gaps in quiet for gap in gaps)
    fewest = min(map(len, [*quiet, *loud]))
    found = [Finding("fewest gaps of a stream", fewest)]
    for per_mille in (990, 999):
        name = f"the bystander's gaps, percentile {per_mille / 10:g}"
        later, error = _growth(quiet, loud, per_mille)
        error = error if fewest >= tokens // 4 else math.nan
        found += [
            Finding(f"{name}, grow by", later, "ms", most=step, error=error),
            Finding(f"{name}, without bombs", _percentile(quiet, per_mille), "ms"),
        ]
    for name, runs in (("without", quiet), ("with", loud)):
        found.append(Finding(f"longest gap {name} bombs, median of turns", statistics.median(map(max, runs)), "ms"))
    return [*found, Finding("a step", step, "ms")]


def _growth(quiet: Sequence[Sequence[float]], loud: Sequence[Sequence[float]], per_mille: int) -> tuple[float, float]:
    """By how much a percentile grows, and the standard error of that."""
    drawn, turns = random.Random(1), range(len(quiet))
    again = list[float]()
    for _ in range(DRAWS):
        chosen = drawn.choices(turns, k=len(turns))
        a, b = (_percentile([runs[turn] for turn in chosen], per_mille) for runs in (quiet, loud))
        again.append(b - a)
    error = statistics.stdev(again) if len(turns) > 1 else math.nan
    return _percentile(loud, per_mille) - _percentile(quiet, per_mille), error


def _percentile(runs: Sequence[Sequence[float]], per_mille: int) -> float:
    gaps = sorted(gap for gaps in runs for gap in gaps)
    return gaps[len(gaps) * per_mille // 1000]


async def _bystander(url: str, number: int, tokens: int) -> list[float]:
    """Milliseconds between the tokens of a stream."""
    body = generate(number, tokens, stream=True, incremental_streaming_output=True)
    answer = await soon(ask(url, "/generate", body, leaving=Leaving()), "the bystander")
    if not answer.whole:
        raise Violation("the bystander's stream was cut")
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(answer.times)]
    if not gaps:
        raise Unmeasured(f"{tokens} tokens came in one piece: no gap to compare")
    return gaps


if __name__ == "__main__":
    os.nice(NICE)
    where, first, lanes = json.loads(sys.stdin.readline())
    print("sending", flush=True)
    print(json.dumps(asyncio.run(send(where, first, lanes))))
