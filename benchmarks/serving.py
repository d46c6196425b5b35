"""What the server adds: in: a model. Out: tokens/s over HTTP and offline, the time to a first token, a stream's gaps.

A server process and an offline engine with the same model take turns (A B A B) at the same prompts; each figure is a
median over the turns. The client shares the machine with the engine, which a foreign client would not: so it is plain
sockets in one thread, and where tokens/s are measured it looks at them every few milliseconds, so that the pieces of
one step wake it once. Every answer is read to its end and must have all of its tokens. The last table is a stream
beside which another client posts a prompt of 100 kB: how long the stream's longest pause is, with and without it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import platform
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

import ramet as rt
from ramet.frontend import ir

WORDS = ("river", "stone", "green", "walks", "seven", "light", "under", "paper", "cold", "music")
LONG = 100_000  # bytes of the prompt that is tokenised beside a stream
READY = 300.0  # seconds until a server that does not say where it listens is given up on
GLANCE = 0.002  # seconds between two looks at the sockets, where tokens/s are measured


@dataclass(frozen=True)
class Server:
    """A server process."""

    url: str
    pid: int

    def cpu(self) -> float:
        """Seconds of processor that it has used, its engine apart; nan where the system does not say."""
        clock = (~self.pid << 3) | 2  # Linux' clock of a process' time, which C asks for with clock_getcpuclockid(3)
        return time.clock_gettime(clock) if sys.platform == "linux" else float("nan")


@contextlib.contextmanager
def serve(model: str, options: Sequence[str]) -> Iterator[Server]:
    """A server, and its end."""
    command = [sys.executable, "-P", "-m", "ramet", "serve", model, "--port", "0", "--log-level", "error", *options]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = threading.Timer(READY, process.kill)
    timer.start()
    assert process.stdout is not None, "it is a pipe"
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            url = re.search(r"https?://127\.0\.0\.1:\d+", line)
            if url:
                break
        else:
            raise SystemExit(f"the server did not start:\n{''.join(said)}")
        timer.cancel()
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Server(url.group(), process.pid)
    finally:
        timer.cancel()
        process.send_signal(signal.SIGTERM)
        process.wait()


# -- both sides


@dataclass(slots=True)
class Heard:
    """When what came of one completion: `began`, and the time of each piece."""

    began: float
    ending: bytes = b""
    times: list[float] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    def take(self, part: bytes) -> None:
        """Bytes of the answer. Its head is no piece."""
        self.parts.append(part)
        if b"data: " in part or b"{" in part:
            self.times.append(time.perf_counter())

    def check(self) -> None:
        """Raise `SystemExit` unless it is a 200 and all of it came; nothing is asked of an answer without `ending`."""
        answer = b"".join(self.parts)
        if self.ending and not (answer.startswith(b"HTTP/1.1 200 ") and self.ending in answer[-2000:]):
            raise SystemExit(f"the server answered {answer[:200]!r} ... {answer[-200:]!r}")


def prompt_of(turn: int, number: int) -> str:
    """About ten tokens, a different one each time, so that no turn finds what another has computed."""
    return f"{turn} {number} " + " ".join(WORDS[(turn * 7 + number * 3 + k) % len(WORDS)] for k in range(5))


class Client:
    """Requests to one server, each on a socket of its own, read in one thread."""

    def __init__(self, url: str, glance: float = 0.0) -> None:
        where = urlsplit(url)
        self._address = (where.hostname or "", where.port or 80)
        self._glance = glance
        self._selector = selectors.DefaultSelector()

    def post(self, body: dict[str, Any], ending: bytes = b"") -> Heard:
        """Begin one request. `ending` is what its answer must hold at its end."""
        content = json.dumps(body).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nHost: {self._address[0]}:{self._address[1]}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        heard = Heard(time.perf_counter(), ending)
        peer = socket.create_connection(self._address)
        peer.sendall(head.encode() + content)
        peer.setblocking(False)
        self._selector.register(peer, selectors.EVENT_READ, heard)
        return heard

    @property
    def busy(self) -> bool:
        """Whether answers are still to come."""
        return bool(self._selector.get_map())

    def read(self) -> None:
        """Wait until something has come, and take it."""
        ready = self._selector.select()
        if self._glance:
            time.sleep(self._glance)
            ready = self._selector.select(0)
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket), "nothing else is registered"
            part = key.fileobj.recv(1 << 16)
            if part:
                key.data.take(part)
                continue
            self._selector.unregister(key.fileobj)
            key.fileobj.close()
            key.data.check()

    def close(self) -> None:
        """Free what it needs; all answers are read."""
        self._selector.close()


def asked(text: str, tokens: int, *, stream: bool) -> tuple[dict[str, Any], bytes]:
    """A request for exactly `tokens` tokens, and what its answer must hold at its end."""
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = {"text": text, "sampling_params": sampling, "stream": stream, "incremental_streaming_output": stream}
    return body, f'"completion_tokens":{tokens},'.encode()


def over_http(url: str, turn: int, batch: int, tokens: int, *, stream: bool, glance: float = GLANCE) -> list[Heard]:
    """`batch` completions at once."""
    with contextlib.closing(Client(url, glance)) as client:
        heard = [client.post(*asked(prompt_of(turn, k), tokens, stream=stream)) for k in range(batch)]
        while client.busy:
            client.read()
    return heard


def offline(engine: rt.Engine, turn: int, batch: int, tokens: int) -> list[Heard]:
    """The same as programs of the offline engine."""
    over = threading.Semaphore(0)
    sampling = ir.Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)

    def begin(number: int) -> Heard:
        heard = Heard(time.perf_counter())

        def deliver(event: ir.Event) -> None:
            if isinstance(event, ir.Token):
                heard.times.append(time.perf_counter())
            elif isinstance(event, ir.Ended):
                over.release()

        session = engine.open(ir.Header(), deliver)
        text = ir.Text(id="0.0", seq="0", parts=(prompt_of(turn, number),))
        session.send((text, ir.Gen(id="0.1", seq="0", var="x", sampling=sampling)))
        session.end()
        return heard

    heard = [begin(number) for number in range(batch)]
    for _ in heard:
        over.acquire()
    return heard


# -- figures


def rate(act: Callable[[], object], tokens: int) -> float:
    """Tokens per second of wall time."""
    start = time.perf_counter()
    act()
    return tokens / (time.perf_counter() - start)


def throughput(server: Server, engine: rt.Engine, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    """One row: tokens/s of the three ways to ask, in turns, the medians of the turns' ratios, and what a streamed token
    costs the server's process, in microseconds of processor."""
    whole, streamed, alone = list[float](), list[float](), list[float]()
    spent = 0.0
    for turn in range(-1, repeats):
        seed = (1 + turn) * 1000 + batch
        total = batch * tokens
        direct = rate(partial(offline, engine, seed, batch, tokens), total)
        answers = rate(partial(over_http, server.url, seed, batch, tokens, stream=False), total)
        before = server.cpu()
        rates = (
            direct,
            answers,
            rate(partial(over_http, server.url, seed + 500, batch, tokens, stream=True), total),
        )
        if turn >= 0:  # the first turn warms up
            spent += server.cpu() - before
            for found, value in zip((alone, whole, streamed), rates, strict=True):
                found.append(value)
    return {
        "batch": batch,
        "offline tok/s": statistics.median(alone),
        "HTTP tok/s": statistics.median(whole),
        "streamed tok/s": statistics.median(streamed),
        "HTTP / offline": statistics.median(w / a for w, a in zip(whole, alone, strict=True)),
        "streamed / offline": statistics.median(s / a for s, a in zip(streamed, alone, strict=True)),
        "server µs per streamed tok": 1e6 * spent / (repeats * batch * tokens),
    }


