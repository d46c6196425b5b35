"""The server's log: lines of text or of JSON on standard error.

In: records of `logging`, requests as they end, the engine's figures. Out: one line each, escaped; prompts and what was
generated from them never appear: what an unforeseen error said is left out too, since it may quote them.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import re
import sys
import time
import traceback
from typing import Any, Literal, TextIO

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.runtime.messages import Stats
from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.service import Service

LOG = logging.getLogger("ramet.server")
ACCESS = logging.getLogger("ramet.access")
PROBED = frozenset(("/health", "/ready", "/ping", "/metrics"))  # asked every few seconds: no line while all is well
PERIOD = 10.0  # seconds between two lines about throughput
FIELDS = ("request_id", "method", "path", "status", "seconds")
_UNSAFE = re.compile(r"[^\x20-\x7e\u00a1-\u1fff\u2030-\u2fef\u3001-\ud7ff]")


def escaped(text: str) -> str:
    """Text that cannot end its line, move the cursor, or turn the direction of writing."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


class Lines(logging.Formatter):
    """Formats a record as a line of text or of JSON; with `traces` False an error is its type and where it was raised,
    without its words."""

    def __init__(self, form: Literal["text", "json"], *, traces: bool) -> None:
        super().__init__()
        self._json = form == "json"
        self._traces = traces

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),
        }
        fields |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = self._error(record.exc_info[1])
        if self._json:
            return msgspec.json.encode({k: escaped(v) if isinstance(v, str) else v for k, v in fields.items()}).decode()
        rest = " ".join(f"{k}={v}" for k, v in fields.items() if k in (*FIELDS, "error"))
        return escaped(f"{fields['time']} {record.levelname:7} {fields['message']} {rest}".rstrip())

    def _error(self, error: BaseException) -> str:
        if self._traces:
            return "".join(traceback.format_exception(error))
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        places = " > ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames)
        return f"{type(error).__name__} at {places}"


def configure(level: str, form: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Send the log of the server and of uvicorn to `stream`; only "debug" quotes what errors said."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines(form, traces=level == "debug"))
    for name, least in (("ramet", level), ("uvicorn", "info" if level == "debug" else "warning"), ("asyncio", "error")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(max(getattr(logging, level.upper()), getattr(logging, least.upper())))


class Access:
    """An ASGI application around another one: a line per request that was refused or failed, and at "debug" per
    request, but for probes that went well."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, and say how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            level = logging.DEBUG if status < 400 else logging.WARNING if status >= 500 else logging.INFO
            if ACCESS.isEnabledFor(level) and not (scope["path"] in PROBED and status < 400):
                _access(level, scope, status, time.monotonic() - began)


def _access(level: int, scope: Scope, status: int, seconds: float) -> None:
    caller = scope.get("ramet.caller")
    what = {
        "request_id": caller.label if isinstance(caller, Caller) else "",
        "method": scope["method"],
        "path": scope["path"][:256],  # the query may hold what is nobody's business
        "status": status,
        "seconds": round(seconds, 4),
    }
    ACCESS.log(level, "request", extra=what)


async def throughput(service: Service) -> None:
    """A line every `PERIOD` seconds while something runs or waits. Ends by cancellation."""
    before: Stats | None = None
    while True:
        await asyncio.sleep(PERIOD)
        if not service.running + service.waiting and before is None:
            continue
        try:
            stats = await service.stats(timeout=PERIOD)
        except Failure:
            before = None
            continue
        if before is not None and stats.steps > before.steps:
            LOG.info(pace(before, stats, service.waiting))
        before = stats if service.running + service.waiting else None


def pace(before: Stats, stats: Stats, queued: int, seconds: float = PERIOD) -> str:
    """What the engine did between two looks at it."""
    computed = (stats.computed_tokens - before.computed_tokens) / seconds
    generated = (stats.generated_tokens - before.generated_tokens) / seconds
    steps = max(1, stats.steps - before.steps)
    return (
        f"running {stats.running}, waiting {stats.waiting + queued}; generated {generated:.0f} tokens/s, computed "
        f"{computed:.0f}; step {(stats.step_seconds - before.step_seconds) / steps * 1e3:.1f} ms; "
        f"KV {stats.kv_used / max(1, stats.kv_total):.0%} used, {stats.kv_cached / max(1, stats.kv_total):.0%} cached"
    )
