"""What is done to processes: in: a server under mixed load. Out: findings about kill -9, SIGSTOP and SIGTERM.

Every client's answer is judged: right and whole, refused with a time to come again, or a stream that was told of its
end by an error event. Anything else is a `Violation`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from reliability_parts.board import Finding, Violation
from reliability_parts.crowds import alone, generate, streamed, text_of
from reliability_parts.place import Place, Server, alive
from reliability_parts.wire import DONE, PATIENCE, Heard, ask, info, soon

CLIENTS = 8
TOKENS = 400  # of a request, so that a kill finds many of them in the middle
KINDS = 12
FLAGS = ("--threads", "1", "--context", "2048", "--kv-tokens", "16384")


def chat(kind: int, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A body for /v1/chat/completions."""
    return {
        "model": "default",
        "messages": [{"role": "user", "content": f"Name river {kind}."}],
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": kind,
        "ignore_eos": True,
        "stream": stream,
    }


class Load:
    """Clients that ask without end until told to stop. `counts`: what became of their requests; `events`: pieces of
    streams so far."""

    def __init__(self, url: str, tokens: int) -> None:
        self.url = url
        self.tokens = tokens
        self.counts: Counter[str] = Counter()
        self.events = 0
        self.over = False
        self.beat = asyncio.Event()
        self.wanted: dict[tuple[str, int], str] = {}

    async def learn(self) -> None:
        """The text of each request, from an undisturbed engine."""
        for kind in range(KINDS):
            self.wanted["/generate", kind] = await alone(self.url, generate(kind, self.tokens))
            answer = await soon(ask(self.url, "/v1/chat/completions", chat(kind, self.tokens, stream=False)), "a chat")
            self.wanted["/v1/chat/completions", kind] = answer.json()["choices"][0]["message"]["content"]

    def _heard(self) -> None:
        self.events += 1
        self.beat.set()

    async def client(self, seed: int) -> None:
        """Ask one thing after another."""
        rng = random.Random(seed)
        while not self.over:
            kind, stream = rng.randrange(KINDS), rng.random() < 0.6
            path = rng.choice(("/generate", "/v1/chat/completions"))
            body = streamed if stream else generate
            content = body(kind, self.tokens) if path == "/generate" else chat(kind, self.tokens, stream=stream)
            answer = await soon(ask(self.url, path, content, heard=self._heard), f"a client of {path}")
            self.counts[judged(path, answer, self.wanted[path, kind], stream=stream)] += 1
            self.beat.set()
            if answer.status == 503:  # a client waits before it comes again, though not as long as it is told to
                await asyncio.sleep(0.1)

    async def until(self, events: int) -> None:
        """So many more pieces have come."""
        least = self.events + events
        while self.events < least:
            self.beat.clear()
            await self.beat.wait()


def judged(path: str, answer: Heard, wanted: str, *, stream: bool) -> str:
    """What an answer is: "refused", "complete", "told". Raises `Violation` for one that may not be."""
    if not answer.whole:
        raise Violation(f"{path}: the connection was cut after {len(answer.events)} events, status {answer.status}")
    if answer.status == 503:
        if answer.retry_after() < 1:
            raise Violation(f"{path}: 503 without Retry-After")
        return "refused"
    if answer.status != 200:
        raise Violation(f"{path}: answered {answer.status}: {bytes(answer.body[:200])!r}")
    if not stream:
        value = answer.json()
        text = value["text"] if path == "/generate" else value["choices"][0]["message"]["content"]
        if text != wanted:
            raise Violation(f"{path}: another text than that of an undisturbed engine")
        return "complete"
    told = answer.told()
    text = pieces(path, answer.events[:-1])
    if told and wanted.startswith(text):
        return "told"
    if told or text != wanted or answer.events[-1:] != [DONE]:
        raise Violation(
            f"{path}: a stream ended without [DONE] or an error, or with another text: {answer.events[-1:]}"
        )
    return "complete"


def pieces(path: str, events: list[str]) -> str:
    """The text of a stream."""
    if path == "/generate":
        return text_of(Heard(events=events))
    values = [json.loads(event) for event in events if event != DONE]
    return "".join(value["choices"][0]["delta"].get("content") or "" for value in values if value.get("choices"))


