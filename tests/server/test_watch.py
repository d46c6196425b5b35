"""What becomes of requests, and of the engine, when the engine's process or the server's is killed or stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.frontend import ir
from ramet.runtime import ports
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.gate import GateLimits
from ramet.runtime.server.watch import Watch, processor_seconds

from ..runtime.engines import QUICK, WAIT, Ending
from .backstage import ME, TEXT, Stage, call, caller, child_staged, collect, staged, text_of

pytestmark = pytest.mark.model
LONG = 900
LIMITS = GateLimits(patience=30.0, retry_patience=60.0, stall_seconds=1.0, restart_delay=0.05)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with child_staged(LIMITS) as made:
        yield made


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is so; the stage bounds the time."""
    while not true():
        await asyncio.sleep(0.01)


async def exhausted(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        continue


def pid_of(stage: Stage) -> int:
    pid = stage.engine.process_id
    assert pid is not None
    return pid


def test_killed_under_requests(stage: Stage) -> None:
    """What had sent nothing is run again and gets the same bits; what had begun is told; nobody starts the engine."""
    service = stage.service
    want = stage.run(lambda: service.complete(call(TEXT, LONG), ME))

    async def killed() -> None:
        restarts = service.restarts
        begun = service.stream(call(TEXT, LONG), caller("s"))
        assert [await anext(begun), await anext(begun)]
        whole = [asyncio.ensure_future(service.complete(call(TEXT, LONG), caller(f"w{i}"))) for i in range(3)]
        duplex = await service.duplex(ir.Header(), caller("d"))
        await until(lambda: service.running == 5)
        await service.stats()  # all of them are in the engine
        os.kill(pid_of(stage), signal.SIGKILL)
        with pytest.raises(Failure) as caught:
            await asyncio.wait_for(exhausted(begun), WAIT)
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        assert caught.value.retry_after is not None
        events = [event async for event in duplex]
        duplex.close()
        assert isinstance(events[-1], ir.Ended) and events[-1].kind == "transport"
        answers = await asyncio.gather(*whole)
        assert {answer.prompts[0].completions[0].text for answer in answers} == {want.prompts[0].completions[0].text}
        assert (service.state(), service.restarts) == ("ready", restarts + 1)
        assert service.running == service.waiting == 0

    stage.run(killed)
    assert stage.count("request_retried") >= 3
    assert stage.count("engine_lost") == stage.count("engine_ready") == 1


def test_killed_while_idle_and_newcomers_meanwhile(stage: Stage) -> None:
    """The engine comes back without a request; a stream that began with nothing waits for it."""
    service = stage.service

    async def killed() -> None:
        restarts, pid = service.restarts, pid_of(stage)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: service.state() == "restarting")
        with pytest.raises(Failure) as caught:
            await service.stats()
        assert caught.value.status == 503
        text = text_of((await collect(service, call(TEXT, 5)))[1])
        assert text
        assert service.restarts == restarts + 1
        assert pid_of(stage) != pid

    stage.run(killed)


def test_stopped(stage: Stage) -> None:
    """An engine that stands still is replaced, and the work is done by the next."""
    service = stage.service

    async def stopped() -> None:
        pid, restarts = pid_of(stage), service.restarts
        task = asyncio.ensure_future(service.complete(call(TEXT, 600), ME))
        await until(lambda: service.running == 1)
        states = set()
        with Ending(pid) as ending:
            os.kill(pid, signal.SIGSTOP)
            while service.restarts == restarts:
                states.add(service.state())
                await asyncio.sleep(0.001)
            assert ending.within(0)
        assert "restarting" in states
        assert (await task).completion_tokens == 600

    stage.run(stopped)
    assert stage.count("engine_stalled") == 1


def test_stopped_under_a_question_that_is_given_up(stage: Stage) -> None:
    """Who asks for figures and goes away does not keep the engine from being replaced."""
    service = stage.service

    async def stopped() -> None:
        restarts = service.restarts
        os.kill(pid_of(stage), signal.SIGSTOP)
        with pytest.raises(Failure, match="did not answer"):
            await service.stats(timeout=0.01)
        await until(lambda: service.restarts == restarts + 1)
        assert (await service.stats()).kv_total > 0

    stage.run(stopped)


