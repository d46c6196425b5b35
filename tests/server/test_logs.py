"""What the log says of requests and of a model on its way, and that each line of JSON is a record."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ramet.runtime.server import logs
from ramet.runtime.server.banner import progress
from ramet.runtime.server.call import Caller


def asked(path: str, status: int, level: str = "debug") -> list[dict[str, object]]:
    """The records of one request that was answered with `status`."""
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("ramet", "uvicorn", "asyncio")]
    before = [(each.handlers, each.propagate, each.level) for each in loggers]
    logs.configure(level, "json", stream)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=status)(scope, receive, send)

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    async def sent(message: Message) -> None:
        return

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "ramet.caller": Caller(label="one")}
    try:
        asyncio.run(logs.Access(app)(scope, nothing, sent))
    finally:
        for each, (handlers, each.propagate, level_before) in zip(loggers, before, strict=True):
            each.handlers = handlers
            each.setLevel(level_before)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("path", sorted(logs.PROBED))
def test_probes_are_logged_when_they_fail_alone(path: str) -> None:
    assert asked(path, 200) == []
    (line,) = asked(path, 503, "info")
    assert (line["level"], line["path"], line["status"], line["request_id"]) == ("warning", path, 503, "one")


def test_control_other_requests_are_logged_at_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line["path"] for line in asked("/generate", 200)] == ["/generate"] and asked("/generate", 200, "info") == []
    monkeypatch.setattr(logs, "PROBED", frozenset())
    assert [line["path"] for line in asked("/health", 200)] == ["/health"]


@pytest.mark.parametrize("recorded", [True, False])
def test_phases_of_a_model_are_lines_or_records(recorded: bool) -> None:
    stream, records = io.StringIO(), list[str]()
    log: Callable[[str], None] | None = records.append if recorded else None
    with progress(stream, log) as report:
        for done in (0, 5, 10):
            report("fetching a", done, 2_000_000)
        report("loading a", 0, 0)
    want = ["model: fetching a (2 MB)", "model: loading a"]
    assert (records, stream.getvalue().splitlines()) == ((want, []) if recorded else ([], want))
