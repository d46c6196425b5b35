"""A backend without a model: fixed answers, in program order, recorded prompts. For unit tests of programs.

In: operations. Out: the events that an engine would deliver, from one thread of the mock's own. Deterministic: what it
answers depends on the order in which operations are recorded alone. A "token" of the mock is a word with the white
space before it; `max_tokens` counts those, stop strings are honoured, other sampling options do not apply to fixed
answers.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from ramet.frontend.backends.base import Deliver
from ramet.frontend.backends.script import Pending, Script
from ramet.frontend.backends.simulation import Simulation
from ramet.frontend.errors import ConstraintError, TransportError
from ramet.frontend.ir import AnyOp, Ended, Header, Score, Tokens, Usage

Answer = str | Sequence[Any] | Callable[[str, str], Any] | Pending
Answers = Answer | Mapping[str, Answer]


class Mock:
    """A model that says what it is told.

    `answers`: a str, for every generation; a list, consumed in the order in which generations run; a dict from
    variable name ("*": any other) to a str, list or callable; or a callable (prompt, variable) → str. An answer may
    be `Mock.PENDING`: it comes when `release(variable, text)` is called. A select takes the answer if it is one of
    its choices, else its first choice. An answer that breaks its generation's regex or choices, or is no JSON where a
    schema asks for it, fails that generation. `fail` maps variables to an exception or a message; a callable that
    raises fails its generation too. `logprob` is the mean logprob that every generation reports; `context_length` is
    in words. `prompts` lists the text before each generation and choice.
    """

    PENDING = Pending()

    def __init__(
        self,
        answers: Answers = "",
        *,
        fail: Mapping[str, BaseException | str] | None = None,
        logprob: float = -0.5,
        context_length: int = 1 << 20,
    ) -> None:
        self._script = Script(answers, fail or {})
        self._logprob = logprob
        self._context_length = context_length
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._live: dict[int, Simulation] = {}
        self._opened = 0
        self._flushed = 0
        self.prompts: list[str] = []

    def open(self, header: Header, deliver: Deliver) -> _MockSession:
        """See `Backend.open`."""
        with self._lock:
            if self._closed:
                raise TransportError("the mock backend is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=_work, args=(self._commands,), name="ramet-mock", daemon=True)
                self._thread.start()
                weakref.finalize(self, self._commands.put, None)  # a mock that nobody holds ends its thread
            self._opened += 1
            number = self._opened
        simulation = Simulation(
            self._script,
            deliver,
            self.prompts,
            self._logprob,
            self._context_length,
            lambda: self._live.pop(number, None),
        )
        self._commands.put(lambda: self._live.update({number: simulation}))
        return _MockSession(self._commands, simulation)

    def info(self) -> dict[str, object]:
        """See `Backend.info`."""
        live = len(self._live)
        return {"model": "mock", "context_length": self._context_length, "programs": live, "flushes": self._flushed}

    def flush_cache(self) -> bool:
        """There is no cache: nothing is forgotten, and the call is counted in `info()`."""
        self._flushed += 1
        return True

    def release(self, var: str, text: str) -> None:
        """Give `text` to the oldest generation of `var` whose answer is pending, now or when it is reached."""

        def act() -> None:
            for simulation in list(self._live.values()):
                if simulation.release(var, text):
                    return
            self._script.early.setdefault(var, []).append(text)

        self._commands.put(act)

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            self._closed = True
            thread = self._thread

        def act() -> None:
            for simulation in list(self._live.values()):
                simulation.stop(Ended(usage=Usage(), kind="transport", message="the mock backend was closed"))

        if thread is not None and thread.is_alive():
            self._commands.put(act)
            self._commands.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _work(commands: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (command := commands.get()) is not None:
        command()
        del command  # it may hold the mock


class _MockSession:
    """See `Session`: everything is put on the mock's queue."""

    def __init__(self, commands: queue.SimpleQueue[Callable[[], None] | None], simulation: Simulation) -> None:
        self._commands = commands
        self._simulation = simulation

    def send(self, ops: Sequence[AnyOp]) -> None:
        """See `Session.send`."""
        batch = tuple(ops)
        for op in batch:
            if isinstance(op, Tokens | Score):
                raise ConstraintError(f"{type(op).__name__}: the mock has text and no tokens; use ramet.Engine")
        self._commands.put(lambda: self._simulation.receive(batch))

    def end(self) -> None:
        """See `Session.end`."""
        self._commands.put(self._simulation.end)

    def cancel(self) -> None:
        """See `Session.cancel`."""
        self._commands.put(self._simulation.cancel)
