"""`Idempotency-Key`: a request that is sent again attaches to the run of the first one, or gets its recorded answer.

In: POST requests with the header, behind the guard. Out: the application's answer, made once; later ones carry
`Idempotent-Replayed: true`. Semantics of the IETF draft httpapi-idempotency-key-header, for whole answers and streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.runtime.server.failures import Failure, bad, late
from ramet.runtime.server.idempotency_records import Bounds, Key, Record, Shelf, too_large
from ramet.runtime.server.vendor_errors import refusal
from ramet.runtime.server.wire import caller_in, gone

NAME = b"idempotency-key"
LONGEST = 255  # characters of a key
LOG = logging.getLogger("ramet.server")
_PLAIN = re.compile(rb"[\x21\x23-\x7e][\x21-\x7e]*")
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"')  # RFC 9651, a String


class Idempotency:
    """An ASGI application around another one.

    Keys are separate for each API key. The run of a keyed request belongs to the server, not to the connection: it goes
    on when its client vanishes, for as long as answers are kept. Kept is what came to its end with status 200;
    what was refused, or broke off, frees its key, so that a retry is a new attempt. The deadline of a run is that of
    the request that began it; `X-Request-Timeout` of a later one limits how long that waits for the answer to begin.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._runs: set[asyncio.Task[None]] = set()
        self.shelf = Shelf(bounds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what has no key; answer what has one."""
        given = [value for name, value in scope.get("headers", ()) if name == NAME]
        if given and scope["type"] == "websocket":
            raise bad("a WebSocket has no Idempotency-Key: POST the program as a whole", "Idempotency-Key")
        if not given or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        if body is None:
            return
        try:
            record, replayed = self._record(_key(given, scope), scope, body)
        except Failure as failure:  # the body was read: the guard, which reads the rest of it, is not needed
            await refusal(scope["path"], failure, caller_in(scope))(scope, receive, send)
            return
        with record.reader() as reader:
            await _answer(record, reader, replayed, scope, receive, send)

    def _record(self, key: Key, scope: Scope, body: bytes) -> tuple[Record, bool]:
        """The answer to this request, and whether another request began it. Raises `Failure`."""
        wanted = _fingerprint(scope, body)
        found = self.shelf.find(key)
        if found is None:
            record = self.shelf.begin(key, wanted)
            self._begin(record, scope, body)
            return record, False
        if found.fingerprint != wanted:
            raise Failure(
                422,
                "this Idempotency-Key was used for another request: a key stands for one path and one body",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        if found.cut:
            raise too_large(self.shelf.bounds)
        return found, True

    def _begin(self, record: Record, scope: Scope, body: bytes) -> None:
        inner = {**scope, "ramet.unfinished": record.unfinished}
        run = asyncio.create_task(self._run(record, inner, body))
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)

    async def _run(self, record: Record, scope: Scope, body: bytes) -> None:
        """The application's work, which no connection owns."""
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if first:
                return first.pop()
            await record.stopped.wait()
            return {"type": "http.disconnect"}

        try:
            await self._app(scope, receive, record.take)
        except Exception:
            LOG.exception("a request with an Idempotency-Key failed")
        finally:
            record.end()


async def _answer(record: Record, reader: int, replayed: bool, scope: Scope, receive: Receive, send: Send) -> None:
    """Tell one client, until the end or until it is gone."""
    caller = caller_in(scope)
    deadline = caller.deadline if replayed else None  # the first one's is the run's own
    telling = asyncio.ensure_future(record.tell(reader, send, replayed=replayed, deadline=deadline))
    leaving = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()
    except TimeoutError:
        failure = late("the deadline passed while the request waited for the answer under its Idempotency-Key")
        await refusal(scope["path"], failure, caller)(scope, receive, send)
    finally:
        for each in (telling, leaving):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await each


async def _body(receive: Receive) -> bytes | None:
    """A request's body; None when the client went away before its end. Raises the guard's `Failure`."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _key(given: list[bytes], scope: Scope) -> Key:
    """The key, in the caller's own namespace. Raises `Failure` 400."""
    if len(given) > 1:
        raise bad("the header idempotency-key is given twice", "Idempotency-Key", code="invalid_header")
    text, quoted = given[0].strip(), _QUOTED.fullmatch(given[0].strip())
    if len(text) > LONGEST or not (quoted or _PLAIN.fullmatch(text)):
        message = f"`Idempotency-Key` must be 1 to {LONGEST} visible ASCII characters, in double quotes or without"
        raise bad(message, "Idempotency-Key", code="invalid_idempotency_key")
    caller = caller_in(scope)
    value = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else text
    return caller.namespace, caller.admin, value


def _fingerprint(scope: Scope, body: bytes) -> bytes:
    """What tells one request from another: path, query and body."""
    found = hashlib.sha256()
    for part in (scope["path"].encode(), scope.get("query_string", b""), body):
        found.update(len(part).to_bytes(8))
        found.update(part)
    return found.digest()
