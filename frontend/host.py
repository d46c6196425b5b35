"""What all programs of this process share: the one place of process-wide state of the language.

In: coroutines, timers and host functions of programs. Out: they run. Four things live here, each made on first use:
the background event loop (one daemon thread: async bodies called outside any loop, timers), the pools of worker
threads that run host functions, the backend of SGLang's `set_default_backend`, and the open journals. `using` is a
context variable.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar, cast

from ramet.frontend.backends.base import Backend
from ramet.frontend.errors import EngineError
from ramet.frontend.workers import Workers

T = TypeVar("T")
POOL_THREADS = 32

_context_backend: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("ramet_backend", default=None)
_host_depth: contextvars.ContextVar[int] = contextvars.ContextVar("ramet_host_depth", default=0)
inside_async_body: contextvars.ContextVar[bool] = contextvars.ContextVar("ramet_inside_async_body", default=False)


class Host:
    """The process-wide state; `HOST` is its one instance."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pools: dict[int, Workers] = {}
        self.default_backend: Backend | None = None
        self.sharing = threading.Condition()  # held while `shared` changes; told when a run lets go of its journal
        self.shared: dict[str, object] = {}  # open journals, by their paths: a file has one writer in a process

    def loop(self) -> asyncio.AbstractEventLoop:
        """The background event loop, running in its own daemon thread (started again in a forked child)."""
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                # In an empty context: the loop's own handles would keep the first caller's context variables for ever.
                self._loop = contextvars.Context().run(asyncio.new_event_loop)
                self._thread = threading.Thread(target=self._loop.run_forever, name="ramet-loop", daemon=True)
                self._thread.start()
            return self._loop

    def submit(self, fn: Callable[[], T]) -> Future[T]:
        """Run `fn` on a worker thread. A host function may itself run programs whose host functions run deeper: each
        depth has its own bounded pool, so that calls that wait for deeper ones never starve them."""
        depth = _host_depth.get()
        context = contextvars.copy_context()
        context.run(_host_depth.set, depth + 1)
        with self._lock:
            pool = self._pools.get(depth)
            if pool is None:
                pool = self._pools[depth] = Workers(POOL_THREADS, f"ramet-host-{depth}")
        return pool.submit(lambda: context.run(fn))

    def later(self, seconds: float, fn: Callable[[], object]) -> Callable[[], None]:
        """Call `fn` (which must not block) on the background loop after `seconds`. Returns a function that calls it
        off."""
        loop = self.loop()
        handles: list[asyncio.TimerHandle] = []
        empty = contextvars.Context()  # a timer keeps no caller's context variables
        loop.call_soon_threadsafe(lambda: handles.append(loop.call_later(seconds, fn)), context=empty)

        def call_off() -> None:
            for handle in handles:
                handle.cancel()

        return lambda: _post(loop, call_off)


HOST = Host()


def _post(loop: asyncio.AbstractEventLoop, fn: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to tell
        loop.call_soon_threadsafe(fn)


class using:  # noqa: N801 - reads as a statement: `with using(backend):`
    """Programs called inside `with using(backend):` run on it. Nests; follows threads and tasks as context variables
    do."""

    def __init__(self, backend: Backend) -> None:
        self._backend = check_backend(backend)
        self._tokens: list[contextvars.Token[Backend | None]] = []

    def __enter__(self) -> Backend:
        self._tokens.append(_context_backend.set(self._backend))
        return self._backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _context_backend.reset(self._tokens.pop())


def enter_backend(backend: Backend) -> None:
    """Make `backend` the context's: programs that a body calls run where the body runs."""
    _context_backend.set(backend)


def set_default_backend(backend: Backend | None) -> None:
    """The backend of programs that name none and run in no `with using(...)`. Process-wide (SGLang's name)."""
    HOST.default_backend = None if backend is None else check_backend(backend)


def check_backend(backend: Any) -> Backend:
    """`backend` itself, or `EngineError` when programs cannot run on it."""
    if isinstance(backend, type) or not callable(getattr(backend, "open", None)):
        shown = backend.__name__ if isinstance(backend, type) else repr(backend)
        raise EngineError(
            f"backend={shown}: must be a backend, such as ramet.Engine(model) or ramet.Mock(answers)"
            + (f"; did you mean ramet.Engine({shown})?" if isinstance(backend, str) else "")
        )
    return cast(Backend, backend)


def choose_backend(*named: Backend | None) -> Backend:
    """The first of: the given ones, the context's, the process's default. Raises `EngineError` when there is none."""
    for backend in (*named, _context_backend.get(), HOST.default_backend):
        if backend is not None:
            return backend
    raise EngineError(
        "no backend to run on: write `with ramet.using(ramet.Engine()): ...`, `program.using(backend=...)` or "
        "`ramet.set_default_backend(...)`; ramet.Mock(answers) needs no model"
    )


def flush_cache(backend: Backend | None = None, empty_cache: bool = True) -> bool:
    """Forget cached prefixes that no live program uses (SGLang's name). `empty_cache=False` leaves them and returns
    False."""
    return choose_backend(backend).flush_cache() if empty_cache else False


def get_server_info(backend: Backend | None = None) -> dict[str, object]:
    """What the backend says of itself (SGLang's name)."""
    return choose_backend(backend).info()
