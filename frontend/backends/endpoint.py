"""A server elsewhere as a backend: programs, where it is a ramet server, else SGLang's `/generate`.

In: a URL. Out: a `Backend`. What the server is, is asked once, when the endpoint is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.backends.duplex import SocketProgram, Sockets
from ramet.frontend.backends.http import RemoteFailure, checked_key, checked_patience, checked_url
from ramet.frontend.backends.loop import Loop
from ramet.frontend.backends.remote import RemoteProgram
from ramet.frontend.backends.sglang import GenerateRemote
from ramet.frontend.backends.submitted import submissions
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import Header
from ramet.frontend.plan_file import version

_MISSING = (404, 405, 501)


class Endpoint:
    """A server at `url` ("http://host:port"). A ramet server carries out whole programs, exactly as an `Engine` with
    its model would; a compiled plan without graph breaks goes there in one request. A server that speaks only SGLang's
    `/generate` gets one request per call; roles, seeds of a generation and token ids are refused there before any
    request, and a program's seed has no effect.

    `api_key` is shown as a bearer token. `timeout` (seconds) is the longest silence: of a connection that is being
    made, of a server that answers no ping, of a stream. `retries` is how often something is tried again of which
    nothing was received. Making one asks the server what it is; raises `EngineError` for arguments that cannot be meant
    and `TransportError` when the server cannot be reached, refuses the key, or speaks neither protocol. Close it, or
    use it as a context manager.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout: float = 60.0, retries: int = 2) -> None:
        self.url = checked_url(url).removesuffix("/v1")
        headers = checked_key(api_key)
        checked_patience(timeout, retries)
        self._retries = retries
        self._loop = Loop(f"Endpoint({self.url!r})")
        self._finalizer = weakref.finalize(self, self._loop.close)
        try:
            self._plans = self._loop.run(submissions(self._loop, self.url, headers, timeout, retries))
            self._http = self._plans.http
            self._sockets = Sockets(self.url, headers, timeout)
            self._loop.closers.append(self._sockets.close)
            info = self._ask("/server_info", "/get_server_info", "/get_model_info", "/model_info")
        except BaseException:
            self.close()
            raise
        self.speaks_programs = info.get("server") == "ramet"
        self._speaks_plans = self.speaks_programs and info.get("version") == version()
        incremental = bool(info.get("incremental_streaming_output") or info.get("stream_output"))
        self._remote = GenerateRemote(self._http, incremental=incremental)

    def _ask(self, *paths: str) -> dict[str, Any]:
        """The first of `paths` that the server knows, as an object."""
        for path in paths:
            try:
                found = self._loop.run(self._http.json("GET", path))
            except RemoteFailure as failure:
                if failure.status in _MISSING:
                    continue
                raise self._error(failure) from None
            if isinstance(found, dict):
                return found
        missing = RemoteFailure("transport", f"{self.url}: speaks neither ramet's nor SGLang's protocol", status=404)
        raise self._error(missing, retryable=False)

    @staticmethod
    def _error(failure: RemoteFailure, retryable: bool = True) -> Exception:
        """Whatever keeps the endpoint from being of use is a `TransportError`, `retryable` where time may mend it."""
        mends = retryable and failure.kind == "transport"
        known = RemoteFailure("transport", failure.message, status=failure.status).error()
        known.retryable = mends
        return known

    def open(self, header: Header, deliver: Deliver) -> Session:
        """See `Backend.open`."""
        if self.speaks_programs:
            return SocketProgram(self._loop, self._sockets, header, deliver, self._retries)
        return RemoteProgram(self._loop, self._remote, header, deliver)

    def submit(self, header: Header, plan: bytes, args: Mapping[str, str], deliver: Deliver) -> Session | None:
        """See `PlanBackend.submit`: a ramet server of the same version takes plans as a whole, each in one request, and
        makes their decisions itself. The request has an idempotency key, so that one which is sent again after the
        connection was lost attaches to the run instead of beginning another."""
        if not self._speaks_plans:
            return None
        return self._plans.open(header, plan, args, deliver, lambda: self.open(header, deliver))

    def info(self) -> dict[str, object]:
        """What the server says of itself; "model" and "context_length" where it says them in any way. Raises
        `TransportError`."""
        info = self._ask("/server_info", "/get_server_info", "/get_model_info", "/model_info")
        model = info.get("model", info.get("model_path", ""))
        context = info.get("context_length") or info.get("max_total_num_tokens") or 0
        return {**info, "model": model, "context_length": context}

    def flush_cache(self) -> bool:
        """Ask the server to forget cached prefixes that nothing under way uses. Raises `TransportError`, and
        `ConstraintError` where the server wants another key for it."""
        try:
            return bool(self._loop.run(self._flush()))
        except RemoteFailure as failure:
            if failure.status == 403:
                raise ConstraintError(f"flush_cache: {failure.message}") from None
            raise self._error(failure) from None

    async def _flush(self) -> bool:
        try:
            await self._http.json("POST", "/flush_cache", {})
        except RemoteFailure as failure:
            if failure.status != 200:  # SGLang answers in words
                raise
        return True

    def close(self) -> None:
        """See `Backend.close`."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"
