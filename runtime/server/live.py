"""Programs that grow while they run, over a WebSocket.

The client's first message is {"version": 1, "header": {...}, "limits"?, "timeout"?}; then come {"ops": [...]},
{"end": true} and {"cancel": true} (the fields may share a message). The server's messages are events of `frontend.ir`;
"ended" is the last of a program, and the next one may begin on the same socket. A client that sends binary messages
speaks msgpack and is answered so (nan and infinities survive); text is JSON.

An operation that cannot be carried out fails by itself ("failed", kind "constraint" or "context"), and so does what
depends on it. What ends the whole program early is {"type": "error", "status", "error", "retry_after"?} and a close
code of 4000 + status: 4400 not understood or beyond a limit, 4408 no first message in time, 1009 or 4413 a message too
large, 4429 the queue is full, 4499 aborted, 4500 a bug, 4503 the engine or the server is going, 4504 the deadline. 1000
is an ordinary end, also after minutes without a new program. Before the socket opens, the guard refuses with HTTP's
status.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from ramet.frontend import ir
from ramet.runtime.server import failures, program_body
from ramet.runtime.server.bridge import EngineLost
from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure, bad
from ramet.runtime.server.program_body import Meter, Opening
from ramet.runtime.server.running import Duplex
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.strict_json import parse

IDLE = 300.0  # seconds that an open socket waits for its next program
WAITING = 16  # messages that are read ahead
OPENING = frozenset(("version", "header", "limits", "timeout"))
FIELDS = frozenset(("ops", "end", "cancel"))
Message = Mapping[str, Any]


class _Gone(Exception):
    """The client hung up."""


class _Line:
    """The socket: messages of the client in order, and answers in the form that it speaks."""

    def __init__(self, socket: WebSocket, most: int) -> None:
        self._socket = socket
        self._most = most
        self._packed = False
        self._inbox: asyncio.Queue[Message | Failure] = asyncio.Queue(WAITING)
        self.gone = asyncio.Event()

    async def listen(self) -> None:
        """Read until the client hangs up or sends what is no message."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self.gone.set()
                return
            try:
                await self._inbox.put(self._parsed(message))
            except Failure as failure:
                await self._inbox.put(failure)
                return

    def _parsed(self, message: Mapping[str, Any]) -> dict[str, Any]:
        raw = message.get("bytes")
        self._packed = raw is not None
        data: bytes = raw if raw is not None else message["text"].encode("utf-8", "surrogatepass")
        if len(data) > self._most:
            raise Failure(413, f"a message is larger than {self._most} bytes", code="request_too_large")
        value: Any = _unpacked(data) if self._packed else parse(data)
        if not isinstance(value, dict):
            raise bad("a message must be an object")
        for name in value:
            if name not in OPENING | FIELDS:
                known = ", ".join(sorted(OPENING | FIELDS))
                raise Failure(400, f"`{str(name)[:64]}` is not known; fields: {known}", code="unknown_parameter")
        found: dict[str, Any] = value
        return found

    async def next(self) -> Message:
        """The next message. Raises the `Failure` that it is, or `_Gone`."""
        message: Message | Failure = await self.attended(self._inbox.get())
        if isinstance(message, Failure):
            raise message
        return message

    async def attended(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`, which is cancelled when the client hangs up first: then raises `_Gone`."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Gone
            return task.result()
        finally:
            await _dropped(task, gone)

    async def send(self, payload: object) -> None:
        """Answer. Raises `_Gone`."""
        try:
            if self._packed:
                await self._socket.send_bytes(msgspec.msgpack.encode(payload))
            else:
                await self._socket.send_text(_json(payload))
        except (WebSocketDisconnect, RuntimeError):
            raise _Gone from None

    async def fail(self, failure: Failure) -> None:
        """Say what ended the program, and hang up."""
        after = {} if failure.retry_after is None else {"retry_after": failure.retry_after}
        await self.send({"type": "error", "status": failure.status, **failure.body(), **after})
        await self.close(4000 + failure.status, failure.message)

    async def close(self, code: int, reason: str = "") -> None:
        """Hang up."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(code, reason.encode("ascii", "replace").decode()[:100])


async def _dropped(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def _unpacked(data: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad(f"the message is not valid msgpack: {error}", code="invalid_msgpack") from None


def _json(payload: object) -> str:
    encoded = program_body.json_of(payload) if isinstance(payload, ir.Event) else msgspec.json.encode(payload)
    return encoded.decode()


async def converse(socket: WebSocket, service: Service, settings: Settings) -> None:
    """One client's programs, one after the other, until it hangs up."""
    caller = socket.scope["ramet.caller"]
    assert isinstance(caller, Caller), "the guard stands in front of every route"
    now = asyncio.get_running_loop().time
    span = None if caller.deadline is None else caller.deadline - now()  # of each program on this socket
    await socket.accept()
    line = _Line(socket, settings.max_body)
    listener = asyncio.ensure_future(line.listen())
    patience = settings.body_timeout
    try:
        while (message := await _first(line, patience)) is not None:
            owner = caller if span is None else replace(caller, deadline=now() + span)
            with service.accounts.request():
                await _Program(line, service, settings).run(message, owner)
            patience = IDLE
        await line.close(1000)
    except Failure as failure:
        with contextlib.suppress(_Gone):
            await line.fail(failure)
    except _Gone:
        pass
    except Exception as error:  # noqa: BLE001 (the request boundary: the client is told, the server goes on)
        with contextlib.suppress(_Gone):
            await line.fail(failures.of(error))
    finally:
        await _dropped(listener)


async def _first(line: _Line, patience: float) -> Message | None:
    """What begins the next program; None when nothing came. A late word about the last one is passed over."""
    while True:
        try:
            async with asyncio.timeout(patience):
                message = await line.next()
        except TimeoutError:
            if patience == IDLE:
                return None
            raise Failure(408, f"no message within {patience:g} s", code="request_timeout") from None
        if set(message) - {"end", "cancel"}:
            return message


class _Program:
    """One program of a socket."""

    def __init__(self, line: _Line, service: Service, settings: Settings) -> None:
        self._line = line
        self._service = service
        self._most = program_body.limits_of(settings)
        self._refused = Refused()
        self._meter: Meter

    async def run(self, message: Message, caller: Caller) -> None:
        """From its first message to its "ended". Raises `Failure`, or `_Gone`."""
        opening: Opening = program_body.opening_of(
            message.get("version"), message.get("header"), message.get("limits"), message.get("timeout"), self._most
        )
        self._meter = Meter(opening.limits, self._service.context)
        begin = self._service.duplex(opening.header, caller, timeout=opening.limits.seconds)
        duplex: Duplex = await self._line.attended(begin)
        async with duplex:
            rest = {name: value for name, value in message.items() if name in FIELDS}
            feeding = asyncio.ensure_future(self._feed(duplex, rest))
            telling = asyncio.ensure_future(self._tell(duplex))
            try:
                await asyncio.wait({feeding, telling}, return_when=asyncio.FIRST_COMPLETED)
                if not telling.done():
                    feeding.result()  # it ends by failing alone
                ended = telling.result()
            finally:
                await _dropped(feeding, telling)  # before "ended" is sent: what comes after it is the next program's
            await self._line.send(ended)

    async def _tell(self, duplex: Duplex) -> ir.Ended:
        async for event in duplex:
            if isinstance(event, ir.Ended):
                return event
            await self._line.send(event)
        raise AssertionError("the events of a program end with Ended")

    async def _feed(self, duplex: Duplex, message: Message) -> None:
        while True:
            if OPENING & set(message):
                raise bad("a program is under way on this socket: it must end before the next begins")
            ops = program_body.operations(message.get("ops", []))
            self._meter.take(ops)
            if ops:
                await self._send(duplex, ops)
            if _said(message, "end"):
                duplex.end()
            if _said(message, "cancel"):
                duplex.cancel()
            message = await self._line.next()

    async def _send(self, duplex: Duplex, ops: tuple[ir.AnyOp, ...]) -> None:
        """Hand operations over; when some of them are refused, all others still are."""
        going = [op for op in ops if not await self._follows(op)]
        try:
            await duplex.send(going)
        except EngineLost:
            return  # its events say so
        except Failure as failure:
            if failure.status != 400 or duplex_over(failure):
                raise
            if len(going) == 1:
                kind = "context" if failure.code == "context_length_exceeded" else "constraint"
                await self._fail(going[0], kind, failure.message)
                return
            for op in going:
                await self._send(duplex, (op,))

    async def _follows(self, op: ir.AnyOp) -> bool:
        """It depends on an operation that was refused: it fails too."""
        cause = self._refused.cause(op)
        if cause is not None:
            await self._fail(op, cause[0], f"depends on an operation that failed: {cause[1]}")
        return cause is not None

    async def _fail(self, op: ir.AnyOp, kind: str, message: str) -> None:
        self._refused.add(op, kind, message)
        if not isinstance(op, ir.Close):
            await self._line.send(ir.Failed(op=op.id, seq=op.seq, kind=kind, message=message))


def duplex_over(failure: Failure) -> bool:
    """It is not about an operation: the program takes none any more."""
    return failure.param == "ops"


def _said(message: Message, name: str) -> bool:
    value = message.get(name, False)
    if not isinstance(value, bool):
        raise bad(f"`{name}` must be true or false", name)
    return value


class Refused:
    """What depends on operations that were refused, and so never reached the engine."""

    def __init__(self) -> None:
        self._ops: dict[str, tuple[str, str]] = {}
        self._sequences: dict[str, tuple[str, str]] = {}
        self._unborn: set[str] = set()

    def add(self, op: ir.AnyOp, kind: str, message: str) -> None:
        """It was refused."""
        self._ops[op.id] = (kind, message)
        if isinstance(op, ir.Put | ir.Close):
            return
        self._sequences.setdefault(op.seq, (kind, message))
        if isinstance(op, ir.Fork):
            self._unborn.update(op.into)
            for path in op.into:
                self._sequences.setdefault(path, (kind, message))

    def cause(self, op: ir.AnyOp) -> tuple[str, str] | None:
        """Kind and message of what it depends on; None when it may be tried. What a branch holds can still be freed."""
        if isinstance(op, ir.Put):
            return None
        if isinstance(op, ir.Close):
            return self._sequences[op.seq] if op.seq in self._unborn else None
        found = [self._sequences.get(op.seq)]
        if isinstance(op, ir.Text):
            found += [self._ops.get(part.op) for part in op.parts if isinstance(part, ir.Ref)]
        elif isinstance(op, ir.Join):
            found += [self._sequences.get(path) for path in op.branches]
        return next((each for each in found if each is not None), None)
