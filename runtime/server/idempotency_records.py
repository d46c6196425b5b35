"""Answers that are kept for whoever asks again under the same key, while they are made and for a time afterwards.

In: ASGI messages of an application, as it sends them. Out: the same messages for any number of readers, each from the
first on. Bounded in number, bytes and time; who keeps much loses its own answers before others lose theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.types import Message, Send

from ramet.runtime.server.failures import Failure, overloaded

Key = tuple[str, bool, bytes]  # namespace, whether the caller may control the server, the client's own key
WINDOW = 256 << 10  # bytes that an answer which is too large to be kept may be ahead of its slowest reader


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept at most: each answer for `seconds` after its end, and its run without a client for as long;
    `answers` keys; `total` bytes of all answers, `each` bytes of one of them."""

    seconds: float
    answers: int = 4096
    total: int = 64 << 20
    each: int = 8 << 20


class Record:
    """One answer, made by `Shelf.begin`. Used on the event loop alone.

    `fingerprint` is that of the request that it answers. `stopped` is set when nobody is going to read it; `over`:
    nothing more comes; `found`: the shelf knows it; `cut`: too large, so that what its readers have read is gone."""

    def __init__(self, key: Key, fingerprint: bytes, shelf: Shelf) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.stopped = asyncio.Event()
        self.over = self.cut = False
        self.found = True
        self._shelf = shelf
        self._start: Message | None = None
        self._whole = False  # its last message was sent
        self._data = bytearray()
        self._base = 0  # bytes of the answer that stood in front of `_data`
        self._readers: dict[int, int] = {}  # reader → bytes that it has taken
        self._waiters: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self._data)

    # -- the application's side

    async def take(self, message: Message) -> None:
        """What the application sends. Waits only when the answer is too large to be kept and its readers are slow."""
        if message["type"] == "http.response.start":
            self._start = message
            if message["status"] != 200:  # a refusal: asking again may have another answer
                self._shelf.forget(self)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self._data += body
            self._whole = not message.get("more_body", False)
            self._shelf.grown(self, len(body))
        self._wake()
        while self.cut and self._readers and self.size > WINDOW:
            await self._changed()

    def unfinished(self) -> None:
        """It breaks off: those who read it are told so, and it is not given again."""
        self._shelf.forget(self)

    def end(self) -> None:
        """The application is done: what is whole is kept for its time."""
        self.over = True
        if not self._whole:
            self._shelf.forget(self)
        if self.found:
            self._shelf.ended(self)
            self._after(self._shelf.bounds.seconds)
        self._wake()

    def forgotten(self) -> None:
        """Its key is free again: nobody else is going to find it."""
        self.found = False
        self._after(None)

    # -- a reader's side

    @contextlib.contextmanager
    def reader(self) -> Iterator[int]:
        """Somebody who reads it, from its beginning: not when it is `cut`."""
        number = max(self._readers, default=0) + 1
        self._readers[number] = 0
        if not self.over:
            self._after(None)
        try:
            yield number
        finally:
            del self._readers[number]
            self._left()

    async def tell(self, reader: int, send: Send, *, replayed: bool, deadline: float | None = None) -> None:
        """Send it from the first message on, as far as it has come, and what follows. Raises `TimeoutError` when
        nothing of it is there at `deadline` (of the loop's clock)."""
        async with asyncio.timeout_at(deadline):
            while self._start is None and not self.over:
                await self._changed()
        if self._start is None:
            return
        extra = [(b"idempotent-replayed", b"true")] if replayed else []
        await send({**self._start, "headers": [*self._start.get("headers", ()), *extra]})
        while True:
            taken = self._readers[reader]
            data, whole = bytes(self._data[taken - self._base :]), self._whole
            if data or whole:
                await send({"type": "http.response.body", "body": data, "more_body": not whole})
                self._readers[reader] = taken + len(data)
                self._trim()
                if whole:
                    return
            elif self.over:
                return
            else:
                await self._changed()

    def _left(self) -> None:
        """A reader is gone. The run goes on for a time without any, so that a client that comes again finds it; one
        that nobody could read from its beginning ends at once."""
        self._trim()
        if not self._readers and not self.over:
            self._after(0.0 if self.cut or not self.found else self._shelf.bounds.seconds)

    # -- its end

    def _after(self, seconds: float | None) -> None:
        """Give it up in `seconds`; None: not for now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up)
        elif seconds is not None:
            self._give_up()

    def _give_up(self) -> None:
        self._shelf.forget(self)
        if not self._readers and not self.over:
            self.stopped.set()
            self._wake()

    def cut_off(self) -> None:
        """It is too large: what all readers have read is not kept any longer."""
        self.cut = True
        self._trim()
        if not self._readers and not self.over:
            self._give_up()

    def _trim(self) -> None:
        if self.cut:
            end = self._base + self.size
            gone = min(self._readers.values(), default=end) - self._base
            del self._data[:gone]
            self._base += gone
            self._shelf.grown(self, -gone)
            self._wake()

    # -- waiting

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Shelf:
    """All answers that are record. `total` are their bytes."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.total = 0
        self._all: dict[Key, Record] = {}
        self._over: dict[str, OrderedDict[Key, Record]] = {}  # by namespace, those that are complete, the oldest first
        self._held: dict[str, int] = {}  # bytes by namespace

    def __len__(self) -> int:
        return len(self._all)

    def find(self, key: Key) -> Record | None:
        """What is kept under a key."""
        return self._all.get(key)

    def begin(self, key: Key, fingerprint: bytes) -> Record:
        """Keep an answer that is about to be made. Raises `Failure` 429 when nothing can make room for it."""
        while len(self._all) >= self.bounds.answers:
            if not self._displace():
                raise overloaded(f"{self.bounds.answers} requests with an Idempotency-Key run already", 1.0)
        record = self._all[key] = Record(key, fingerprint, self)
        return record

    def grown(self, record: Record, more: int) -> None:
        """It has `more` bytes (or fewer)."""
        if not record.found:
            return
        self._count(record.key[0], more)
        if more <= 0:
            return
        while self.total > self.bounds.total and self._displace():
            continue
        if record.size > self.bounds.each or self.total > self.bounds.total:
            record.cut_off()

    def ended(self, record: Record) -> None:
        """It is complete: from now on it may be displaced."""
        self._over.setdefault(record.key[0], OrderedDict())[record.key] = record

    def forget(self, record: Record) -> None:
        """Its key is free again. Idempotent."""
        if not record.found:
            return
        record.forgotten()
        namespace = record.key[0]
        del self._all[record.key]
        self._count(namespace, -record.size)
        over = self._over.get(namespace, OrderedDict())
        over.pop(record.key, None)
        if not over:
            self._over.pop(namespace, None)

    def _count(self, namespace: str, more: int) -> None:
        self.total += more
        self._held[namespace] = self._held.get(namespace, 0) + more
        if not self._held[namespace]:
            del self._held[namespace]

    def _displace(self) -> bool:
        """Forget the oldest complete answer of the namespace that keeps the most; whether there was one."""
        most = max(self._over, key=lambda name: (self._held.get(name, 0), len(self._over[name])), default=None)
        if most is None:
            return False
        self.forget(next(iter(self._over[most].values())))
        return True


def too_large(bounds: Bounds) -> Failure:
    """409: the answer cannot be given again."""
    return Failure(
        409,
        f"the answer under this Idempotency-Key is larger than {bounds.each} bytes, or than there is room for, and was "
        "not record: send the request under another key to have it computed again",
        code="idempotency_answer_not_kept",
        param="Idempotency-Key",
    )
