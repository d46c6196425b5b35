"""R13: the journal is JSON text in SQLite, parameterised SQL, mode 0600, content-hashed; a corrupt or foreign file is
refused with a typed error, and left as it was.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import random
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend import journal, journal_file
from ramet.frontend.errors import JournalError, JournalHeld
from ramet.frontend.journal_file import APPLICATION, TABLES, JournalFile, Mark, calling, forgetting
from ramet.frontend.journal_locks import RunLocks
from ramet.frontend.journal_text import digest, written
from ramet.frontend.journal_writer import Journal

from ..frontend.journaled import let_go

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


# --- what is in it ---


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_damaged_file_is_refused_or_reads_the_same(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Bytes flipped, cut off, or overwritten anywhere: never a wrong answer, never an error without a type."""
    path = str(tmp_path_factory.mktemp("damaged") / "runs.db")
    said = filled(path)
    chance, raw = random.Random(seed), bytearray(Path(path).read_bytes())
    kind = chance.randrange(3)
    at = chance.randrange(len(raw))
    if kind == 0:
        raw[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del raw[max(1, at) :]
    else:
        raw[at : at + 64] = chance.randbytes(len(raw[at : at + 64]))
    Path(path).write_bytes(raw)
    check_damaged(path, said)


def check_damaged(path: str, said: dict[str, Any]) -> None:
    try:
        file = JournalFile(path)
    except JournalError:
        return
    try:
        found = contents(file)
    except JournalError:
        return
    finally:
        file.close()
    assert found == said


def test_the_check_of_damage_can_fail(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the hashes a changed row is believed."""
    said = filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE calls SET record = '{\"k\":0}' WHERE op = '0.7'")
    connection.close()
    check_damaged(path, said)
    monkeypatch.setattr(journal_file, "_hashed", lambda row: True)
    with pytest.raises(AssertionError):
        check_damaged(path, said)


def test_columns_that_are_no_text(path: str) -> None:
    filled(path, 3)
    for change in ("record = x'ac'", "record = CAST(x'ac' AS TEXT)", "kind = CAST(x'ff' AS TEXT)"):
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE calls SET {change} WHERE op = '0.1'")
        connection.close()
        file = JournalFile(path)
        with pytest.raises(JournalError, match=r"the file was changed or is damaged|the file is damaged; take a copy"):
            file.calls("run")
        file.close()


def test_rows_that_are_missing_or_doubled_are_missed(path: str) -> None:
    """Each run has a seal over the set of its calls: one that was deleted would be made again, without a word."""
    filled(path, 5)
    file = JournalFile(path)
    file.write([forgetting("run", "0.1"), calling("run", "0.2", "call", "done", {}), forgetting("run", "0.99")])
    assert list(file.calls("run")) == ["0.0", "0.2", "0.3", "0.4"]
    file.write([calling("none", "0.1", "call", "done", {})])  # of a run that there is not
    with pytest.raises(JournalError, match="calls of run 'none' are missing"):
        file.calls("none")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM calls WHERE op = '0.3'")
    connection.close()
    with pytest.raises(JournalError, match="calls of run 'run' are missing"):
        file.calls("run")
    file.close()


def test_a_seal_that_is_none(path: str) -> None:
    file = JournalFile(path)
    columns = ("run", "running", written({}), "null", "many")
    with file._using() as connection:
        sql = "INSERT INTO runs (run, state, record, outcome, seal, digest) VALUES (?, ?, ?, ?, ?, ?)"
        connection.execute(sql, (*columns, digest(*columns)))
    with pytest.raises(JournalError, match="a seal of calls cannot be read"):
        file.write([calling("run", "0.1", "call", "done", {})])
    file.close()


@pytest.mark.parametrize("column", ["op", "kind", "state", "record", "run"])
def test_every_column_is_hashed(path: str, column: str) -> None:
    filled(path, 2)
    value = "other" if column != "run" else "run"
    with sqlite3.connect(path) as connection:
        if column == "run":
            connection.execute("UPDATE calls SET run = 'else' WHERE op = '0.1'")
            connection.execute("UPDATE runs SET run = 'else'")
            value = "else"
        else:
            connection.execute(f"UPDATE calls SET {column} = ? WHERE op = '0.1'", (value,))
    connection.close()
    file = JournalFile(path)
    with pytest.raises(JournalError, match="does not have its hash"):
        file.calls("run" if column != "run" else "else")
    file.close()


@pytest.mark.parametrize("column", ["state", "record", "outcome", "run", "seal"])
def test_every_column_of_a_run_is_hashed(path: str, column: str) -> None:
    filled(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE runs SET {column} = 'other'")
    connection.close()
    file = JournalFile(path)
    with pytest.raises(JournalError, match="does not have its hash"):
        file.runs()
    file.close()


def test_a_state_that_there_is_not(path: str) -> None:
    columns = ("run", "mended", written({}), "null", "0:0")
    file = JournalFile(path)
    with file._using() as connection:
        sql = "INSERT INTO runs (run, state, record, outcome, seal, digest) VALUES (?, ?, ?, ?, ?, ?)"
        connection.execute(sql, (*columns, digest(*columns)))
    with pytest.raises(JournalError, match="does not have its hash"):
        file.runs()
    file.close()


# --- SQL ---


def test_names_are_data(path: str) -> None:
    """Ids, paths and arguments that are SQL."""
    file = JournalFile(path)
    number = file.add(MARK, {MARK: MARK})
    file.write([calling(MARK, MARK, MARK, MARK, {MARK: MARK}), Mark(MARK, "failed", written(MARK))])
    assert file.calls(MARK)[MARK].record == {MARK: MARK}
    assert file.run(MARK)[:3] == (number, MARK, "failed")
    file.write([forgetting(MARK, MARK)])
    assert file.calls(MARK) == {}
    file.close()

    @rt.function
    def program(s: rt.State, text: str) -> str:
        s += text
        return s.gen(name=MARK).get()

    run = program.using(backend=rt.Mock(MARK), journal=path)(MARK)
    assert run.result(30) == MARK
    let_go()
    assert program.using(backend=rt.Mock("x"), journal=path, resume=run.id)(MARK).result(30) == MARK
    with pytest.raises(JournalError, match="has no run"):
        journal.settle(path, f"{run.id}' OR '1'='1", "0.1", None)


def sql_of(tree: ast.AST) -> list[ast.expr]:
    """The first argument of every call that hands SQL to SQLite."""
    names = ("execute", "executemany", "executescript")
    return [
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names
    ]


def built(expression: ast.expr) -> bool:
    """SQL that is put together while the program runs: all but constants, names, and the module's own constants."""
    if isinstance(expression, ast.JoinedStr):
        parts = [part.value for part in expression.values if isinstance(part, ast.FormattedValue)]
        return not all(isinstance(part, ast.Name) and part.id.isupper() for part in parts)
    return not isinstance(expression, ast.Constant | ast.Name)


def test_no_sql_is_put_together() -> None:
    found = [expression for path in FILES for expression in sql_of(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(found) > 10
    assert [ast.unparse(expression) for expression in found if built(expression)] == []
    assert all(isinstance(sql, str) and "%" not in sql for sql in TABLES.values())
    assert int.from_bytes(b"ramt", "big") == APPLICATION


def test_the_look_for_built_sql_can_fail() -> None:
    bad = [
        "c.execute('SELECT ' + name)",
        "c.execute(f'SELECT {name}')",
        "c.execute('SELECT %s' % name)",
        "c.execute('SELECT {}'.format(name))",
    ]
    for text in bad:
        assert [built(expression) for expression in sql_of(ast.parse(text))] == [True], text
    assert not built(sql_of(ast.parse("c.execute('SELECT ?', (name,))"))[0])


def test_nothing_is_made_from_text_but_data() -> None:
    """No module of the journal imports what makes objects or code of bytes."""
    banned = {"pickle", "marshal", "shelve", "importlib", "copyreg", "cloudpickle", "dill", "yaml"}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert names & banned == set(), path.name
