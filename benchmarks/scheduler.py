"""The host's share of a step: in: nothing but this CPU. Out: milliseconds a step for plan, masks, collect and messages.

A real `EngineCore` over a runner that computes nothing, so that what is timed is the scheduler alone: programs that
decode apart, children of forks, and programs that come and go. Then the price of single acts: a fork, a match of a
long prompt in the prefix tree, a plan before a long queue. Medians of wall time; prints a table, or JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import Batch, Flight, Masks, Samples
from ramet.runtime.config import Limits
from ramet.runtime.engine import EngineCore
from ramet.runtime.radix import RadixTree

VOCAB = 32_000
PARTS = ("plan", "masks", "collect", "encode", "decode")
WORKLOADS = ("apart", "forks", "churn")
BRANCHES = 8  # children of one fork
LONG = 1 << 20  # tokens that no program of the steady workloads reaches
SETTLED = 4  # steps after the last prompt was computed, before anything is timed


@dataclass(slots=True)
class NullFlight:
    """A batch that nothing computes."""

    batch: Batch


class NullRunner:
    """A `Runner` whose results are there at once: every token is 7, every logprob 0."""

    def __init__(self, *, capacity: int, rows: int, context: int) -> None:
        self.capacity, self.rows, self.context, self.vocab = capacity, rows, context, VOCAB

    def forward(self, batch: Batch) -> NullFlight:
        """Nothing."""
        return NullFlight(batch)

    def sample(self, flight: Flight, masks: Masks) -> None:
        """Nothing."""

    def read(self, flight: Flight) -> Samples:
        """The same token for every draw."""
        draws, targets = len(flight.batch.draws), len(flight.batch.targets)
        empty = np.zeros((draws, 0))
        return Samples(
            np.full(draws, 7, np.int32),
            np.zeros(draws, np.float32),
            empty.astype(np.int32),
            empty.astype(np.float32),
            np.zeros(targets, np.float32),
        )


class Bench:
    """An engine and its client in one thread. `times` holds the seconds of each call, by part."""

    def __init__(self, *, rows: int, context: int, capacity: int) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.orders: list[m.Order] = []
        self.over: list[str] = []  # programs that ended since `over` was cleared
        self.opened = 0
        limits = Limits(batch_tokens=8192, chunk_tokens=2048)
        self.core = EngineCore(NullRunner(capacity=capacity, rows=rows, context=context), self, limits=limits, eos=(2,))
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[m.Report] = msgspec.msgpack.Decoder(m.Report)
        for owner, name in (
            (self.core.scheduler, "plan"),
            (self.core.scheduler, "masks"),
            (self.core.collector, "collect"),
        ):
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, part: str, act: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object) -> object:
            start = time.perf_counter()
            result = act(*arguments)
            self.times[part].append(time.perf_counter() - start)
            return result

        return timed

    def receive(self, block: bool) -> list[m.Order]:
        """The engine's port: all orders since the last call."""
        orders, self.orders = self.orders, []
        return orders

    def send(self, step: m.Step) -> None:
        """The engine's port: to msgpack and back, as between two processes."""
        start = time.perf_counter()
        data = self._encoder.encode(step)
        between = time.perf_counter()
        report = self._decoder.decode(data)
        self.times["encode"].append(between - start)
        self.times["decode"].append(time.perf_counter() - between)
        assert isinstance(report, m.Step), "a step stays a step"
        self.over += [news.program for news in report.news if isinstance(news, m.Over)]

    def open(self, *ops: m.AnyOp, end: bool = True) -> str:
        """A new program; its id is as long as a real one."""
        self.opened += 1
        name = f"{self.opened:032x}"
        self.orders += [m.OrderOpen(name), m.OrderOps(name, ops)]
        if end:
            self.orders.append(m.OrderEnd(name))
        return name

    def settle(self, decoding: int) -> None:
        """Step until so many sequences decode, and nothing else is left to do, or the first program is over."""
        running = self.core.scheduler.running
        while not self.over and not (len(running) >= decoding and all(seq.flying for seq in running)):
            self.core.step()
        for _ in range(SETTLED):
            self.core.step()
        self.times.clear()

    def medians(self) -> dict[str, float]:
        """Milliseconds a step, by part."""
        return {part: 1e3 * statistics.median(self.times[part] or [0.0]) for part in PARTS}


def tokens_of(rng: random.Random, count: int) -> tuple[int, ...]:
    """Random tokens, neither 2 (the end) nor 7 (what the runner samples)."""
    return tuple(rng.randrange(10, VOCAB) for _ in range(count))


def completion(rng: random.Random, prompt: int, limit: int) -> Iterator[m.AnyOp]:
    """Text, gen."""
    yield m.Append("0.0", "0", (tokens_of(rng, prompt),))
    yield m.Generate("0.1", "0", Sampling(max_tokens=limit), rng.getrandbits(63))


