"""The file of a journal: two tables of JSON text in SQLite.

In: rows. Out: rows, checked: each has a hash of its content, and each run one over all of its calls. A file of another
program, a damaged one, one that others may read or write are refused with `JournalError`, and so is every error of
SQLite. One connection, one lock: methods may be called from any thread.

`runs` has one row per run, `calls` one per finished generation or choice and per host call, under (run, path of the
operation in the program's call tree). WAL with `synchronous=FULL`: what was committed outlives a loss of power.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ramet.frontend.errors import JournalError
from ramet.frontend.journal_text import digest, read, written

APPLICATION = 0x72616D74  # "ramt", in the header of the file
VERSION = 1
PATIENCE = 5.0  # seconds that a write waits for another process's
TABLES = {
    "runs": "CREATE TABLE runs (number INTEGER PRIMARY KEY, run TEXT NOT NULL UNIQUE, state TEXT NOT NULL, "
    "record TEXT NOT NULL, outcome TEXT NOT NULL, seal TEXT NOT NULL, digest TEXT NOT NULL)",
    "calls": "CREATE TABLE calls (run TEXT NOT NULL, op TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, "
    "record TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (run, op)) WITHOUT ROWID",
}
RUNS = "number, run, state, record, outcome, seal, digest"
CALLS = "run, op, kind, state, record, digest"
REMEDIES = {
    sqlite3.SQLITE_FULL: "there is no room to write; nothing of what was recorded is lost: make room, and resume",
    sqlite3.SQLITE_BUSY: f"another process has been writing for {PATIENCE:g} s; nothing is lost: resume later",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; take a copy from before",
    sqlite3.SQLITE_NOTADB: "the file is no journal; name another one",
    sqlite3.SQLITE_READONLY: "it cannot be written here",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened or made here",
    sqlite3.SQLITE_IOERR: "the disk failed; nothing of what was recorded before is lost",
}
EMPTY = "0:0"  # the seal of a run without calls


class Change(NamedTuple):
    """What a transaction does to one call of a run (to `columns`; None: nothing is known of it any more)."""

    run: str
    op: str
    columns: tuple[str, ...] | None


class Mark(NamedTuple):
    """What a transaction does to a run: its state and, as JSON text, what came of it."""

    run: str
    state: str
    outcome: str


Statement = Change | Mark


class RunRow(NamedTuple):
    """A run: its `number` in the file, its id, "running", "finished" or "failed", what it was started with, and (as
    JSON text) what came of it."""

    number: int
    run: str
    state: str
    record: dict[str, Any]
    outcome: str


class CallRow(NamedTuple):
    """A call of a run: `kind` "gen", "select", "score" or "host"; `state` "begun", "done" or "failed"."""

    op: str
    kind: str
    state: str
    record: dict[str, Any]


class JournalFile:
    """An open journal. Made when there is none. Raises `JournalError`."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        with self._told():
            _made(self.path)
            self._connection = sqlite3.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                _opened(self._connection)
            except BaseException:
                self._connection.close()
                raise

    @property
    def forked(self) -> bool:
        """It belongs to the process that this one was forked from."""
        return os.getpid() != self._pid

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of SQLite and of the system as `JournalError`."""
        try:
            yield
        except JournalError as error:
            raise JournalError(f"{self.path}: {error}") from None
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            remedy = REMEDIES.get(code or sqlite3.SQLITE_CORRUPT, "nothing of what was recorded before is lost")
            raise JournalError(f"{self.path}: {error}: {remedy}") from error
        except OSError as error:
            raise JournalError(f"{self.path}: {error.strerror or error}") from error
        except UnicodeError as error:
            raise JournalError(f"{self.path}: {error}: {REMEDIES[sqlite3.SQLITE_CORRUPT]}") from error

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            if self._connection is None:
                raise JournalError("the journal is closed")
            if self.forked:
                raise JournalError("it was opened by the process that this one was forked from; open it here")
            yield self._connection

    # --- reading ---

    def runs(self) -> list[RunRow]:
        """All runs, in the order in which they began."""
        with self._using() as connection:
            rows = connection.execute(f"SELECT {RUNS} FROM runs ORDER BY number")
            return [_run(row)[0] for row in rows]

    def run(self, run: str) -> RunRow:
        """One run. Raises `JournalError` when there is none such."""
        found = [row for row in self.runs() if row.run == run]
        if not found:
            known = ", ".join(row.run for row in self.runs() if row.state != "finished") or "none"
            raise JournalError(f"{self.path}: has no run {run!r}; unfinished ones: {known}")
        return found[0]

    def calls(self, run: str) -> dict[str, CallRow]:
        """The calls of a run, by their paths. Raises `JournalError` when one was changed, is missing or too many."""
        with self._using() as connection:
            rows = connection.execute(f"SELECT {CALLS} FROM calls WHERE run = ?", (run,)).fetchall()
            found = {call.op: call for call in map(_call, rows)}
            seal = _sum(EMPTY, *(str(row[-1]) for row in rows))
            if len(found) != len(rows) or [seal] != [_run(row)[1] for row in _rows_of(connection, run)]:
                raise JournalError(f"calls of run {run!r} are missing: the file was changed or is damaged")
            return found

    # --- writing ---

    def add(self, run: str, record: dict[str, Any]) -> int:
        """A new run; its number."""
        columns = (run, "running", written(record), written(None), EMPTY)
        with self._using() as connection:
            made = connection.execute(
                "INSERT INTO runs (run, state, record, outcome, seal, digest) VALUES (?, ?, ?, ?, ?, ?)",
                (*columns, digest(*columns)),
            )
            return int(made.lastrowid or 0)

    def write(self, statements: Iterable[Statement]) -> None:
        """Carry out statements in one transaction: all of them, or none."""
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                marks: dict[str, Mark | None] = {}
                deltas: dict[str, list[tuple[str, str]]] = {}
                for each in statements:
                    if isinstance(each, Mark):
                        marks[each.run] = each
                    else:
                        deltas.setdefault(each.run, []).append(_changed(connection, each))
                for run in {**deltas, **marks}:
                    _sealed(connection, run, marks.get(run), deltas.get(run, ()))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close it. Idempotent; in a forked child it does nothing."""
        with self._lock, self._told():
            connection, self._connection = self._connection, None
            if connection is not None and not self.forked:
                connection.close()


