"""200 streams at once, half of which go away: the memory comes back, the rest are right to the token."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ramet.frontend import ir
from ramet.frontend.backends.engine import Engine
from ramet.runtime.text import Tokenizer

from .serving import WAIT, Served, serving
from .sockets import DONE, Heard, ask, text_of

pytestmark = pytest.mark.model
STREAMS = 200
STAY, LEAVE = 24, 900  # tokens that those ask for who stay, and who leave
TRIES = 100  # questions, a few milliseconds each, until the memory must be back
PATHS = ("/generate", "/v1/completions")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"kv_tokens": 16_384}, in_process=False) as made:
        yield made


def prompt(i: int) -> str:
    return f"Story {i}. Once upon a time"


def body(i: int, tokens: int) -> dict[str, Any]:
    """Stream `i`: sampled, by a seed of its own."""
    shared = {"temperature": 1.0, "ignore_eos": True}
    if PATHS[i // 2 % 2] == "/generate":
        sampling = {"max_new_tokens": tokens, "sampling_seed": i, **shared}
        return {"text": prompt(i), "sampling_params": sampling, "stream": True}
    return {"model": "tiny", "prompt": prompt(i), "max_tokens": tokens, "seed": i, "stream": True, **shared}


async def storm(url: str) -> list[Heard]:
    """All at once; every second one leaves after a few events."""
    rng = random.Random(3)

    async def one(i: int, events: int) -> Heard:
        path = PATHS[i // 2 % 2]
        if i % 2:
            return await ask(url, path, body(i, LEAVE), leave_after=events)
        return await ask(url, path, body(i, STAY))

    return await asyncio.gather(*(one(i, rng.randrange(1, 6)) for i in range(STREAMS)))


async def quiet(url: str) -> dict[str, Any]:
    """The server's figures once nothing runs any more; bounded in tries."""
    info: dict[str, Any] = {}
    for _ in range(TRIES):
        info = (await ask(url, "/server_info")).json()
        if info["programs"] == 0 and info["waiting"] == 0 and info["kv"]["used"] == 0:
            return info
    raise AssertionError(f"after {TRIES} questions: {info}")


def offline(engine: Engine, i: int) -> tuple[threading.Event, list[ir.Event]]:
    """The same program without a server."""
    over, events = threading.Event(), list[ir.Event]()

    def deliver(event: ir.Event) -> None:
        events.append(event)
        if isinstance(event, ir.Ended):
            over.set()

    sampling = ir.Sampling(temperature=1.0, max_tokens=STAY, seed=i, ignore_eos=True)
    session = engine.open(ir.Header(), deliver)
    text = ir.Text(id="0.0", seq="0", parts=(prompt(i),))
    session.send([text, ir.Gen(id="0.1", seq="0", var="x", sampling=sampling)])
    session.end()
    return over, events


def test_half_of_200_streams_leave(served: Served):
    before = asyncio.run(quiet(served.url))
    heard = asyncio.run(asyncio.wait_for(storm(served.url), WAIT))
    after = asyncio.run(quiet(served.url))
    kv = after["kv"]
    assert kv["free"] + kv["cached"] == kv["total"]
    assert after["restarts"] == 0
    made = after["generated_tokens"] - before["generated_tokens"]
    assert made < STREAMS // 2 * (STAY + LEAVE // 2), "those who left were stopped, and not at their end"

    assert {each.status for each in heard} == {200}
    stayed = {i: each for i, each in enumerate(heard) if i % 2 == 0}
    assert all(each.whole and each.events[-1] == DONE for each in stayed.values())
    want = {i: offline(served.offline(), i) for i in stayed}
    for i, (over, events) in want.items():
        assert over.wait(WAIT)
        (finished,) = [event for event in events if isinstance(event, ir.Finished)]
        assert text_of(PATHS[i // 2 % 2], stayed[i].events) == finished.value, i


def test_a_long_prompt_is_tokenised_beside_the_loop(served: Served, monkeypatch: pytest.MonkeyPatch):
    """While one prompt is being tokenised, and however long that takes, another stream runs to its end."""
    entered, released = threading.Event(), threading.Event()
    encode = Tokenizer.encode

    def held(self: Tokenizer, text: str, **options: Any) -> list[int]:
        if len(text) > 10_000:
            entered.set()
            assert released.wait(WAIT)
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", held)

    async def both() -> tuple[Heard, Heard]:
        long = {"text": "river " * 2500, "sampling_params": {"max_new_tokens": 1}}
        slow = asyncio.ensure_future(ask(served.url, "/generate", long))
        assert await asyncio.to_thread(entered.wait, WAIT)
        quick = await ask(served.url, "/generate", body(0, STAY))
        assert not slow.done()
        released.set()
        return quick, await slow

    quick, slow = asyncio.run(asyncio.wait_for(both(), WAIT))
    assert quick.events[-1] == DONE
    assert slow.status == 400
    assert slow.json()["error"]["code"] == "context_length_exceeded"
