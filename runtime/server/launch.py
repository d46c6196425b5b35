"""The server's life: the port, the engine, the application, and how they end.

In: settings, and a function that starts an engine. Out: a server that answers 503 while the model is loaded, then all
of its routes; after SIGTERM or Ctrl-C it finishes what it has, within `drain_timeout`, and is gone, engine included.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ramet.frontend.errors import EngineError
from ramet.runtime.client import EngineClient
from ramet.runtime.server.app import create_app
from ramet.runtime.server.connection import limited
from ramet.runtime.server.failures import unavailable
from ramet.runtime.server.gate import GateLimits
from ramet.runtime.server.guard import Guard
from ramet.runtime.server.logs import LOG, throughput
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.routes import ROUTERS
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.settle import Trimming, settle

LAST_WORDS = 3  # seconds for answers that are written when the engine has nothing left to do
IDLE = 65  # seconds until an idle connection is closed: longer than clients keep theirs, so that they do not race us
SPARE_FILES = 128  # descriptors that are not connections


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `EngineError` in one line."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)  # with its protocol named, asyncio sets TCP_NODELAY
    except OSError as error:
        raise EngineError(f"host={host!r}: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise EngineError(f"port={port}: {error.strerror or error} ({host}); choose another with --port") from None
    return listener


def allow_files(connections: int) -> int:
    """Raise the process's limit of open files for so many connections; how many it allows."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # no such limit here
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        soft = max(soft, most)
    return int(max(16, min(connections, soft - SPARE_FILES)))


class Front:
    """The application that uvicorn sees: 503 until the real one is there."""

    def __init__(self, settings: Settings) -> None:
        self.app: ASGIApp = Guard(_loading, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on to whatever there is."""
        await self.app(scope, receive, send)


async def _loading(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] not in ("/health", "/ping"):
        raise unavailable("the server is starting: the model is being loaded", 2.0)
    await Response(status_code=200)(scope, receive, send)


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def run(
    listener: socket.socket,
    settings: Settings,
    names: Callable[[EngineClient], tuple[str, ...]],
    start: Callable[[], EngineClient],
    announce: Callable[[EngineClient], None],
) -> None:
    """Serve until a signal says to stop. `names` are those of the model, `announce` is called when requests are
    answered. Raises what `start` raises."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if importlib.util.find_spec("uvloop") is not None:
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_run(listener, settings, names, start, announce))


async def _run(
    listener: socket.socket,
    settings: Settings,
    names: Callable[[EngineClient], tuple[str, ...]],
    start: Callable[[], EngineClient],
    announce: Callable[[EngineClient], None],
) -> None:
    front = Front(settings)
    server = _Server(uvicorn_config(front, settings))
    with _signals() as asked:
        serving = asyncio.ensure_future(server.serve([listener]))
        try:
            started = _in_daemon(start)
            if await _ended(started, asked[0]):
                client = started.result()
                await _serve(front, settings, client, names(client), announce, asked, server, serving)
        finally:
            server.should_exit = True
            await serving


async def _serve(
    front: Front,
    settings: Settings,
    client: EngineClient,
    names: tuple[str, ...],
    announce: Callable[[EngineClient], None],
    asked: tuple[asyncio.Event, asyncio.Event],
    server: uvicorn.Server,
    serving: asyncio.Future[None],
) -> None:
    metrics = Metrics(names[0], compat=settings.metrics_compat)
    limits = GateLimits(max_running_requests=settings.max_running_requests, max_queue=settings.max_queue)
    service = Service(client, names=names, limits=limits, on_event=metrics.note, seed=settings.seed)
    pace = asyncio.ensure_future(throughput(service))
    try:
        await service.start()
        front.app = create_app(service, settings, metrics, ROUTERS)
        settle()
        with Trimming():
            announce(client)
            await asked[0].wait()
            await drain(service, settings.drain_timeout, asked[1])
        server.should_exit = True
        await serving
    finally:
        pace.cancel()
        await service.close()


async def drain(service: Service, seconds: float, hurry: asyncio.Event) -> None:
    """Let what runs finish, at most `seconds`; end it at once, with 503, when `hurry` is set."""
    LOG.info("draining: %d running, %d waiting, at most %g s", service.running, service.waiting, seconds)
    if not await _ended(asyncio.ensure_future(service.drain(seconds)), hurry):
        LOG.warning("ended early: %d running, %d waiting", service.running, service.waiting)
        await service.drain(0)


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs an application here."""
    connections = allow_files(settings.max_connections)
    if connections < settings.max_connections:
        LOG.warning("max_connections is %d: this process may not open more files", connections)
    return uvicorn.Config(
        app,
        http=limited(settings.header_timeout, connections),
        lifespan="off",
        log_config=None,
        log_level=logging.getLogger("uvicorn").level,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws_max_size=settings.max_body,
        ws_per_message_deflate=False,  # a compressed message may grow a thousandfold
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=LAST_WORDS,
        ssl_certfile=settings.ssl_certfile or None,
        ssl_keyfile=settings.ssl_keyfile or None,
    )


@contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Events of the first and the second SIGTERM or Ctrl-C."""
    loop = asyncio.get_running_loop()
    events = (asyncio.Event(), asyncio.Event())

    def heard() -> None:
        events[1 if events[0].is_set() else 0].set()

    def outside(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(heard)

    before = {each: signal.signal(each, outside) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield events
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _in_daemon(work: Callable[[], EngineClient]) -> asyncio.Future[EngineClient]:
    """The result of `work` in a thread that nobody waits for at the end: a download may take long."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[EngineClient] = loop.create_future()

    def settle(client: EngineClient | None, error: BaseException | None) -> None:
        if future.cancelled():
            if client is not None:
                client.close()
        elif client is not None:
            future.set_result(client)
        elif error is not None:
            future.set_exception(error)

    def thread() -> None:
        client: EngineClient | None = None
        error: BaseException | None = None
        try:
            client = work()
        except BaseException as raised:  # noqa: BLE001 (told to whoever waits)
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process does too
            loop.call_soon_threadsafe(settle, client, error)

    threading.Thread(target=thread, name="ramet-start", daemon=True).start()
    return future


async def _ended(work: asyncio.Future[Any], stop: asyncio.Event) -> bool:
    """Wait for the first of both. Whether it was `work`; else it is cancelled."""
    stopped = asyncio.ensure_future(stop.wait())
    pending: set[asyncio.Future[Any]] = {work, stopped}
    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if work.done():
        return True
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    return False
