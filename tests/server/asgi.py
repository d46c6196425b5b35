"""An ASGI application that does what a test says, clients that call it, and a loop whose clock a test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.idempotency import Idempotency
from ramet.runtime.server.idempotency_records import Bounds

ALICE, BOB = Caller(namespace="alice", label="a"), Caller(namespace="bob", label="b")


class Clocked(asyncio.SelectorEventLoop):
    """An event loop whose time can be moved forwards."""

    skew = 0.0

    def time(self) -> float:
        """Seconds."""
        return super().time() + self.skew


def driven(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What `work` returns, on a loop of its own, whose clock `later` moves."""
    with asyncio.Runner(loop_factory=Clocked) as runner:
        return runner.run(work())


async def settled() -> None:
    """Everything that can happen now has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def later(seconds: float) -> None:
    """Move the clock."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clocked)
    loop.skew += seconds
    await settled()


class Call:
    """One call of the `Source`: what it was asked, and what it is told to answer."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.body = b""
        self.orders: asyncio.Queue[Message | Exception | None] = asyncio.Queue()
        self.gone = self.over = False
        self.sent = 0  # bytes

    def start(self, status: int = 200) -> None:
        """Begin the answer."""
        self.orders.put_nowait({"type": "http.response.start", "status": status, "headers": [(b"x-made", b"once")]})

    def say(self, data: bytes, *, more: bool = True) -> None:
        """A piece of it."""
        self.orders.put_nowait({"type": "http.response.body", "body": data, "more_body": more})

    def answer(self, data: bytes = b"answer", status: int = 200) -> None:
        """All of it."""
        self.start(status)
        self.say(data, more=False)
        self.orders.put_nowait(None)

    def end(self, error: Exception | None = None) -> None:
        """Return, or raise."""
        self.orders.put_nowait(error)


class Source:
    """The application behind; `calls` are those of it, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then do as told until the end, or until nobody reads."""
        call = Call(scope)
        self.calls.append(call)
        call.body = (await receive())["body"]
        gone = asyncio.ensure_future(receive())
        doing = asyncio.ensure_future(self._obey(call, send))
        await asyncio.wait({gone, doing}, return_when=asyncio.FIRST_COMPLETED)
        call.gone, call.over = gone.done(), True
        for each in (gone, doing):
            each.cancel()
        if doing.done() and not doing.cancelled():
            doing.result()

    async def _obey(self, call: Call, send: Send) -> None:
        while (order := await call.orders.get()) is not None:
            if isinstance(order, Exception):
                raise order
            await send(order)
            call.sent += len(order.get("body", b""))


class Client:
    """A connection that asks once. `slow`: it takes nothing beyond the headers until `hurry`."""

    def __init__(
        self,
        app: ASGIApp,
        *headers: tuple[bytes, bytes],
        body: bytes = b"{}",
        path: str = "/generate",
        who: Caller = ALICE,
        method: str = "POST",
        kind: str = "http",
        slow: bool = False,
    ) -> None:
        self.sent: list[Message] = []
        self.failure: Failure | None = None
        self._left = asyncio.Event()
        self._flow = asyncio.Event()
        if not slow:
            self._flow.set()
        self._body = [body[:1], body[1:]]
        scope: Scope = {"type": kind, "path": path, "headers": [*headers], "query_string": b"", "ramet.caller": who}
        if kind == "http":
            scope["method"] = method
        self.task = asyncio.ensure_future(self._ask(app, scope))

    async def _ask(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Failure as failure:
            self.failure = failure

    async def _receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(0), "more_body": bool(self._body)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            await self._flow.wait()
        self.sent.append(message)

    def leave(self) -> None:
        """Hang up."""
        self._left.set()

    def hurry(self) -> None:
        """Read what there is from now on."""
        self._flow.set()

    @property
    def status(self) -> int:
        """Of the answer; 0: it has not begun."""
        return int(self.sent[0]["status"]) if self.sent else 0

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Of the answer."""
        return dict(self.sent[0]["headers"])

    @property
    def replayed(self) -> bool:
        """Whether the answer says that it was made for somebody else."""
        return self.headers.get(b"idempotent-replayed") == b"true"

    @property
    def body(self) -> bytes:
        """As far as it has come."""
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def whole(self) -> bool:
        """The end has come."""
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


BOUNDS = Bounds(seconds=10.0, answers=4, total=4000, each=2000)


class Stage:
    """The application under test in front of a source."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.source = Source()
        self.app = Idempotency(self.source, bounds)

    async def ask(self, key: bytes = b"k", **options: Any) -> Client:
        """A request under a key."""
        client = Client(self.app, (b"idempotency-key", key), **options)
        await settled()
        return client

    async def answered(self, key: bytes = b"k", data: bytes = b"answer", **options: Any) -> Client:
        """A request that the source answers at once."""
        client = await self.ask(key, **options)
        self.source.calls[-1].answer(data)
        await settled()
        return client