async def under_load(server: Server, tokens: int, work: Callable[[Load], Any], seed: int, limit: float) -> Load:
    """Do `work` while clients ask; then let them finish. Raises the first thing that may not be."""
    load = Load(server.url, tokens)
    await load.learn()
    rng = random.Random(seed)
    clients = [asyncio.ensure_future(load.client(rng.getrandbits(32))) for _ in range(CLIENTS)]
    main = asyncio.ensure_future(work(load))
    done, _ = await asyncio.wait([*clients, main], return_when=asyncio.FIRST_COMPLETED, timeout=limit)
    load.over = True
    try:
        if not done:
            raise Violation(f"nothing came of it within {limit:g} s")
        for each in done:
            each.result()
        await soon(asyncio.gather(*clients), "clients")
    finally:
        for task in (*clients, main):
            task.cancel()
        await asyncio.gather(*clients, main, return_exceptions=True)
    return load


async def back(server: Server, gone: int) -> float:
    """Wait until there is another engine, the server says so and generates; the seconds of that."""
    began = time.perf_counter()
    while True:
        server.check_alive()
        if (await soon(ask(server.url, "/ready"), "/ready", 30.0)).status == 200:
            pid = server.engine()
            if pid not in (None, gone):
                answer = await soon(ask(server.url, "/generate", generate(0, 1)), "the first request after a restart")
                if answer.status == 200:
                    return time.perf_counter() - began
        if time.perf_counter() - began > PATIENCE:
            raise Violation(f"the server was not back {PATIENCE:g} s after its engine was lost")
        await asyncio.sleep(0.02)


# -- kill -9


