"""What the tests of journals share: small programs, what a journal says, a disk that is full."""

from __future__ import annotations

import sqlite3
from typing import Any

import ramet as rt
from ramet.frontend import journal
from ramet.frontend.journal_file import JournalFile

from . import journaled
from .journaled import Log, Watched

WAIT = 30.0


def state(path) -> list[str]:
    return [row.state for row in journal.runs(str(path))]


def rows(path) -> dict[str, tuple[str, str]]:
    [row] = journal.runs(str(path))
    file = JournalFile(str(path))
    found = {op: (call.kind, call.state) for op, call in file.calls(row.run).items()}
    file.close()
    return found


class Gate:
    """A function that fails, or hangs, until it is opened."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: BaseException | None = RuntimeError("no network")

    def __call__(self, text: str) -> str:
        self.calls.append(rt.idempotency_key())
        if self.error is not None:
            raise self.error
        return text.upper()


def two_steps(gate: Any) -> rt.Program[[str], str]:
    @rt.function
    def two(s: rt.State, topic: str) -> str:
        s += topic
        first = s.gen(name="first", max_tokens=4)
        s += s.call(gate, first)
        return s.gen(name="second", max_tokens=4).get()

    return two


def backend(log: Log) -> Watched:
    return Watched(rt.Mock(journaled.answer), log)


@rt.function
def told(s: rt.State, topic: Any, /, *rest: Any, n: int = 2, **more: Any) -> str:
    """Documented."""
    s += f"{topic} {n}"
    return s.gen(max_tokens=2).get()


class Full:
    """A connection on which the k-th commit finds the disk full."""

    def __init__(self, connection: Any, k: int) -> None:
        self._connection = connection
        self._left = k

    def execute(self, sql: str, *columns: Any) -> Any:
        if sql == "COMMIT":
            self._left -= 1
            if self._left == -1:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
        return self._connection.execute(sql, *columns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
