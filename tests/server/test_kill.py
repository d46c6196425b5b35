"""The engine's process is killed again and again under mixed load: nobody hangs, nothing is cut without a word, and the
server comes back by itself."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from .serving import WAIT, Served, serving
from .sockets import DONE, Heard, ask, failed, text_of

pytestmark = pytest.mark.model
CLIENTS = 8
TOKENS = 48
LONGEST = 240.0  # seconds after which the whole is given up
CHAT = {"messages": [{"role": "user", "content": "Name a river."}], "model": "tiny", "max_tokens": TOKENS}
GREEDY = {"temperature": 0, "ignore_eos": True}
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate", {"text": "Once upon", "sampling_params": {"max_new_tokens": TOKENS, **GREEDY}, "stream": True}),
    ("/v1/chat/completions", {**CHAT, **GREEDY, "stream": True}),
    ("/v1/completions", {"prompt": "The river", "model": "tiny", "max_tokens": TOKENS, **GREEDY, "stream": True}),
    ("/generate", {"text": "Once upon", "sampling_params": {"max_new_tokens": TOKENS, **GREEDY}}),
    ("/v1/chat/completions", {**CHAT, **GREEDY}),
    ("/v1/completions", {"prompt": "The river", "model": "tiny", "max_tokens": TOKENS, **GREEDY}),
)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(in_process=False) as made:
        yield made


class Load:
    """Clients that ask without end until told to stop. `counts` what became of their requests; `events` how many pieces
    of streams have come."""

    def __init__(self, url: str, wanted: dict[int, str]) -> None:
        self.url = url
        self.wanted = wanted
        self.counts: Counter[str] = Counter()
        self.events = 0
        self.over = False
        self.beat = asyncio.Event()

    def heard(self) -> None:
        self.events += 1
        self.beat.set()

    async def client(self, seed: int) -> None:
        """Ask one thing after another."""
        rng = random.Random(seed)
        while not self.over:
            kind = rng.randrange(len(KINDS))
            path, body = KINDS[kind]
            answer = await ask(self.url, path, body, heard=self.heard)
            self.counts[judged(path, body, answer, self.wanted[kind])] += 1
            self.beat.set()

    async def until(self, events: int) -> None:
        """So many more events have come."""
        least = self.events + events
        while self.events < least:
            self.beat.clear()
            await self.beat.wait()


def judged(path: str, body: dict[str, Any], answer: Heard, wanted: str) -> str:
    """What an answer is; raises for one that may not be."""
    assert answer.whole, "the connection broke"
    if answer.status != 200:
        assert answer.status == 503, answer.body
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["message"]
        return "refused"
    if "stream" not in body:
        assert text_of_whole(path, answer) == wanted
        return "complete"
    text = text_of(path, answer.events[:-1])
    if failed(answer.events):
        assert wanted.startswith(text)
        assert DONE not in answer.events
        return "told"
    assert (text, answer.events[-1]) == (wanted, DONE)
    return "streamed"


def text_of_whole(path: str, answer: Heard) -> str:
    value = answer.json()
    if path == "/generate":
        return str(value["text"])
    (choice,) = value["choices"]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


async def back(served: Served, killed: int) -> None:
    """Wait until there is another engine and the server says so; the test bounds the time."""
    while served.client.process_id in (None, killed) or (await ask(served.url, "/ready")).status != 200:
        await asyncio.sleep(0.05)


def kill(served: Served) -> int:
    """End the engine's process by force; its id."""
    pid = served.client.process_id
    assert pid is not None, "an engine is there when the server says that it is ready"
    os.kill(pid, signal.SIGKILL)
    return pid


async def wanted(url: str) -> dict[int, str]:
    """The text of each kind of request, from an undisturbed engine."""
    found = {}
    for kind, (path, body) in enumerate(KINDS):
        plain = {name: value for name, value in body.items() if name != "stream"}
        found[kind] = text_of_whole(path, await ask(url, path, plain))
    return found


async def killed_under_load(served: Served, kills: int, seed: int) -> Counter[str]:
    """Kill the engine after a random number of events, again once it is back, and so on; then stop asking."""
    rng = random.Random(seed)
    load = Load(served.url, await wanted(served.url))
    moments = [rng.randrange(1, 120) for _ in range(kills)]
    clients = [asyncio.ensure_future(load.client(rng.getrandbits(32))) for _ in range(CLIENTS)]
    tasks = [*clients, asyncio.ensure_future(disturbed(served, load, moments))]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    load.over = True
    for each in done:
        each.result()  # a client that ended early has seen what may not be
    await asyncio.wait_for(asyncio.gather(*clients), WAIT)
    return load.counts


async def disturbed(served: Served, load: Load, moments: list[int]) -> None:
    pids = set()
    for events in moments:
        await load.until(events)
        pid = kill(served)
        pids.add(pid)
        await back(served, pid)
    await load.until(1)
    assert len(pids) == len(moments), "each was another engine"


def check(served: Served, kills: int, seed: int) -> None:
    before = served.service.restarts
    counts = asyncio.run(asyncio.wait_for(killed_under_load(served, kills, seed), LONGEST))
    assert served.service.restarts == before + kills
    assert counts["complete"] > 0
    assert counts["streamed"] > 0
    assert counts["told"] > 0


def test_killed_while_idle(served: Served):
    """Nobody needs to ask for anything: the next engine is started at once."""

    async def idle() -> Heard:
        await back(served, kill(served))
        return await ask(served.url, *KINDS[3])

    before = served.service.restarts
    answer = asyncio.run(asyncio.wait_for(idle(), WAIT))
    assert answer.status == 200
    assert served.service.restarts == before + 1


@pytest.mark.parametrize(("kills", "seed"), [(3, 1), pytest.param(10, 2, marks=pytest.mark.clients)])
def test_killed_under_mixed_load(served: Served, kills: int, seed: int):
    check(served, kills, seed)