def calling(run: str, op: str, kind: str, state: str, record: dict[str, Any]) -> Change:
    """Record a call, instead of what was recorded of it before. Raises `Unwritable`."""
    return Change(run, op, (kind, state, written(record)))


def forgetting(run: str, op: str) -> Change:
    """Record that nothing is known of a call."""
    return Change(run, op, None)


def _changed(connection: sqlite3.Connection, change: Change) -> tuple[str, str]:
    """Carry out a change; the call's hash before it and after it, "" for none."""
    key = (change.run, change.op)
    before = connection.execute(f"SELECT {CALLS} FROM calls WHERE run = ? AND op = ?", key).fetchone()
    if before is not None:
        _call(before)
    after = ""
    if change.columns is None:
        connection.execute("DELETE FROM calls WHERE run = ? AND op = ?", key)
    else:
        after = digest(*key, *change.columns)
        connection.execute(
            "INSERT OR REPLACE INTO calls (run, op, kind, state, record, digest) VALUES (?, ?, ?, ?, ?, ?)",
            (*key, *change.columns, after),
        )
    return (str(before[-1]) if before is not None else ""), after


def _sealed(connection: sqlite3.Connection, run: str, mark: Mark | None, deltas: Iterable[tuple[str, str]]) -> None:
    """Write a run's row anew: its state, and the seal of its calls."""
    for row in _rows_of(connection, run):
        kept, seal = _run(row)
        for before, after in deltas:
            seal = _sum(seal, after) if after else seal
            seal = _sum(seal, before, sign=-1) if before else seal
        state, outcome = (mark.state, mark.outcome) if mark is not None else (kept.state, kept.outcome)
        columns = (run, state, written(kept.record), outcome, seal)
        connection.execute(
            "UPDATE runs SET state = ?, outcome = ?, seal = ?, digest = ? WHERE run = ?",
            (state, outcome, seal, digest(*columns), run),
        )


def _sum(seal: str, *digests: str, sign: int = 1) -> str:
    """The seal of a set of calls: how many they are, and the sum of their hashes (an additive multiset hash: Bellare
    and Micciancio 1997), to which one can be added, and of which one can be taken away."""
    try:
        count, total = seal.split(":")
        value = int(total, 16) + sign * sum(int(each, 16) for each in digests)
    except ValueError:
        raise JournalError(f"a seal of calls cannot be read ({seal[:40]!r}): the file was changed") from None
    return f"{int(count) + sign * len(digests)}:{value % (1 << 128):x}"


def _rows_of(connection: sqlite3.Connection, run: str) -> list[Sequence[Any]]:
    return list(connection.execute(f"SELECT {RUNS} FROM runs WHERE run = ?", (run,)))


def _made(path: str) -> None:
    """The file is there: made by us, empty, or nobody's but ours. It is never opened here: closing a descriptor of it
    would drop the locks that SQLite has on it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise JournalError("is no file") from None
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise JournalError("others may read or write it; make it yours alone (chmod 600)") from None


def _opened(connection: sqlite3.Connection) -> None:
    """Check the file, and lay it out when it is new. Raises `JournalError` and SQLite's errors."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    if _schema(connection):
        _checked(connection)  # before anything is written to a file that may be another program's
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise JournalError(f"SQLite gives the journal mode {mode!r} here instead of WAL; use a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _schema(connection):  # another process may have been first
            for sql in TABLES.values():
                connection.execute(sql)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    _checked(connection)


def _schema(connection: sqlite3.Connection) -> dict[str, str]:
    """What the file defines: name → SQL, without the indices that SQLite makes by itself."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {str(name): str(sql) for name, sql in rows}


def _checked(connection: sqlite3.Connection) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise JournalError("is a database of another program; name another file")
    if version != VERSION:
        raise JournalError(f"is a journal of version {version}; this ramet reads version {VERSION}")
    if _schema(connection) != TABLES:
        raise JournalError("does not have a journal's tables: it was changed; take a copy from before")
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise JournalError(f"the file is damaged ({found}); take a copy from before")


def _hashed(row: Sequence[Any]) -> bool:
    """Every column is a text, and the last one the hash of the others."""
    return all(isinstance(column, str) for column in row) and digest(*row[:-1]) == row[-1]


def _run(row: Sequence[Any]) -> tuple[RunRow, str]:
    """A run, and the seal of its calls."""
    number, run, state, record, outcome, seal, _ = row
    if not _hashed(row[1:]) or state not in ("running", "finished", "failed"):
        raise JournalError(f"the row of run {run!r} does not have its hash: the file was changed or is damaged")
    return RunRow(number, run, state, read(record), outcome), seal


def _call(row: Sequence[Any]) -> CallRow:
    _, op, kind, state, record, _ = row
    if not _hashed(row):
        raise JournalError(f"the row of call {op!r} does not have its hash: the file was changed or is damaged")
    return CallRow(op, kind, state, read(record))
