"""R13: the journal is JSON text in SQLite, parameterised SQL, mode 0600, content-hashed; a corrupt or foreign file is
refused with a typed error, and left as it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from ramet.frontend import journal_file
from ramet.frontend.errors import JournalError, JournalHeld
from ramet.frontend.journal_file import JournalFile, calling
from ramet.frontend.journal_locks import RunLocks
from ramet.frontend.journal_writer import Journal

FOLDER = Path(journal_file.__file__).parent
FILES = sorted(FOLDER.glob("journal*.py"))
MARK = "'; DROP TABLE calls; --"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "runs.db")


def filled(path: str, rows: int = 40) -> dict[str, Any]:
    """A closed journal with rows; what it says."""
    file = JournalFile(path)
    file.add("run", {"a": 1})
    file.write([calling("run", f"0.{k}", "call", "done", {"text": "x" * 200, "k": k}) for k in range(rows)])
    said = contents(file)
    file.close()
    return said


def contents(file: JournalFile) -> dict[str, Any]:
    return {"run": file.run("run"), "calls": file.calls("run")}


# --- the file ---


def test_it_is_its_owners_alone(path: str) -> None:
    """Also what SQLite and the locks put beside it, whatever the umask is."""
    before = os.umask(0)
    try:
        file = JournalFile(path)
        RunLocks(path).close()
        file.write([calling("run", "0.1", "call", "done", {})])
        found = {name.name: stat.S_IMODE(name.stat().st_mode) for name in Path(path).parent.iterdir()}
        file.close()
    finally:
        os.umask(before)
    assert set(found) == {"runs.db", "runs.db-wal", "runs.db-shm", "runs.db-lock"}
    assert set(found.values()) == {0o600}


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_one_that_others_may_touch_is_refused(path: str, mode: int) -> None:
    filled(path)
    Path(path).chmod(mode)
    with pytest.raises(JournalError, match="others may read or write it; make it yours alone"):
        JournalFile(path)


def test_one_of_somebody_else_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(JournalError, match="others may read or write it"):
        JournalFile(path)


def test_an_empty_file_is_a_new_journal_and_a_link_is_followed(path: str, tmp_path: Path) -> None:
    Path(path).touch(0o600)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    said = filled(str(link))
    file = JournalFile(path)
    assert contents(file) == said
    file.close()
    lock = tmp_path / "elsewhere"
    lock.touch()
    (tmp_path / "other.db-lock").symlink_to(lock)
    with pytest.raises(JournalError, match=r"other\.db-lock"):
        RunLocks(str(tmp_path / "other.db"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("PRAGMA application_id = 7", "database of another program"),
        ("PRAGMA user_version = 2", "journal of version 2; this ramet reads version 1"),
        ("CREATE TABLE other (x)", "does not have a journal's tables"),
        ("CREATE TRIGGER t AFTER INSERT ON calls BEGIN DELETE FROM runs; END", "does not have a journal's tables"),
        ("CREATE VIEW v AS SELECT * FROM runs", "does not have a journal's tables"),
        ("DROP TABLE calls", "does not have a journal's tables"),
        ("ALTER TABLE runs ADD COLUMN more", "does not have a journal's tables"),
    ],
)
def test_foreign_and_changed_files_are_refused_and_left_alone(path: str, change: str, says: str) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    before = Path(path).read_bytes()
    with pytest.raises(JournalError, match=says):
        JournalFile(path)
    assert Path(path).read_bytes() == before


def test_another_programs_database_and_other_files_are_left_alone(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    os.chmod(path, 0o600)
    text = f"{path}.txt"
    Path(text).write_text("not a database, and longer than the header of one is, by some words\n" * 3)
    os.chmod(text, 0o600)
    for name, says in ((path, "database of another program"), (text, "file is not a database")):
        before = Path(name).read_bytes()
        with pytest.raises(JournalError, match=says):
            JournalFile(name)
        assert Path(name).read_bytes() == before
        assert not Path(f"{name}-lock").exists()


def test_a_schema_that_is_no_text(path: str) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = sql || CAST(x'ac' AS TEXT) WHERE name = 'calls'")
    connection.close()
    with pytest.raises(JournalError, match="damaged"):
        JournalFile(path)


def test_a_journal_mode_other_than_wal_is_refused(path: str) -> None:
    class Elsewhere:
        """A file system on which SQLite has no WAL."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def execute(self, sql: str) -> Any:
            answer = sql.replace("PRAGMA journal_mode = WAL", "SELECT 'delete'")
            return self._connection.execute(answer)

    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(JournalError, match="gives the journal mode 'delete' here"):
        journal_file._opened(Elsewhere(connection))  # type: ignore[arg-type]
    connection.close()


def test_two_who_make_one_lay_it_out_once(path: str) -> None:
    """The second one finds the tables when its turn has come."""

    class Late:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection
            self._looks = 0

        def execute(self, sql: str) -> Any:
            if "sqlite_master" in sql:
                self._looks += 1
                if self._looks == 1:
                    sql += " AND 0"
            return self._connection.execute(sql)

    said = filled(path)
    connection = sqlite3.connect(path, isolation_level=None)
    journal_file._opened(Late(connection))  # type: ignore[arg-type]
    connection.close()
    file = JournalFile(path)
    assert contents(file) == said
    file.close()


def test_a_layout_that_fails_leaves_nothing(path: str) -> None:
    """No room for the tables themselves, and a transaction that SQLite has ended by itself."""

    class Small:
        def __init__(self, connection: sqlite3.Connection, ended: bool) -> None:
            self._connection = connection
            self._ended = ended

        def execute(self, sql: str) -> Any:
            if sql.startswith("PRAGMA user_version ="):
                if self._ended:
                    self._connection.execute("ROLLBACK")
                raise sqlite3.OperationalError("database or disk is full")
            return self._connection.execute(sql)

        @property
        def in_transaction(self) -> bool:
            return self._connection.in_transaction

    connection = sqlite3.connect(path, isolation_level=None)
    for ended in (False, True):
        with pytest.raises(sqlite3.OperationalError):
            journal_file._opened(Small(connection, ended))  # type: ignore[arg-type]
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_what_cannot_be_opened_says_why(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not there, locks that the file system does not have, a process that was forked."""
    with pytest.raises(JournalError, match="No such file or directory"):
        JournalFile(f"{path}/below/runs.db")
    file = JournalFile(path)
    locks = RunLocks(path)
    for number, error, says in (
        (errno.EACCES, JournalHeld, "is under way"),
        (errno.ENOLCK, JournalError, "local disk"),
    ):

        def fails(*arguments: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "lockf", fails)
            with pytest.raises(error, match=says):
                locks.hold(1, "run")
    locks.hold(1, "run")
    with pytest.raises(JournalHeld, match="it is this one"):
        locks.hold(1, "run")
    locks.drop(1)
    locks.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(JournalError, match="this one was forked from"):
            file.runs()
    file.close()


def test_locks_that_cannot_be_had_close_the_file(path: str) -> None:
    filled(path)
    os.mkdir(f"{path}-lock")
    with pytest.raises(JournalError, match=r"runs\.db-lock: Is a directory"):
        Journal(path)


def test_a_closed_one_says_so(path: str) -> None:
    file = JournalFile(path)
    file.close()
    file.close()
    with pytest.raises(JournalError, match="the journal is closed"):
        file.runs()
