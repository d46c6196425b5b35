"""The gate in front of every route: who asks, from where, how much, for how long.

In: ASGI messages as the network brought them. Out: the same, with `scope["ramet.caller"]` filled, or an answer of the
error taxonomy. Pure ASGI and deny by default: a path is open only if it is listed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure, bad
from ramet.runtime.server.settings import LOOPBACK, Settings
from ramet.runtime.server.vendor_errors import refusal

OPEN = frozenset(("/health", "/ready", "/ping"))
PAGE = "/dashboard"
LINGER = (2.0, 256 << 20)  # seconds and bytes for which the rest of a refused body is read and thrown away
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ONCE = (
    *(b"host", b"authorization", b"x-api-key", b"origin", b"content-length", b"content-type", b"content-encoding"),
    *(b"transfer-encoding", b"x-request-id", b"x-request-timeout"),
)
Headers = dict[bytes, bytes]


class Guard:
    """An ASGI application around another one.

    Refuses: a missing or wrong key (401), a Host that is not ours on loopback (403: DNS rebinding), a page of a foreign
    origin (403), a header that matters twice and control characters in a path (400), compressed bodies (415), bodies
    over `max_body` as they arrive (413), bodies that take longer than `body_timeout` (408). What refuses a body ends
    its connection. Routes of control check `Caller.admin` themselves (`wire.admin_of`).
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._secret = secrets.token_bytes(32)  # of this server's life: cache namespaces cannot be computed outside
        self._keys = tuple(key.encode() for key in settings.api_key)
        self._admin = settings.admin_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then hand on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["root_path"] = self._settings.root_path.rstrip("/")
        headers: Headers = dict(scope["headers"])
        label = _label(headers)
        caller = Caller(label=label)
        try:
            _check_form(scope)
            self._from(headers)
            caller = self._caller(scope["path"], headers, label)
            limited = self._limited(scope, headers, receive)
        except Failure as failure:
            scope["ramet.caller"] = caller  # for the log
            await _refuse(failure, caller, scope, receive, send)
            return
        scope["ramet.caller"] = caller
        sent = _Sent(send, limited)
        refused: Failure | None = None
        try:
            await self._app(scope, limited, sent)
        except Failure as failure:  # for which the application has no answer
            if sent.begun:
                raise
            refused = failure
        refused = sent.refused or refused
        if refused is not None:
            await _refuse(refused, caller, scope, receive, send)

    # -- where from

    def _from(self, headers: Headers) -> None:
        settings = self._settings
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if settings.host in LOOPBACK and name not in (*LOOPBACK, *(h.lower() for h in settings.allowed_host)):
            message = "this Host is not served here; name it with --allowed-host"
            raise Failure(403, message, type="permission_error", code="host")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        foreign = headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")  # GETs name no origin
        allowed = (*(o.lower() for o in settings.cors_origin), f"http://{host}", f"https://{host}")
        if (origin not in allowed if origin else foreign) and "*" not in settings.cors_origin:
            message = "this Origin may not call the server; see --cors-origin"
            raise Failure(403, message, type="permission_error", code="origin")

    # -- who

    def _caller(self, path: str, headers: Headers, label: str) -> Caller:
        if not self._keys and not self._admin:
            return Caller(self.namespace(b""), label, True, self._deadline(headers))
        given = _given(headers)
        admin = bool(self._admin) and any(hmac.compare_digest(each, self._admin) for each in given)
        known = [key for key in self._keys if any(hmac.compare_digest(each, key) for each in given)]
        is_open = path in OPEN or (path == "/metrics" and self._settings.metrics_public)
        is_open = is_open or (path == PAGE and self._settings.dashboard)  # an empty page: its data asks for the key
        if not (admin or known or is_open or not self._keys):
            hint = "give it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            why = "the API key is wrong" if given else "an API key is needed"
            raise Failure(401, f"{why}; {hint}", code="invalid_api_key")
        key = known[0] if known else self._admin if admin else b""
        return Caller(self.namespace(key), label, admin or not self._admin, self._deadline(headers))

    def namespace(self, key: bytes) -> str:
        """The prefix-cache namespace of a key: a keyed hash, so that nobody outside can name another's."""
        return hmac.new(self._secret, key, hashlib.sha256).hexdigest()[:32]

    def _deadline(self, headers: Headers) -> float | None:
        most = self._settings.request_timeout or None
        text = headers.get(b"x-request-timeout")
        if text is None:
            return None if most is None else asyncio.get_running_loop().time() + most
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 1e7:
            raise bad("`X-Request-Timeout` must be a positive number of seconds", "X-Request-Timeout")
        return asyncio.get_running_loop().time() + (seconds if most is None else min(seconds, most))

    # -- how much

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        if scope["type"] != "http":
            return receive
        coded = headers.get(b"content-encoding", b"identity").lower() not in (b"", b"identity")
        if coded or headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise Failure(415, "compressed bodies are not accepted", code="unsupported_media_type")
        declared = headers.get(b"content-length", b"0")
        most = self._settings.max_body
        if declared.isdigit() and (len(declared) > 18 or int(declared) > most):
            raise _too_large(most)
        return _Body(receive, most, self._settings.body_timeout)


