"""The engine in this machine as a backend: the one door from the language to the runtime.

In: a model's name and the knobs of `runtime.config.Config`. Out: a `Backend` whose programs run in an engine process
of their own (or, for tests and debuggers, in a thread of this process).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an engine is started before any of it is imported
    from ramet.frontend.backends.base import Deliver, Session
    from ramet.frontend.ir import Header
    from ramet.runtime.client import EngineClient
    from ramet.runtime.launch import Early as Early

Progress = Callable[[str, int, int], None]


def early(options: Mapping[str, str | int]) -> Early:
    """Start the process of an engine that will be asked for in a moment, with these `options` (some of `Engine`'s);
    close it when nobody does. Raises `OSError`."""
    from ramet.runtime.launch import Early

    return Early(options)


class Engine:
    """A model and the engine that runs programs on it.

    `model` is a name that `ramet models` explains: "default", a directory, a `.gguf` file, a hub id,
    "random:<preset>". `options` are the fields of `runtime.config.Config` and `Limits` (dtype, threads, context,
    kv_tokens, max_running, batch_tokens, ...). `progress(phase, done, total)` is told how far a download is. Raises
    `ModelError` or `EngineError`. Use it as a context manager, or call `close`; the engine ends with this process in
    any case. `early`: a process that `early` started, taken if it is the one that is asked for.
    """

    def __init__(
        self,
        model: str = "default",
        *,
        in_process: bool = False,
        progress: Progress | None = None,
        early: Early | None = None,
        **options: object,
    ) -> None:
        from ramet.runtime.start import start

        self.model = model
        self._client: EngineClient = start(model, options, in_process=in_process, progress=progress, early=early)
        self._finalizer = weakref.finalize(self, self._client.close)

    def open(self, header: Header, deliver: Deliver) -> Session:
        """Begin a program."""
        return self._client.open(header, deliver)

    def info(self) -> dict[str, object]:
        """Model, context length, KV use in tokens, steps and counters."""
        stats = self._client.stats()
        kv = {"total": stats.kv_total, "free": stats.kv_free, "cached": stats.kv_cached, "used": stats.kv_used}
        return {
            "model": stats.model,
            "dtype": self._client.ready.dtype,
            "kernels": self._client.ready.kernels,
            "context_length": stats.context_length,
            "kv": kv,
            "programs": stats.programs,
            "running": stats.running,
            "waiting": stats.waiting,
            "steps": stats.steps,
            "computed_tokens": stats.computed_tokens,
            "generated_tokens": stats.generated_tokens,
            "evicted_tokens": stats.evicted_tokens,
            "retractions": stats.retractions,
            "step_seconds": stats.step_seconds,
            "load_seconds": self._client.ready.load_seconds,
        }

    def flush_cache(self) -> bool:
        """Forget cached prefixes that no operation under way uses."""
        self._client.flush()
        self._client.stats()  # the answer comes after the flush
        return True

    @property
    def process_id(self) -> int | None:
        """The engine process's id; None when it runs in this process."""
        return self._client.process_id

    def close(self) -> None:
        """End every program and the engine. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.model!r})"
