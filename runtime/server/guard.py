"""The gate in front of every route: who asks, from where, how much, for how long.

In: ASGI messages as the network brought them. Out: the same, with `scope["ramet.caller"]` filled, or an answer of the
error taxonomy. Pure ASGI and deny by default: a path is open only if it is listed here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.settings import LOOPBACK, Settings
from ramet.runtime.server.wire import refusal

OPEN = frozenset(("/health", "/ready", "/ping"))
ADMIN = frozenset(("/flush_cache", "/reset_prefix_cache"))
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")
Headers = dict[bytes, bytes]


class Guard:
    """An ASGI application around another one.

    Refuses: a missing or wrong key (401), a key that is not the admin's on control paths (403), a Host that is not
    ours on loopback (403: DNS rebinding), a foreign Origin (403), compressed bodies (415), bodies over `max_body` as
    they arrive (413), bodies that take longer than `body_timeout` (408).
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
        headers: Headers = dict(scope["headers"])
        label = _label(headers)
        caller = Caller(label=label)
        try:
            self._from(headers)
            caller = self._caller(scope["path"], headers, label)
            limited = self._limited(scope, headers, receive)
        except Failure as failure:
            await _refuse(failure, caller, scope, receive, send)
            return
        scope["ramet.caller"] = caller
        sent = _Sent(send)
        try:
            await self._app(scope, limited, sent)
        except Failure as failure:  # raised by the body's limits, on the way through the application
            if sent.begun:
                raise
            await _refuse(failure, caller, scope, receive, send)

    # -- where from

    def _from(self, headers: Headers) -> None:
        settings = self._settings
        host = headers.get(b"host", b"").decode("latin-1")
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if settings.host in LOOPBACK and name not in (*LOOPBACK, *settings.allowed_host):
            raise Failure(
                403, "this Host is not served here; name it with --allowed-host", type="permission_error", code="host"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        mine = origin.partition("://")[2] == host
        if origin and not mine and origin not in settings.cors_origin and "*" not in settings.cors_origin:
            raise Failure(
                403, "this Origin may not call the server; see --cors-origin", type="permission_error", code="origin"
            )

    # -- who

    def _caller(self, path: str, headers: Headers, label: str) -> Caller:
        if not self._keys and not self._admin:
            return Caller(self.namespace(b""), label, True, self._deadline(headers))
        given = _given(headers)
        admin = bool(self._admin) and hmac.compare_digest(given, self._admin)
        known = [key for key in self._keys if hmac.compare_digest(given, key)]
        is_open = path in OPEN or (path == "/metrics" and self._settings.metrics_public)
        if not (admin or known or is_open or not self._keys):
            hint = "give it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            why = "the API key is wrong" if given else "an API key is needed"
            raise Failure(401, f"{why}; {hint}", code="invalid_api_key")
        if path in ADMIN and self._admin and not admin:
            raise Failure(403, "this needs the admin key", type="permission_error", code="admin_only")
        key = known[0] if known else given if admin else b""
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
            raise Failure(400, "`X-Request-Timeout` must be a positive number of seconds", param="X-Request-Timeout")
        return asyncio.get_running_loop().time() + (seconds if most is None else min(seconds, most))

    # -- how much

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        if scope["type"] != "http":
            return receive
        if headers.get(b"content-encoding", b"identity").lower() not in (b"", b"identity"):
            raise Failure(415, "compressed bodies are not accepted", code="unsupported_media_type")
        declared = headers.get(b"content-length", b"0")
        most = self._settings.max_body
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        return _Body(receive, most, self._settings.body_timeout)


class _Body:
    """Counts a body as it arrives, and bounds how long that takes."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive = receive
        self._left = most
        self._most = most
        self._seconds = seconds
        self._ends = time.monotonic() + seconds
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
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
    """Remembers whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


def _too_large(most: int) -> Failure:
    return Failure(413, f"the body is larger than {most} bytes", code="request_too_large")


def _label(headers: Headers) -> str:
    text = headers.get(b"x-request-id", b"").decode("latin-1")
    return text if _LABEL.fullmatch(text) else secrets.token_hex(16)


def _given(headers: Headers) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    return headers.get(b"x-api-key", b"")


async def _refuse(failure: Failure, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": failure.message[:120]})
        return
    response = refusal(failure, caller)
    response.headers["Connection"] = "close"  # what is left of the body is not read
    await response(scope, receive, send)
