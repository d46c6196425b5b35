"""Many runs of one program, so many at a time.

In: what starts each row's run. Out: the runs in row order, their results or errors; one row's failure leaves the
others alone.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar, cast

from ramet.frontend.errors import Aborted, ConstraintError
from ramet.frontend.run import Run
from ramet.frontend.values import one_error
from ramet.frontend.waiting import Bell, refuse_blocking

R = TypeVar("R")
CONCURRENCY = 64
Starter = Callable[[], Run[R]]


class Batch(Generic[R]):
    """A batch under way. `result()` waits for all rows and gives their results in order; iterating gives each as it
    is there.

    `on_error="raise"`: once all rows are done, the error of the failed row is raised (an ExceptionGroup for several);
    their notes name the rows, and the other rows' results stay readable at `runs`. `"return"`: errors stand in the
    list.
    """

    def __init__(
        self,
        name: str,
        starters: Iterator[Starter[R]],
        concurrency: int | None,
        on_error: Literal["raise", "return"],
        progress: bool,
        where: str,
    ) -> None:
        if on_error not in ("raise", "return"):
            raise ConstraintError(f"on_error={on_error!r}: must be 'raise' or 'return'", where=where)
        self._limit = check_concurrency(concurrency, where)
        self._name = name
        self._on_error = on_error
        self._starters = list(starters)
        self._slots: list[Run[R] | BaseException | None] = [None] * len(self._starters)
        self._bell = Bell()
        self._cancelled = False
        self._progress = progress
        self._next = threading.Semaphore(self._limit)
        if self._starters:
            self._launch()

    def _launch(self) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._feed,), name=f"ramet-batch-{self._name}", daemon=True)
        thread.start()

    def _feed(self) -> None:
        for index, starter in enumerate(self._starters):
            self._next.acquire()
            try:
                if self._cancelled:
                    raise Aborted(f"row {index} was not started: the batch was cancelled")
                run = starter()
            except Exception as error:  # noqa: BLE001 - the row's error; the other rows go on
                self._slots[index] = error
                self._finished()
            else:
                self._slots[index] = run
                if self._cancelled:  # while it was being started
                    run.cancel()
                run.future.add_done_callback(lambda _: self._finished())
            self._bell.ring()

    def _finished(self) -> None:
        self._next.release()
        self._bell.ring()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def done(self) -> int:
        """The number of rows that have ended."""
        return sum(_ended(slot) for slot in self._slots)

    @property
    def runs(self) -> list[Run[R]]:
        """The runs of all rows, in order; waits until all are started. Raises where a row could not be started."""
        self._wait(lambda: all(slot is not None for slot in self._slots))
        for slot in self._slots:
            if isinstance(slot, BaseException):
                raise slot
        return cast(list[Run[R]], self._slots)

    def result(self) -> list[R]:
        """Wait for all rows; their results in row order (with `on_error="return"`, errors among them). Ctrl-C cancels
        the batch."""
        try:
            with _bar(self._progress, self._name, len(self)) as advance:
                shown = 0
                while self.done < len(self):
                    self._wait(lambda before=shown: self.done > before)  # type: ignore[misc]
                    advance(self.done - shown)
                    shown = self.done
        except KeyboardInterrupt:
            self.cancel()
            raise
        return self._results()

    def __await__(self) -> Generator[Any, None, list[R]]:
        while self.done < len(self):
            seen = self._bell.count
            if self.done < len(self):
                yield from self._bell.wait_async(seen).__await__()
        return self._results()

    def __iter__(self) -> Iterator[R]:
        for index in range(len(self)):
            self._wait(lambda row=index: _ended(self._slots[row]))  # type: ignore[misc]
            value, error = self._row(index)
            if error is not None and self._on_error == "raise":
                raise error
            yield cast(R, value if error is None else error)

    def __repr__(self) -> str:
        return f"<Batch of {self._name!r}: {self.done} of {len(self)} rows done>"

    def cancel(self) -> None:
        """Cancel what runs and start nothing more."""
        self._cancelled = True
        for slot in self._slots:
            if slot is not None and not isinstance(slot, BaseException):
                slot.cancel()

    def _results(self) -> list[R]:
        rows = [self._row(index) for index in range(len(self))]
        errors = [error for _, error in rows if error is not None]
        if errors and self._on_error == "raise":
            raise one_error(errors, f"{len(errors)} of {len(rows)} rows of {self._name!r} failed")
        return [cast(R, value if error is None else error) for value, error in rows]

    def _row(self, index: int) -> tuple[R | None, BaseException | None]:
        slot = self._slots[index]
        error = slot if isinstance(slot, BaseException) else slot.future.exception() if slot is not None else None
        if error is not None:
            note = f"in row {index} of a batch of {self._name!r}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            return None, error
        assert slot is not None and not isinstance(slot, BaseException)
        return slot.future.result(), None

    def _wait(self, ready: Callable[[], bool]) -> None:
        while True:
            seen = self._bell.count
            if ready():
                return
            refuse_blocking(None, "the batch")
            self._bell.wait(seen)


def _ended(slot: Run[Any] | BaseException | None) -> bool:
    return isinstance(slot, BaseException) or (slot is not None and slot.done)


def check_concurrency(concurrency: int | None, where: str, name: str = "concurrency") -> int:
    """The number of rows that run at a time, or `ConstraintError`."""
    limit = CONCURRENCY if concurrency is None else concurrency
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConstraintError(f"{name}={concurrency!r}: must be a positive integer", where=where)
    return limit


def lazily(starters: Iterable[Starter[R]], concurrency: int | None, progress: bool, where: str) -> Iterator[Run[R]]:
    """Start rows as they are asked for, a bounded number ahead, and yield each finished run in row order."""
    limit = check_concurrency(concurrency, where)

    def generate() -> Iterator[Run[R]]:
        ahead: deque[Run[R]] = deque()
        source = iter(starters)
        with _bar(progress, "rows", None) as advance:
            try:
                while True:
                    while len(ahead) < limit and (starter := next(source, None)) is not None:
                        ahead.append(starter())
                    if not ahead:
                        return
                    run = ahead.popleft()
                    run.sync()
                    advance(1)
                    yield run
            finally:
                for run in ahead:
                    run.cancel()

    return generate()


@contextmanager
def _bar(shown: bool, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, or nothing."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)