def killed(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """`kills` times at a random moment of the load, in turn with `real` times on the real model."""
    found = list[Finding]()
    for real, kills in ((False, int(size["kills"])), (True, int(size.get("real", 0)))):
        if kills:
            with place.server(*FLAGS, real=real) as server:
                found += asyncio.run(_killed(server, kills, place, "on the real model, " if real else ""))
    return found


async def _killed(server: Server, kills: int, place: Place, of: str) -> list[Finding]:
    rng = random.Random(place.seed)
    over, loads = list[float](), list[float]()
    pids = set[int]()

    async def work(load: Load) -> None:
        for count in range(kills):
            await load.until(rng.randrange(1, 150))
            pid = server.engine_now()
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
            seconds = await back(server, pid)
            loads.append((await info(server.url))["load_seconds"])
            over.append(seconds - loads[-1])
            if (count + 1) % 10 == 0:
                place.say(f"  {count + 1} kills, the last back after {seconds:.2f} s")

    load = await under_load(server, TOKENS, work, place.seed, 20.0 + 12.0 * kills)
    restarts = (await info(server.url))["restarts"]
    return [
        Finding(f"{of}kills that were survived", len(pids), least=kills),
        Finding(f"{of}longest time to the first answer beyond the model's load", max(over), "s", most=2.0),
        Finding(f"{of}median of it", statistics.median(over), "s"),
        Finding(f"{of}load of the model", statistics.median(loads), "s"),
        Finding(f"{of}engines that were started again", restarts, least=kills, most=kills),
        Finding(f"{of}answers complete and right", load.counts["complete"], least=1),
        Finding(f"{of}streams that were told", load.counts["told"]),
        Finding(f"{of}503 with Retry-After", load.counts["refused"]),
    ]


# -- SIGSTOP


def stopped(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """The engine stands still, `times` times under load: `/ready` must say so, and another must take its place."""
    with place.server(*FLAGS) as server:
        return asyncio.run(_stopped(server, int(size["times"]), place))


async def _stopped(server: Server, times: int, place: Place) -> list[Finding]:
    noticed, replaced = list[float](), list[float]()
    rng = random.Random(place.seed)

    async def work(load: Load) -> None:
        for _ in range(times):
            await load.until(rng.randrange(1, 150))
            pid = server.engine_now()
            os.kill(pid, signal.SIGSTOP)
            began = time.perf_counter()
            try:
                while (await soon(ask(server.url, "/ready"), "/ready", 30.0)).status == 200 and server.engine() == pid:
                    if time.perf_counter() - began > PATIENCE:
                        raise Violation(f"an engine that stands still was not noticed within {PATIENCE:g} s")
                    await asyncio.sleep(0.05)
                noticed.append(time.perf_counter() - began)
                place.say(f"  noticed after {noticed[-1]:.1f} s")
                replaced.append(await back(server, pid))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    load = await under_load(server, TOKENS, work, place.seed, 60.0 + 60.0 * times)
    return [
        Finding("longest time until /ready said so", max(noticed), "s", most=15.0),
        Finding("replaced, and answering, after another", max(replaced), "s", most=15.0),
        Finding("times", len(noticed), least=times),
        Finding("answers complete and right", load.counts["complete"], least=1),
        Finding("streams that were told", load.counts["told"]),
        Finding("503 with Retry-After", load.counts["refused"]),
    ]


# -- SIGTERM


def drained(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """`clients` are under way when SIGTERM comes, newcomers ask until nobody listens; then once more with a drain limit
    that is too short for what runs."""
    limit = 30.0
    with place.server(*FLAGS, "--drain-timeout", str(limit)) as server:
        found = asyncio.run(_drained(server, int(size["clients"]), int(size["tokens"]), limit))
    with place.server(*FLAGS, "--drain-timeout", "0.2") as server:
        found += asyncio.run(_cut(server))
    return found


async def _drained(server: Server, clients: int, tokens: int, limit: float) -> list[Finding]:
    url = server.url
    wanted = {kind: await alone(url, generate(kind, tokens)) for kind in range(KINDS)}
    begun = asyncio.Event()
    running = []
    for i in range(clients):
        body = (streamed if i % 2 else generate)(i % KINDS, tokens)
        running.append(asyncio.ensure_future(ask(url, "/generate", body, heard=begun.set)))
    await soon(begun.wait(), "the first event")
    while (await info(url))["programs"] < clients and not any(task.done() for task in running):
        await asyncio.sleep(0.005)
    server.family()
    server.process.send_signal(signal.SIGTERM)
    began = time.perf_counter()
    newcomers: Counter[int] = Counter()
    silent = 0
    while server.process.poll() is None:
        answer = await ask(url, "/generate", generate(0, 1))
        newcomers[answer.status] += 1
        silent += answer.status == 503 and answer.retry_after() < 1
        if time.perf_counter() - began > limit + 30:
            raise Violation(f"the server did not end within {limit + 30:g} s of SIGTERM")
        await asyncio.sleep(0.01)
    seconds = time.perf_counter() - began
    answers = await soon(asyncio.gather(*running), "requests under way at SIGTERM")
    kinds = Counter(
        judged("/generate", answer, wanted[i % KINDS], stream=i % 2 == 1) for i, answer in enumerate(answers)
    )
    await _gone(server)
    late = sum(newcomers.values()) - newcomers[503] - newcomers[0]
    return [
        Finding("under way: finished whole and right", kinds["complete"] / clients, least=1.0),
        Finding("newcomers told 503", newcomers[503], least=1),
        Finding("of these without Retry-After", silent, most=0),
        Finding("newcomers after the first 503 answered otherwise", max(0, late - 1), most=0),  # one may come before it
        Finding("exit status", server.process.returncode, most=0, least=0),
        Finding("processes left", len(server.orphans()), most=0),
        Finding("ended after", seconds, "s", most=limit + 5.0),
    ]


async def _cut(server: Server) -> list[Finding]:
    begun = asyncio.Event()
    body = streamed(1, 1900)
    body["sampling_params"]["n"] = 6  # long enough not to be done in a fifth of a second
    running = asyncio.ensure_future(ask(server.url, "/generate", body, heard=begun.set))
    await soon(begun.wait(), "the first event")
    server.family()
    server.process.send_signal(signal.SIGTERM)
    began = time.perf_counter()
    answer = await soon(running, "a stream that outlives the drain limit")
    if not answer.whole or not (answer.told() or answer.events[-1:] == [DONE]):
        raise Violation("a stream that outlived the drain limit was cut without a word")
    while server.process.poll() is None and time.perf_counter() - began < 30:
        await asyncio.sleep(0.01)
    if server.process.returncode is None:
        raise Violation("the server did not end after its drain limit")
    await _gone(server)
    return [
        Finding("with a drain limit of 0.2 s: streams told", int(answer.told()), least=1),
        Finding("exit status then", server.process.returncode, most=0, least=0),
        Finding("ended then after", time.perf_counter() - began, "s", most=8.0),
        Finding("processes left then", len(server.orphans()), most=0),
    ]


async def _gone(server: Server) -> None:
    """Children end with their parent, a moment after it."""
    for _ in range(100):
        if not any(alive(pid) for pid in server.orphans()):
            return
        await asyncio.sleep(0.02)