def test_an_engine_that_does_not_start(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts that fail are tried again; meanwhile a newcomer without patience gets a 503, one with it is served."""
    service, tries, real = stage.service, list[int](), ports._spawn
    hindered = [True]

    def refuses(*arguments: Any) -> Any:
        tries.append(1)
        if hindered[0]:
            raise OSError("no processes left")
        return real(*arguments)

    monkeypatch.setattr(ports, "_spawn", refuses)

    async def killed() -> None:
        patient = asyncio.ensure_future(service.complete(call(TEXT, 600), ME))
        await until(lambda: service.running == 1)
        os.kill(pid_of(stage), signal.SIGKILL)
        await until(lambda: service.state() == "restarting")
        with stage.limited(patience=0.05), pytest.raises(Failure) as caught:
            await service.complete(call(), ME)
        assert caught.value.status == 503
        assert caught.value.retry_after is not None
        await until(lambda: len(tries) >= 3)
        hindered[0] = False
        assert (await patient).completion_tokens == 600
        assert service.state() == "ready"

    stage.run(killed)


def test_nobody_is_let_in_once_programs_hear_of_a_loss(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is to be run again must not begin on the engine that is gone: the gate closes first."""
    service, client, order = stage.service, stage.engine._client, list[tuple[str, bool]]()
    lost, tell = service._watch.lost, client._tell_lost
    monkeypatch.setattr(service._watch, "lost", lambda reason: (order.append(("gate", client.alive)), lost(reason)))
    monkeypatch.setattr(client, "_tell_lost", lambda *told: (order.append(("program", client.alive)), tell(*told)))

    async def killed() -> None:
        patient = asyncio.ensure_future(service.complete(call(TEXT, 600), ME))
        await until(lambda: len(client._sessions) == 1)
        os.kill(pid_of(stage), signal.SIGKILL)
        assert (await patient).completion_tokens == 600

    stage.run(killed)
    assert order == [("gate", True), ("program", False)]  # nor is anybody refused before


def test_a_long_step_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the largest step seen, and an engine in a thread is waited for."""
    with staged(GateLimits(stall_seconds=0.2)) as stage:
        watch = stage.service._watch
        assert isinstance(watch, Watch)
        watch._delays.append(3.0)
        assert watch.allowed() == 60.0
        watch._delays.clear()
        released = threading.Event()
        link = stage.engine._client._link
        assert isinstance(link, ports.ThreadLink)
        real = link._port.send

        def holds(step: Any) -> None:
            assert released.wait(WAIT)
            real(step)

        async def slow() -> None:
            task = asyncio.ensure_future(stage.service.complete(call(), ME))
            await until(lambda: stage.service.state() == "stalled")
            released.set()
            assert (await task).completion_tokens == 8
            await until(lambda: stage.service.state() == "ready")

        monkeypatch.setattr(link._port, "send", holds)
        stage.run(slow)
        assert stage.count("engine_stalled") >= 1
        assert stage.service.restarts == 0


def test_processor_time_of_a_process() -> None:
    before = processor_seconds(os.getpid())
    while processor_seconds(os.getpid()) < before + 0.05:
        sum(range(10_000))
    assert processor_seconds(None) == 0.0


def test_drained() -> None:
    with staged() as stage:
        service = stage.service

        async def drains() -> None:
            short = asyncio.ensure_future(service.complete(call(TEXT, 3), ME))
            long = [asyncio.ensure_future(collect(service, call(TEXT, LONG, n=4), caller(f"l{i}"))) for i in range(2)]
            await until(lambda: service.running == 3)
            drained = asyncio.ensure_future(service.drain(1.5))
            await asyncio.sleep(0)
            assert service.state() == "draining"
            with pytest.raises(Failure) as caught:
                await service.complete(call(), ME)
            assert (caught.value.status, caught.value.headers()["Retry-After"]) == (503, "2")
            assert (await short).completion_tokens == 3
            await drained
            ends = await asyncio.gather(*long, return_exceptions=True)
            assert [end.status for end in ends if isinstance(end, Failure)] == [503, 503]
            assert service.running == 0

        stage.run(drains)


SERVER = f"""
import os, subprocess, sys, threading
import ramet as rt
engine = rt.Engine("random:tiny", **{QUICK!r})
engine.info()
stdin = engine._client._made[0].process.stdin.fileno()
other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE,
                         stdout=subprocess.DEVNULL, pass_fds=[stdin])
print(engine.process_id, other.pid, flush=True)
threading.Event().wait(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word about a parent's end is Linux's")
def test_no_orphan_when_the_server_is_killed(tmp_path: Path) -> None:
    """Not even when the engine is stopped and another process holds its standard input open."""
    hold, release = os.pipe()
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER.replace("stdin=subprocess.PIPE", f"stdin={hold}")],
        stdout=subprocess.PIPE,
        pass_fds=[hold],
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert server.stdout is not None
    engine, holder = map(int, server.stdout.readline().split())
    with Ending(engine) as ending, Ending(holder) as other:
        os.kill(engine, signal.SIGSTOP)
        server.kill()
        assert ending.within(5.0)
        assert not other.within(0)
        os.close(release)  # it reads to the end, and goes
        os.close(hold)
        assert other.within(WAIT)
    server.communicate(timeout=WAIT)
    assert list(tmp_path.iterdir()) == []
