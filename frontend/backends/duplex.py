"""A program on a ramet server, over a WebSocket: operations out, events in.

In: operations, from any thread. Out: events, delivered on the backend's loop. Sockets are kept open and used again for
the next program. Messages are msgpack, so that every number arrives as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping, Sequence

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State

from ramet.frontend.backends.base import Deliver
from ramet.frontend.backends.http import AGAIN, RemoteFailure, failure_of, pause
from ramet.frontend.backends.loop import Loop
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import AnyOp, Ended, Event, Header, Usage

KEPT = 32  # sockets that wait for a next program
LARGEST = 1 << 20  # bytes of a message, where operations can be parted


class _Refusal(msgspec.Struct, frozen=True, tag="error"):
    """The server's last word about a program that it cut short."""

    status: int
    error: dict[str, object]
    retry_after: float | None = None


_EVENTS = msgspec.msgpack.Decoder(Event | _Refusal)


class Sockets:
    """Open sockets to one server. Used on the loop. `timeout` is the longest silence, in seconds: a server that answers
    no ping for so long counts as lost."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        self._url = "ws" + url.removeprefix("http") + "/v1/programs"
        self._headers = dict(headers)
        self._timeout = timeout
        self._idle: list[ClientConnection] = []

    async def take(self) -> ClientConnection:
        """An open socket. Raises `RemoteFailure`."""
        while self._idle:
            socket = self._idle.pop()
            if socket.state is State.OPEN:
                return socket
        try:
            return await connect(
                self._url,
                additional_headers=self._headers,
                compression=None,
                open_timeout=self._timeout,
                ping_interval=self._timeout / 2,
                ping_timeout=self._timeout / 2,
                close_timeout=1.0,
                max_size=None,
            )
        except InvalidStatus as error:
            failure = failure_of(error.response.status_code, None, None)
            failure.message = f"{self._url}: the server refused the socket with status {failure.status}"
            raise failure from None
        except TimeoutError:
            raise RemoteFailure("transport", f"{self._url}: no answer for {self._timeout:g} s") from None
        except (OSError, InvalidHandshake, InvalidURI, EOFError) as error:
            raise RemoteFailure("transport", f"{self._url}: {error or type(error).__name__}", after=0.0) from None

    async def put(self, socket: ClientConnection) -> None:
        """Give back a socket whose program has ended."""
        if len(self._idle) < KEPT and socket.state is State.OPEN:
            self._idle.append(socket)
        else:
            await socket.close()

    async def close(self) -> None:
        """Close those that wait."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(socket.close() for socket in idle), return_exceptions=True)


class SocketProgram:
    """See `Session`. What was sent is kept until the first answer comes: until then the program can begin again
    elsewhere, on another socket."""

    def __init__(self, loop: Loop, sockets: Sockets, header: Header, deliver: Deliver, retries: int) -> None:
        self._loop = loop
        self._sockets = sockets
        self._deliver = deliver
        self._retries = retries
        self._log: list[bytes] = [msgspec.msgpack.encode({"version": 1, "header": header})]
        self._more = asyncio.Event()
        self._heard = self._cancelled = self._over = False
        self._task: asyncio.Task[None] | None = None
        loop.post(self._begin)

    # -- from any thread

    def send(self, ops: Sequence[AnyOp]) -> None:
        """See `Session.send`."""
        for message in _messages(ops):
            self._loop.post(functools.partial(self._say, message))

    def end(self) -> None:
        """See `Session.end`."""
        self._loop.post(functools.partial(self._say, msgspec.msgpack.encode({"end": True})))

    def cancel(self) -> None:
        """See `Session.cancel`."""
        self._loop.post(self._cancel)

    # -- on the loop

    def _begin(self) -> None:
        self._loop.live.add(self)
        self._task = self._loop.task(self._run())

    def _say(self, message: bytes) -> None:
        self._log.append(message)
        self._more.set()

    def _cancel(self) -> None:
        if self._cancelled or self._over:
            return
        self._cancelled = True
        if self._heard:
            self._say(msgspec.msgpack.encode({"cancel": True}))
        else:  # hanging up is as good, and needs no answer
            self._end(Ended(usage=Usage(), kind="aborted", message="the program was cancelled"))

    def lose(self, message: str) -> None:
        """See `Live.lose`."""
        self._end(Ended(usage=Usage(), kind="transport", message=message))

    def _end(self, ended: Ended) -> None:
        if self._over:
            return
        self._over = True
        self._loop.live.discard(self)
        with contextlib.suppress(Exception):  # one program's reader must not keep the others from theirs
            self._deliver(ended)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def _run(self) -> None:
        failed = 0
        while not self._over:
            try:
                await self._attempt()
                return
            except RemoteFailure as failure:
                if self._heard or failure.after is None or failed >= self._retries:
                    self._end(Ended(usage=Usage(), kind=failure.kind, message=failure.message))
                    return
                await asyncio.sleep(pause(failure.after, failed))
                failed += 1
            except Exception as error:  # noqa: BLE001 (the boundary of a program: its reader is told, others go on)
                self._end(Ended(usage=Usage(), kind="generation", message=f"{type(error).__name__}: {error}"))
                return

    async def _attempt(self) -> None:
        """The whole program on one socket."""
        socket = await self._sockets.take()
        kept = False
        writer = asyncio.ensure_future(self._write(socket))
        try:
            ended = await self._read(socket)
            kept = not ended.kind  # else some of what was sent may still be on its way
        except ConnectionClosed as error:
            raise _closed(error) from None
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await writer
            await (self._sockets.put(socket) if kept else socket.close())
        self._end(ended)

    async def _write(self, socket: ClientConnection) -> None:
        sent = 0
        while True:
            self._more.clear()
            while sent < len(self._log):
                message = self._log[sent]
                sent += 1
                await socket.send(message)
                if self._heard:  # it will not be said again
                    del self._log[:sent]
                    sent = 0
            await self._more.wait()

    async def _read(self, socket: ClientConnection) -> Ended:
        async for data in socket:
            try:
                event = _EVENTS.decode(data if isinstance(data, bytes) else data.encode())
            except msgspec.DecodeError as error:
                raise RemoteFailure("generation", f"an event of the server is not understood: {error}") from None
            if isinstance(event, _Refusal):
                after = event.retry_after or 0.0 if event.status in AGAIN else None
                raise failure_of(event.status, event.error, after)
            self._heard = True
            if isinstance(event, Ended):
                return event
            self._deliver(event)
        raise RemoteFailure("transport", "the server closed the socket before the program had ended", after=0.0)


def _closed(error: ConnectionClosed) -> RemoteFailure:
    if error.rcvd is not None and error.rcvd.code == 1009:
        return RemoteFailure("constraint", f"an operation is larger than the server takes: {error.rcvd.reason}")
    return RemoteFailure("transport", f"the connection to the server was lost: {error}", after=0.0)


def _messages(ops: Sequence[AnyOp]) -> list[bytes]:
    """Operations as messages, none larger than it must be. Raises `ConstraintError`."""
    try:
        message = msgspec.msgpack.encode({"ops": tuple(ops)})
    except UnicodeEncodeError as error:
        raise ConstraintError(f"the text has a lone surrogate, which is no Unicode: {error.reason}") from None
    if len(message) <= LARGEST or len(ops) <= 1:
        return [message] if ops else []
    half = len(ops) // 2
    return [*_messages(ops[:half]), *_messages(ops[half:])]
