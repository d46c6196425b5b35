"""HTTP to a server of language models: JSON in, JSON or server-sent events out, errors of one kind.

In: paths and bodies. Out: parsed answers. What fails before anything of the answer was received is tried again, with
`Retry-After` where the server says when; everything that fails for good is a `RemoteFailure`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx
import msgspec

from ramet.frontend.backends.loop import Loop
from ramet.frontend.errors import FAILURES, EngineError, GenerationError

CONNECTIONS = 128  # kept and opened at most, to one server
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever the server asks for
AGAIN = frozenset((408, 429, 500, 502, 503, 504))


class RemoteFailure(Exception):
    """What a server answered, or that it did not. `kind` is a key of `errors.FAILURES`; `status` is 0 when there was no
    answer; `after` the seconds until it may be tried again, if that makes sense at all."""

    def __init__(self, kind: str, message: str, *, status: int = 0, after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.after = after

    def error(self) -> GenerationError:
        """The same as the language's own error."""
        error = FAILURES.get(self.kind, GenerationError)(self.message)
        error.status = self.status or error.status
        error.retryable = self.kind == "transport"
        return error


def checked_url(url: str, name: str = "url") -> str:
    """A base URL without a slash at its end. Raises `EngineError` for what is none."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise EngineError(f"{name}={url!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EngineError(f"{name}={url!r}: must begin with http:// or https:// and name a host")
    return url.rstrip("/")


def checked_key(api_key: str | None) -> dict[str, str]:
    """The header that shows a key. Raises `EngineError` for one that no header can carry."""
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise EngineError("api_key: a key is printable ASCII without spaces")
    return {"Authorization": f"Bearer {api_key}"}


def checked_patience(timeout: float, retries: int) -> None:
    """Raise `EngineError` unless `timeout` is a positive number of seconds and `retries` a count."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not math.isfinite(timeout) or timeout <= 0:
        raise EngineError(f"timeout={timeout!r}: must be a positive number of seconds")
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 100:
        raise EngineError(f"retries={retries!r}: must be an integer from 0 to 100")


class Http:
    """One server, one pool of connections. Used on one event loop. `timeout` is the longest silence in seconds."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float, retries: int) -> None:
        self.url = url
        self._retries = retries
        self._timeout = timeout
        self._client = httpx.AsyncClient(
            headers=dict(headers),
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def json(self, method: str, path: str, body: object = None) -> Any:
        """The JSON of an answer. `path` is below the server's URL, or a whole URL. Raises `RemoteFailure`."""
        failed = 0
        while True:
            try:
                async with self.answer(method, path, body) as response:
                    return _value(await response.aread(), f"{method} {response.url}")
            except RemoteFailure as failure:
                await self._pause(failure, failed)
                failed += 1

    async def stream(self, path: str, body: object) -> AsyncGenerator[Any, None]:
        """The JSON of each event of a stream, until "[DONE]". Close it to hang up. Raises `RemoteFailure`: also when
        the stream breaks off, or carries an error."""
        failed, received = 0, False
        while True:
            try:
                async with self.answer("POST", path, body) as response:
                    async with contextlib.aclosing(data_of(response)) as events:
                        async for event in events:
                            received = True
                            yield _checked(event)
                    return
            except RemoteFailure as failure:
                if received:
                    raise
                await self._pause(failure, failed)
                failed += 1

    @contextlib.asynccontextmanager
    async def answer(
        self, method: str, path: str, body: object, more: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """An answer with status 200, its body not read yet; `more` are headers of the request. Raises `RemoteFailure`,
        and makes one of what goes wrong while it is read."""
        url = path if path.startswith("http") else self.url + path
        content = None if body is None else _encoded(body)
        headers = {**({} if body is None else {"Content-Type": "application/json"}), **(more or {})}
        try:
            async with self._client.stream(method, url, content=content, headers=headers) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise refusal(response)
                yield response
        except httpx.TimeoutException as error:
            connecting = isinstance(error, httpx.ConnectTimeout)
            what = "no connection" if connecting else f"no answer for {self._timeout:g} s"
            raise RemoteFailure("transport", f"{method} {url}: {what}", after=0.0 if connecting else None) from None
        except (httpx.TransportError, OSError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, httpx.ConnectError):
                reason = f"no connection ({reason}); is the server running there?"
            raise RemoteFailure("transport", f"{method} {url}: {reason}", after=0.0) from None

    async def _pause(self, failure: RemoteFailure, failed: int) -> None:
        """Wait for the next attempt, or raise `failure` when there is none."""
        if failure.after is None or failed >= self._retries:
            raise failure
        await asyncio.sleep(pause(failure.after, failed))


async def connected(loop: Loop, url: str, headers: Mapping[str, str], timeout: float, retries: int) -> Http:
    """The pool of connections, made on the loop that uses it, and closed with it."""
    http = Http(url, headers, timeout, retries)
    loop.closers.append(http.close)
    return http


def pause(after: float, failed: int) -> float:
    """Seconds until the next attempt: what the server asked for, or more with each attempt that failed."""
    return min(LONGEST_PAUSE, max(after, 0.1 * 2.0**failed))


def _encoded(body: object) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise RemoteFailure("constraint", f"the text is no Unicode (a lone surrogate): {error.reason}") from None


def _value(raw: bytes, what: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RemoteFailure("generation", f"{what}: the answer is not JSON: {raw[:80]!r}", status=200) from None


async def data_of(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events, line by line (not by `aiter_lines`, which also cuts at U+2028 inside JSON)."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield data
    raise RemoteFailure("transport", f"{response.url}: the stream broke off before its end", after=0.0)


def _checked(raw: bytes) -> Any:
    event = _value(raw, "an event of the stream")
    if isinstance(event, dict) and event.get("error"):
        raise failure_of(500, event, None)
    return event


def refusal(response: httpx.Response) -> RemoteFailure:
    """The failure that an answer with another status than 200 is; its body was read."""
    try:
        body = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None
    failure = failure_of(response.status_code, body, _retry_after(response))
    failure.message = f"{response.request.method} {response.url}: {response.status_code}: {failure.message}"
    return failure


def failure_of(status: int, body: Any, after: float | None) -> RemoteFailure:
    """The failure that a status and an error object (OpenAI's, or something like it) mean."""
    error = body.get("error", body) if isinstance(body, dict) else body
    code = error.get("code") if isinstance(error, dict) else None
    text = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    if isinstance(code, int) and 400 <= code < 600:  # some servers put the status there
        status = code
    if code == "context_length_exceeded":
        kind = "context"
    elif code == "aborted" or status == 499:
        kind = "aborted"
    elif status in AGAIN:
        kind = "transport"
    else:
        kind = "constraint" if status in (400, 422) else "generation"
    message = str(text) if text else f"status {status}"
    again = (after or 0.0) if status in AGAIN else None
    return RemoteFailure(kind, message, status=status, after=again)


def _retry_after(response: httpx.Response) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(response.headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
