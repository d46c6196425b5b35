"""Servers for tests: the whole application on a free port of the loopback interface, or in process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp

from ramet.frontend.backends.engine import Engine
from ramet.runtime.client import EngineClient
from ramet.runtime.grammar.limits import SpecLimits
from ramet.runtime.server.app import create_app
from ramet.runtime.server.gate import GateLimits
from ramet.runtime.server.launch import listen, uvicorn_config
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.routes import ROUTERS
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.start import configure
from ramet.runtime.template import ChatTemplate

from ..runtime.engines import text_of

TINY: dict[str, Any] = {"threads": 1, "dtype": "float32", "kv_tokens": 4096, "context": 1024, "device": "cpu"}
WAIT = 60.0  # seconds until a test gives up on what hangs
PATIENT = SpecLimits(wall_seconds=WAIT / 2, answer_seconds=WAIT / 2)  # how busy the machine is refuses no constraint


@dataclass(frozen=True)
class Served:
    """A running server: its base URL, and the parts behind it."""

    url: str
    service: Service
    client: EngineClient
    loop: asyncio.AbstractEventLoop

    def offline(self) -> Engine:
        """The same engine as a backend of the language: what HTTP gives must be what it gives."""
        engine = object.__new__(Engine)
        engine.model = "random:tiny"
        engine._client = self.client
        return engine


def engine_client(*, in_process: bool = True, **options: Any) -> EngineClient:
    """A client of a small engine. Constraints are compiled by a process that is started when the first one comes, and
    not with the server: most servers of the tests get none."""
    config = configure("random:tiny", {**TINY, **options})
    made = EngineClient(config, lambda: text_of(config), in_process=in_process)
    made.compiler._limits = PATIENT
    made.compiler.warm = lambda: None  # type: ignore[method-assign]
    return made


def make_app(client: EngineClient, settings: Settings, names: tuple[str, ...] = ("tiny",)) -> tuple[ASGIApp, Service]:
    """The whole application in front of it, and its service."""
    limits = GateLimits(max_running_requests=settings.max_running_requests, max_queue=settings.max_queue)
    metrics = Metrics(names[0], compat=settings.metrics_compat)
    service = Service(client, names=names, limits=limits, on_event=metrics.note, seed=settings.seed)
    return create_app(service, settings, metrics, ROUTERS), service


@contextlib.contextmanager
def serving(
    *, engine: dict[str, Any] | None = None, in_process: bool = True, template: str | None = None, **settings: Any
) -> Iterator[Served]:
    """A server in a thread of this process, on a free port; its engine in another thread, or (`in_process` False) in a
    process. `settings` are fields of `Settings`, `engine` options of the engine; `template` is a chat template in the
    place of the model's."""
    chosen = Settings(**{"host": "127.0.0.1", "port": 0, **settings})
    client = engine_client(in_process=in_process, **(engine or {}))
    if template is not None:
        client.template = ChatTemplate.of(template, client.tokenizer, client.ready.context)
    listener = listen(chosen.host, 0)
    app, service = make_app(client, chosen)
    server = uvicorn.Server(uvicorn_config(app, chosen))
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def main() -> None:
        await service.start()
        loop.call_soon(ready.set)
        await server.serve([listener])
        await service.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), name="test-server", daemon=True)
    thread.start()
    try:
        assert ready.wait(WAIT), "the server did not start"
        yield Served(f"http://{chosen.host}:{listener.getsockname()[1]}", service, client, loop)
    finally:
        server.should_exit = True
        thread.join(WAIT)
        client.close()
        listener.close()
        loop.close()


@contextlib.asynccontextmanager
async def in_process_client(**settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """An httpx client that calls the application without a socket; for short answers, not for streams."""
    chosen = Settings(**settings)
    client = engine_client()
    app, service = make_app(client, chosen)
    await service.start()
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=WAIT) as http:
            yield http, service
    finally:
        await service.close()
        client.close()
