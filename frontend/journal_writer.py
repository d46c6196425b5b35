"""An open journal and the one thread that writes it.

In: statements and what to do once they are on the disk, from any thread. Out: transactions, each of all that came while
the last one was being written; then what was to be done, in the order in which it came, on the writer's thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence

from ramet.frontend.errors import JournalError
from ramet.frontend.host import HOST
from ramet.frontend.journal_file import JournalFile, Statement
from ramet.frontend.journal_locks import RunLocks

MOST = 256  # entries of one transaction
Then = Callable[[JournalError | None], object]


class Journal:
    """A journal that runs of this process write. `put` never blocks and never raises: an error goes to `then`, and to
    the `then` of everything that was written with it."""

    def __init__(self, path: str) -> None:
        self.file = JournalFile(path)
        try:
            self.locks = RunLocks(self.file.path)
        except JournalError:
            self.file.close()
            raise
        self.users = 0
        self._queue: queue.SimpleQueue[tuple[Sequence[Statement], Then] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ramet-journal", daemon=True)
        self._thread.start()

    def put(self, statements: Sequence[Statement], then: Then) -> None:
        """Write `statements`, then call `then(None)`, or `then(error)` when nothing of them was written."""
        self._queue.put((statements, then))

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, over = [first], False
            while len(batch) < MOST and not over and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    over = True
                else:
                    batch.append(following)
            self._carry_out(batch)
            if over:
                break
        with contextlib.suppress(JournalError):  # all is committed
            self.file.close()

    def _carry_out(self, batch: Sequence[tuple[Sequence[Statement], Then]]) -> None:
        statements = [each for some, _ in batch for each in some]
        failure: JournalError | None = None
        if statements:
            try:
                self.file.write(statements)
            except JournalError as error:
                failure = error
        for some, then in batch:
            with contextlib.suppress(Exception):  # what one run's readers do must not keep the others from theirs
                then(failure if some else None)

    def release(self, number: int) -> None:
        """A run has ended; the last one closes the journal."""
        with HOST.sharing:
            self.locks.drop(number)
            HOST.sharing.notify_all()
            self.users -= 1
            if self.users == 0:
                HOST.shared.pop(self.file.path, None)
                self.locks.close()
                self.end()

    def end(self) -> None:
        """Close the file once everything that was put is written."""
        self._queue.put(None)


def opened(path: str, take: Callable[[Journal], int]) -> tuple[Journal, int]:
    """The journal at `path`, shared by all runs of this process, and the number of the run that `take` took in it.
    Raises `JournalError`."""
    key = os.path.realpath(path)
    with HOST.sharing:
        journal = HOST.shared.get(key)
        fresh = not isinstance(journal, Journal) or journal.file.forked
        if fresh:
            journal = Journal(key)
        assert isinstance(journal, Journal)
        try:
            number = take(journal)
        except BaseException:
            if fresh:
                journal.locks.close()
                journal.end()
            raise
        journal.users += 1
        HOST.shared[key] = journal
        return journal, number