def first_token(url: str, engine: rt.Engine, repeats: int) -> dict[str, float]:
    """Milliseconds to the first token of a short prompt on an idle server, and offline."""
    http, alone = list[float](), list[float]()
    for turn in range(repeats):
        for found, heard in (
            (alone, offline(engine, 7_000_000 + turn, 1, 2)),
            (http, over_http(url, 7_000_000 + turn, 1, 2, stream=True, glance=0.0)),
        ):
            found.append(1e3 * (heard[0].times[0] - heard[0].began))
    ratio = statistics.median(h / a for h, a in zip(http, alone, strict=True))
    return {"offline ms": statistics.median(alone), "HTTP ms": statistics.median(http), "HTTP / offline": ratio}


def pauses(url: str, tokens: int, length: int, repeats: int) -> dict[str, float]:
    """Milliseconds: a stream's median gap, and its longest one, alone and while a long prompt is tokenised."""

    def one(turn: int, *, beside: bool) -> list[float]:
        with contextlib.closing(Client(url)) as client:
            prompt = prompt_of(8_000_000 + 2 * turn + beside, 0)
            heard = client.post(*asked(prompt, tokens, stream=True))
            while not heard.times:
                client.read()
            if beside:  # it is tokenised, and then refused where it does not fit
                text = " ".join(WORDS[(turn + k) % len(WORDS)] for k in range(length // 6))
                client.post({"text": text, "sampling_params": {"max_new_tokens": 0}})
            while client.busy:
                client.read()
        return [1e3 * (b - a) for a, b in itertools.pairwise(heard.times)]

    alone, both = list[list[float]](), list[list[float]]()
    for turn in range(repeats):
        alone.append(one(turn, beside=False))
        both.append(one(turn, beside=True))
    # a stream that came in one piece has no gap
    longest = [statistics.median(max(gaps, default=0.0) for gaps in runs) for runs in (alone, both)]
    median = [statistics.median([gap for gaps in runs for gap in gaps] or [0.0]) for runs in (alone, both)]
    return {
        "median gap ms": median[0],
        "median gap beside ms": median[1],
        "longest gap ms": longest[0],
        "longest gap beside ms": longest[1],
    }


# -- output


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows for people."""
    out = Table()
    for name in rows[0]:
        out.add_column(name, justify="right")
    for row in rows:
        out.add_row(*(f"{value:.3f}" if " / " in name else f"{value:.4g}" for name, value in row.items()))
    return out


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=0, help="of each engine; 0 is one per core")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long", type=int, default=LONG, help="bytes of the prompt beside a stream")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()

    kv = max(options.batches) * (options.tokens + 64) * 4
    flags = ["--threads", str(options.threads), "--kv-tokens", str(kv)]
    with (
        rt.Engine(options.model, threads=options.threads, kv_tokens=kv) as engine,
        serve(options.model, flags) as server,
    ):
        info = engine.info()
        rows = [throughput(server, engine, batch, options.tokens, options.repeats) for batch in options.batches]
        first = first_token(server.url, engine, max(3, 3 * options.repeats))
        gaps = pauses(server.url, options.tokens, options.long, options.repeats)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    if options.json:
        shown = {"model": info["model"], "dtype": info["dtype"], "machine": machine, "repeats": options.repeats}
        print(json.dumps({**shown, "throughput": rows, "first token": first, "pauses": gaps}, indent=2))
        return
    console = Console()
    console.print(f"{info['model']}, {info['dtype']}, {machine}, medians of {options.repeats} turns", highlight=False)
    console.print(table(rows))
    console.print(f"time to the first of 2 tokens, idle; then a stream's gaps beside a prompt of {options.long} bytes")
    console.print(table([first]))
    console.print(table([gaps]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started ends with us
    main()