def forked(rng: random.Random, prompt: int, branches: int, limit: int) -> Iterator[m.AnyOp]:
    """A prompt, and children that each go on with a few tokens of their own."""
    names = tuple(f"0.1.{i}" for i in range(branches))
    yield m.Append("0.0", "0", (tokens_of(rng, prompt),))
    yield m.Fork("0.1", "0", names)
    yield m.Close("0.2", "0")
    for name in names:
        yield m.Append(f"{name}.0", name, (tokens_of(rng, 8),))
        yield m.Generate(f"{name}.1", name, Sampling(max_tokens=limit), rng.getrandbits(63))


def measure(workload: str, count: int, *, context: int, steps: int) -> dict[str, float]:
    """Milliseconds a step at `count` decoding sequences of about `context` tokens."""
    rng = random.Random(count)
    longest = context + steps + 256
    bench = Bench(rows=count, context=longest, capacity=(count + 1) * longest)
    branches = min(BRANCHES, count)
    if workload == "forks":
        for _ in range(count // branches):
            bench.open(*forked(rng, context, branches, LONG))
    else:
        for _ in range(count):
            limit = LONG if workload == "apart" else rng.randrange(steps // 4, steps + 1)
            bench.open(*completion(rng, context, limit))
    bench.settle(count)
    for _ in range(steps):
        bench.core.step()
        for _ in bench.over:  # one comes for each that went
            bench.open(*completion(rng, context // 8, rng.randrange(steps // 4, steps + 1)))
        bench.over.clear()
    return bench.medians()


def seconds_of(act: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def fork_microseconds(context: int, repeats: int) -> float:
    """One child of a fork, from the order to a sequence that waits for its first batch."""
    rng = random.Random(0)
    bench = Bench(rows=8, context=context + 64, capacity=4 * context)
    seconds = []
    for repeat in range(repeats):
        name = bench.open(m.Append("0.0", "0", (tokens_of(rng, context),)), end=False)
        for _ in range(4):
            bench.core.step()
        names = tuple(f"0.{repeat}.{i}" for i in range(64))
        order = m.OrderOps(name, (m.Fork("0.1", "0", names),))
        seconds.append(seconds_of(lambda order=order: bench.core.programs.receive(order)) / len(names))  # type: ignore[misc]
        bench.orders.append(m.OrderAbort(name))
        bench.core.step()
    return 1e6 * statistics.median(seconds)


def match_microseconds(length: int, chunk: int, repeats: int) -> float:
    """A prompt of `length` tokens that the tree has, inserted `chunk` tokens at a time."""
    tree, tokens = RadixTree(), np.arange(length, dtype=np.int32)
    node = tree.root()
    for start in range(0, length, chunk):
        node, _ = tree.insert(node, tokens[start : start + chunk], tokens[start : start + chunk])
    root = tree.root()
    return 1e6 * statistics.median(seconds_of(lambda: tree.match(root, tokens)) for _ in range(repeats))


def queue_milliseconds(running: int, waiting: int, steps: int, *, full: str) -> float:
    """A plan with `waiting` sequences in the queue, when the table is out of rows or the pool out of slots."""
    rng = random.Random(1)
    prompt = 64
    longest = prompt + steps + 64
    rows = running if full == "rows" else 4 * running
    bench = Bench(rows=rows, context=longest, capacity=running * longest + (prompt if full == "slots" else LONG // 8))
    for _ in range(running):
        bench.open(*completion(rng, prompt, longest - prompt))
    bench.settle(running)
    for _ in range(waiting):
        bench.open(*completion(rng, prompt, longest - prompt))
    for _ in range(steps):
        bench.core.step()
    assert len(bench.core.scheduler.waiting) == waiting, "nothing was admitted"
    return bench.medians()["plan"]


def table(rows: list[dict[str, float | str]]) -> Table:
    """The rows for people."""
    out = Table()
    columns = list(rows[0])
    for name in columns:
        out.add_column(name, justify="right")
    for row in rows:
        out.add_row(*(f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in columns))
    return out


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--context", type=int, default=1024, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=200, help="steps that are timed, at most 512")
    parser.add_argument("--waiting", type=int, default=1000, help="length of the queue of the last two figures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()

    rows: list[dict[str, float | str]] = []
    for workload in WORKLOADS:
        for count in options.sequences:
            parts = measure(workload, count, context=options.context, steps=options.steps)
            both = parts["plan"] + parts["masks"] + parts["collect"]
            rows.append({"workload": workload, "sequences": count, **parts, "engine": both})
    repeats = max(options.steps // 4, 1)
    acts = {
        "fork, us a child": fork_microseconds(options.context, repeats),
        "match of 8k tokens in one edge, us": match_microseconds(8192, 8192, repeats),
        "match of 8k tokens in 16 edges, us": match_microseconds(8192, 512, repeats),
    }
    for full in ("rows", "slots"):
        name = f"plan, 64 running, {options.waiting} waiting, no {full} left, ms"
        acts[name] = queue_milliseconds(64, options.waiting, repeats, full=full)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps({"machine": machine, "context": options.context, "rows": rows, "acts": acts}, indent=2))
        return
    console = Console()
    console.print(f"ms a step, median of {options.steps} steps, contexts of {options.context} tokens, {machine}")
    console.print(table(rows))
    console.print(table([{"act": name, "cost": value} for name, value in acts.items()]))


if __name__ == "__main__":
    main()
