"""Who waits uses nothing: no processor time in the engine's process and in the user's, no thread per program."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine

from .engines import QUICK, WAIT, assert_clean, short_program

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("random:tiny", **QUICK) as started:
        yield started


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def idle_second() -> None:
    select.select([], [], [], 1.0)


def test_an_idle_engine_uses_no_processor(engine: Engine) -> None:
    short_program.using(backend=engine)().result(WAIT)
    assert engine.process_id is not None
    ticks, own = cpu_ticks(engine.process_id), time.process_time()
    idle_second()
    assert cpu_ticks(engine.process_id) == ticks
    assert time.process_time() - own < 0.05


def test_a_program_that_waits_for_a_host_call_uses_no_processor(engine: Engine) -> None:
    called, go = threading.Event(), threading.Event()

    def tool() -> str:
        called.set()
        go.wait(WAIT)
        return " and then"

    @rt.function
    def waits(s: rt.State) -> str:
        s += "Once upon a time"
        s.gen(max_tokens=3, ignore_eos=True)
        s.sync()
        s += s.call(tool)
        return s.gen(max_tokens=3, ignore_eos=True).get()

    run = waits.using(backend=engine)()
    assert called.wait(WAIT)
    assert engine.process_id is not None
    ticks, own = cpu_ticks(engine.process_id), time.process_time()
    idle_second()
    assert cpu_ticks(engine.process_id) == ticks
    assert time.process_time() - own < 0.05
    go.set()
    run.result(WAIT)
    assert_clean(engine)


def test_threads_do_not_grow_with_programs(engine: Engine) -> None:
    @rt.function
    async def asynchronous(s: rt.State, i: int) -> str:
        s += f"Number {i}"
        return await s.gen(max_tokens=1)

    @rt.function
    def forks(s: rt.State, n: int) -> int:
        s += "Once"
        branches = s.fork(n)
        branches += rt.gen("x", max_tokens=1)
        most = threading.active_count()
        branches.gather("x")
        return max(most, threading.active_count())

    asynchronous.using(backend=engine)(0).result(WAIT)
    before = threading.active_count()
    runs = [asynchronous.using(backend=engine)(i) for i in range(100)]
    assert threading.active_count() <= before
    for run in runs:
        run.result(WAIT)
    assert forks.using(backend=engine)(300).result(WAIT) <= before + 1
    assert_clean(engine)