class _Body:
    """Counts a body as it arrives, and bounds how long that takes; `failure` is what it was refused with."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive = receive
        self._left = most
        self._most = most
        self._seconds = seconds
        self._ends = time.monotonic() + seconds
        self._whole = False
        self.failure: Failure | None = None

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            return await self._counted()
        except Failure as failure:
            self.failure = failure
            raise

    async def _counted(self) -> Message:
        try:
            async with asyncio.timeout(max(0.0, self._ends - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            what = f"the body did not arrive within {self._seconds:g} s"
            raise Failure(408, what, code="request_timeout") from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._left < 0:
                raise _too_large(self._most)
        return message


class _Sent:
    """Passes an answer on. Once its body was refused, no answer of the application begins: the guard has a word for
    that, after which it ends the connection, on which the rest of the body may still be coming."""

    def __init__(self, send: Send, body: Receive) -> None:
        self._send = send
        self._body = body
        self.begun = False

    @property
    def refused(self) -> Failure | None:
        """What the body was refused with, unless an answer had begun by then."""
        return None if self.begun or not isinstance(self._body, _Body) else self._body.failure

    async def __call__(self, message: Message) -> None:
        if self.begun or self.refused is None:
            self.begun = True
            await self._send(message)


def _too_large(most: int) -> Failure:
    return Failure(413, f"the body is larger than {most} bytes", code="request_too_large")


def _label(headers: Headers) -> str:
    text = headers.get(b"x-request-id", b"").decode("latin-1")
    return text if _LABEL.fullmatch(text) else secrets.token_hex(16)


def _given(headers: Headers) -> list[bytes]:
    """Keys that a client shows: some send both headers, and only one of them is meant."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    bearer = token.strip() if scheme.lower() == b"bearer" else b""
    return [key for key in (bearer, headers.get(b"x-api-key", b"")) if key]


def _check_form(scope: Scope) -> None:
    names = [name for name, _ in scope["headers"]]
    for name in _ONCE:
        if names.count(name) > 1:
            raise Failure(400, f"the header {name.decode()} is given twice", code="invalid_header")
    if not scope["path"].isprintable():  # a router's pattern may match in front of a newline what was asked about here
        raise Failure(400, "the path has control characters", code="invalid_path")


async def _refuse(failure: Failure, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and read on for a while what the client is still sending: closing on it could destroy the answer."""
    response = refusal(scope["path"], failure, caller)
    if scope["type"] == "websocket":
        await _refuse_websocket(failure, response, scope, receive, send)
        return
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER[0]):
            left, more = LINGER[1], True
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse_websocket(failure: Failure, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": failure.message[:120]})
        return
    start = {"type": "websocket.http.response.start", "status": failure.status, "headers": response.raw_headers}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": response.body})
