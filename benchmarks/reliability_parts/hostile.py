"""Clients that write nonsense over HTTP, by mistake or to do harm: in: a server. Out: findings about its answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

from reliability_parts.board import Finding
from reliability_parts.crowds import generate
from reliability_parts.nonsense import Nonsense
from reliability_parts.place import Place, Server
from reliability_parts.wire import BROKEN, Heard, Line, ask, idle, soon

LANES = 8  # connections that send nonsense at once
HANG = 30.0  # seconds
TRACE = (b"Traceback", b'File "', b"site-packages")


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
