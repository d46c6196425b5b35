"""R13, positive controls: each guard of the journal's file is taken out by itself, and the case that it is for is seen.

The cases: files that others may touch, of other programs, changed, damaged, with rows that are missing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ramet.frontend import journal_file
from ramet.frontend.errors import JournalError

from .mutation import changed, without_guards

Case = Callable[[Any, str], None]


def filled(module: Any, path: str) -> None:
    """A closed journal of one run with two calls."""
    file = module.JournalFile(path)
    file.add("run", {"a": 1})
    file.write([module.calling("run", f"0.{k}", "call", "done", {"k": k}) for k in range(2)])
    file.close()


def sql(path: str, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def altered(*statements: str) -> Case:
    """Opened and read after somebody ran SQL on it."""

    def case(module: Any, path: str) -> None:
        filled(module, path)
        sql(path, *statements)
        file = module.JournalFile(path)
        try:
            file.runs()
            file.calls("run")
        finally:
            file.close()

    return case


def of_others(module: Any, path: str) -> None:
    filled(module, path)
    os.chmod(path, 0o644)
    module.JournalFile(path).close()


def a_pipe(module: Any, path: str) -> None:
    os.mkfifo(path, 0o600)
    module._made(path)


def no_wal(module: Any, path: str) -> None:
    class Elsewhere:
        """A file system on which SQLite has no WAL."""

        def __init__(self) -> None:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self.in_transaction = False

        def execute(self, statement: str, *values: Any) -> Any:
            return self._connection.execute(statement.replace("journal_mode = WAL", "journal_mode"), *values)

    module._opened(Elsewhere())


def damaged(module: Any, path: str) -> None:
    """A header that counts free pages which are not there: every row is as it was."""
    filled(module, path)
    with Path(path).open("r+b") as file:
        file.seek(36)
        file.write((5).to_bytes(4, "big"))
    module.JournalFile(path).close()


def after_its_end(module: Any, path: str) -> None:
    filled(module, path)
    file = module.JournalFile(path)
    file.close()
    with file._using() as connection:
        assert connection is None, "it was handed a closed journal"


def in_a_child(module: Any, path: str) -> None:
    filled(module, path)
    file = module.JournalFile(path)
    file._pid += 1  # as it is in a process that was forked
    try:
        file.runs()
    finally:
        file._pid -= 1
        file.close()


def of_no_run(module: Any, path: str) -> None:
    filled(module, path)
    file = module.JournalFile(path)
    try:
        assert file.run("another").run == "another"
    except IndexError:
        return
    finally:
        file.close()


# Words of the guard that a case is for: the case.
CASES: dict[str, Case] = {
    "_using: self._connection is None": after_its_end,
    "_using: self.forked": in_a_child,
    "run: not found": of_no_run,
    "calls: len(found)": altered("DELETE FROM calls WHERE op = '0.1'"),
    "_made: not stat.S_ISREG": a_pipe,
    "_made: found.st_uid": of_others,
    "_opened: mode": no_wal,
    "_checked: application": altered("PRAGMA application_id = 7"),
    "_checked: version": altered("PRAGMA user_version = 9"),
    "_checked: _schema": altered("CREATE TABLE other (x)"),
    "_checked: found": damaged,
    "_run: not _hashed": altered("UPDATE runs SET record = '{}'"),
    "_call: not _hashed": altered("UPDATE calls SET kind = 'host' WHERE op = '0.1'"),
}


def refused(module: Any, case: Case, path: str) -> bool:
    """The check: a case is refused with the journal's own error."""
    try:
        case(module, path)
    except JournalError:
        return True
    except (AssertionError, sqlite3.Error, OSError):
        return False
    return False


def test_every_guard_has_its_case() -> None:
    names = [mutant.name for mutant in without_guards(journal_file)]
    assert len(names) == len(CASES)
    assert all(sum(name.startswith(part) for name in names) == 1 for part in CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_guard_and_its_control(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mutant,) = (each for each in without_guards(journal_file) if each.name.startswith(name))
    assert refused(journal_file, CASES[name], str(tmp_path / "one.db"))
    assert not refused(mutant.load(tmp_path, monkeypatch), CASES[name], str(tmp_path / "other.db"))


LOOSER = {  # of what is made: what it becomes, and which mode the file has then
    "anybody may read it": ("os.O_EXCL | os.O_CLOEXEC, 0o600", "os.O_EXCL | os.O_CLOEXEC, 0o644", 0o644),
}


@pytest.mark.parametrize("name", LOOSER)
def test_the_mode_and_its_control(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, mode = LOOSER[name]
    before = os.umask(0)
    try:
        filled(journal_file, str(tmp_path / "one.db"))
        filled(changed(journal_file, name, old, new).load(tmp_path, monkeypatch), str(tmp_path / "other.db"))
    finally:
        os.umask(before)
    assert (tmp_path / "one.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "other.db").stat().st_mode & 0o777 == mode
