"""What a step costs beside its forward. In: a native runner. Out: milliseconds of the loop's CPU time for each step.

A real `EngineCore` decodes one sequence, with orders and news over the sockets of a real engine process; what is left
out is the one C call of the forward. CPU time of the thread and not wall time: what other processes take does not
count, nor does waiting for the forward's other threads.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from cpu_parts.report import Report
from cpu_parts.runners import Subject
from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.config import Limits
from ramet.runtime.engine import EngineCore
from ramet.runtime.native import NativeRunner
from ramet.runtime.ports import SOCKETS, ZmqPort

AIM = 0.5  # milliseconds
KINDS = {"greedy": Sampling(temperature=0.0), "sampled": Sampling(temperature=0.8, top_p=0.95)}
_STEPS = 64  # of a figure in each turn
_SETTLED = 8  # steps after the prompt before anything is timed
_PROGRAM, _PROMPT = "overhead", tuple(range(16))


@dataclass(slots=True)
class Clocked:
    """A pool whose forwards are timed: `seconds` of this thread's CPU in all of them."""

    pool: Any
    seconds: float = 0.0

    def forward(self, *arguments: Any) -> None:
        """As `Pool.forward`."""
        began = time.thread_time()
        self.pool.forward(*arguments)
        self.seconds += time.thread_time() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)


def milliseconds(runner: NativeRunner, sampling: Sampling, steps: int, batch: int = 1) -> float:
    """The median over `steps` steps that decode `batch` sequences; fewer where the runner's context is short."""
    steps = max(1, min(steps, runner.context - len(_PROMPT) - _SETTLED - 2))
    clocked = Clocked(runner._pool)
    runner._pool = clocked  # type: ignore[assignment]
    try:
        with wired(runner) as (core, orders):
            for number in range(batch):
                _begin(orders, f"{_PROGRAM} {number}", msgspec.structs.replace(sampling, max_tokens=runner.context))
            while core.scheduler.steps < _SETTLED:
                core.step()
            return statistics.median(_timed(core, clocked) for _ in range(steps)) * 1e3
    finally:
        runner._pool = clocked.pool


def turn(report: Report, subject: Subject, *, keep: bool) -> None:
    """One turn of the section; torch has no part in it."""
    if not isinstance(subject.runner, NativeRunner):
        return
    for name, sampling in KINDS.items():
        found = milliseconds(subject.runner, sampling, _STEPS)
        if keep:
            figure = report.of("overhead", f"batch 1, {name}", subject.name, "ms/step", batch=1)
            figure.values.append(found)
            figure.note = f"aim: at most {AIM}"


def _timed(core: EngineCore, clocked: Clocked) -> float:
    before, began = clocked.seconds, time.thread_time()
    core.step()
    return time.thread_time() - began - (clocked.seconds - before)


def _begin(orders: zmq.Socket[bytes], name: str, sampling: Sampling) -> None:
    ops = (m.Append("0.0", "0", (_PROMPT,)), m.Generate("0.1", "0", sampling, 7))
    for order in (m.OrderOpen(name), m.OrderOps(name, ops), m.OrderEnd(name)):
        orders.send(msgspec.msgpack.encode(order))


@contextmanager
def wired(runner: NativeRunner) -> Iterator[tuple[EngineCore, zmq.Socket[bytes]]]:
    """An engine over sockets, and where its orders go in."""
    with tempfile.TemporaryDirectory(prefix="ramet-") as directory, zmq.Context() as context:
        orders, reports = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        with orders, reports:
            for socket, name in zip((orders, reports), SOCKETS, strict=True):
                socket.set_hwm(0)
                socket.setsockopt(zmq.LINGER, 0)
                socket.bind(f"ipc://{directory}/{name}")
            port = ZmqPort(directory)
            core = EngineCore(runner, port, limits=Limits())
            try:
                yield core, orders
            finally:
                core.close()
                port.close()
