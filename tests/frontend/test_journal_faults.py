"""A journal that cannot be written or read: a typed error, and nothing that was recorded is lost."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import ramet as rt
from ramet.frontend import journal, journal_run
from ramet.frontend.host import HOST
from ramet.frontend.journal_file import JournalFile, calling
from ramet.frontend.journal_run import Scope
from ramet.frontend.journal_writer import Journal

from . import journaled
from .journal_cases import WAIT, Full, backend, rows, state, told, two_steps
from .journaled import Log, let_go, once


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log")


def failing(path: Path, log: Log, k: int) -> bool:
    """A run whose k-th commit finds the disk full, and one that resumes it: nothing that was recorded is lost. Whether
    it failed."""
    opened = JournalFile.__init__

    def opened_full(file: JournalFile, where: str) -> None:
        opened(file, where)
        file._connection = Full(file._connection, k)

    with mock.patch.object(JournalFile, "__init__", opened_full):
        try:
            once(log, path)
            failed = False
        except rt.JournalError as error:
            failed = "disk is full: there is no room to write" in str(error)
    let_go()
    finished = journaled._finished(path)
    log.path.rename(path.parent / f"before{k}")
    [row] = journal.runs(str(path))
    for op in journal.uncertain(str(path), row.run):
        journal.settle(str(path), row.run, op, None)
    assert json.loads(json.dumps(once(log, path, row.run))) == json.loads(json.dumps(EXPECTED))
    made = log.all("call") + [line.split()[1] for line in log.all("tool")]
    assert set(made) & finished == set()
    assert state(path) == ["finished"]
    return failed


EXPECTED: dict[str, Any] = {}


@pytest.fixture
def expected(tmp_path):
    EXPECTED.update(once(Log(tmp_path / "expected"), None))
    return EXPECTED


def test_a_full_disk_loses_nothing(expected, tmp_path):
    assert [failing(_folder(tmp_path, k), Log(tmp_path / f"log{k}"), k) for k in (0, 2, 7, 999)] == [True] * 3 + [False]


@pytest.mark.nightly
def test_a_full_disk_loses_nothing_at_any_commit(expected, tmp_path):
    k = 0
    while failing(_folder(tmp_path, k), Log(tmp_path / f"log{k}"), k):
        k += 1
    assert k > 8


@rt.function
def caller(s: rt.State) -> str:
    s += "Tell"
    s += s.call(lambda: told("inside").result(WAIT))
    return s.gen(name="last", max_tokens=2).get()


@pytest.mark.parametrize("control", ["", "an answer", "alone"])
def test_a_full_disk_in_a_program_that_is_called_ends_the_whole_run(control, tmp_path, monkeypatch):
    """What cannot be recorded is no answer of the function that called the program, also when its caller would take it
    for one. Controls: it is recorded as one, or the inner program ends alone."""
    if control == "an answer":
        monkeypatch.setattr(Scope, "_interrupted", lambda scope, error: False)
    if control:
        monkeypatch.setattr(Scope, "_lost", lambda scope, error: scope._execution.cancel(error))

    def attempt(path: Path, k: int) -> str:
        """What a run whose k-th commit fails says, or the one that resumes it."""
        opened = JournalFile.__init__

        def opened_full(file: JournalFile, where: str) -> None:
            opened(file, where)
            file._connection = Full(file._connection, k)

        with mock.patch.object(JournalFile, "__init__", opened_full):
            run = caller.using(backend=rt.Mock("word"), journal=path)()
            try:
                return run.result(WAIT)
            except rt.JournalError:
                let_go()
        for op in journal.uncertain(str(path), run.id):
            journal.settle(str(path), run.id, op, None)
        return caller.using(backend=rt.Mock("word"), journal=path, resume=run.id)().result(WAIT)

    def said(k: int) -> str:
        try:
            return attempt(_folder(tmp_path, k), k)
        except rt.RametError as error:
            return type(error).__name__

    assert ({said(k) for k in range(8)} == {"word"}) == (not control)


def _folder(tmp_path: Path, k: int) -> Path:
    (tmp_path / str(k)).mkdir()
    return tmp_path / str(k) / "runs.db"


def test_a_disk_that_is_really_full(path):
    """SQLite's own limit of pages, under a run that wants more."""
    opened = JournalFile.__init__

    def opened_small(file: JournalFile, where: str) -> None:
        opened(file, where)
        pages = file._connection.execute("PRAGMA page_count").fetchone()[0]
        file._connection.execute(f"PRAGMA max_page_count = {pages + 1}")

    program = told.using(backend=rt.Mock("word " * 20_000), journal=path)
    long = rt.function(lambda s: (s.__iadd__("x"), s.gen().get())[1]).using(backend=rt.Mock("word " * 20_000))
    with mock.patch.object(JournalFile, "__init__", opened_small):
        run = long.using(journal=path)()
        with pytest.raises(rt.JournalError, match="database or disk is full: there is no room to write"):
            run.result(WAIT)
    assert program("a").result(WAIT).startswith("word")
    assert state(path) == ["failed", "finished"]


def test_a_journal_that_others_lock(path):
    """Somebody keeps it locked for longer than a write waits."""
    told.using(backend=rt.Mock("x"), journal=path)("a").result(WAIT)
    mocked = rt.Mock(rt.Mock.PENDING)
    with mock.patch("ramet.frontend.journal_file.PATIENCE", 0.05):
        run = told.using(backend=mocked, journal=path)("b")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        mocked.release("_0.1", "y")
        with pytest.raises(rt.JournalError, match="database is locked: another process has been writing"):
            run.result(WAIT)
        with pytest.raises(rt.JournalError, match="database is locked"):
            told.using(backend=mocked, journal=path)("c")
        other.execute("ROLLBACK")
        other.close()
    again = told.using(backend=rt.Mock("y"), journal=path, resume=run.id)("b")
    assert again.result(WAIT) == "y"


def test_a_journal_ends_when_all_is_written(path):
    """What was put before its end is written, also what comes in one transaction with it."""
    shared = Journal(str(path))
    begun, go, order = threading.Event(), threading.Event(), []

    def first(error: Any) -> None:
        begun.set()
        go.wait(WAIT)

    shared.put((), first)
    begun.wait(WAIT)
    shared.file.add("run", {})
    for k in range(3):
        shared.put([calling("run", f"0.{k}", "call", "done", {})], lambda error, k=k: order.append((k, error)))
    shared.put((), lambda error: 1 / 0)  # what one run does there is nobody else's trouble
    shared.put((), lambda error: order.append("last"))
    shared.end()
    shared.locks.close()
    go.set()
    let_go()
    assert order == [(0, None), (1, None), (2, None), "last"]
    with pytest.raises(rt.JournalError, match="closed"):
        shared.file.runs()
    assert len(rows(path)) == 3


def test_a_write_that_fails_inside_a_tool(path):
    """Before it begins: it is not called. After it: its value is nobody's."""
    calls: list[str] = []

    @rt.function
    def body(s: rt.State) -> str:
        s += s.call(calls.append, "x").map(str)
        return s.gen(max_tokens=1).get()

    for k, made in ((0, 0), (1, 1)):
        opened = JournalFile.__init__

        def opened_full(file: JournalFile, where: str, opened: Any = opened, k: int = k) -> None:
            opened(file, where)
            file._connection = Full(file._connection, k)

        calls.clear()
        with (
            mock.patch.object(JournalFile, "__init__", opened_full),
            pytest.raises(rt.JournalError, match="disk is full"),
        ):
            body.using(backend=rt.Mock("x"), journal=path)().result(WAIT)
        assert len(calls) == made


def test_a_damaged_row_ends_the_resumed_run(path):
    """Rows that were changed, with and without a hash that fits."""
    program = told.using(backend=rt.Mock("x"), journal=path)
    run = program("a")
    run.result(WAIT)
    digest = json.loads(sqlite3.connect(path).execute("SELECT record FROM calls").fetchone()[0])["digest"]
    for record in ({"digest": digest}, {"digest": digest, "finished": {"type": "finished"}}):
        file = JournalFile(str(path))
        file.write([calling(run.id, "0.1", "call", "done", record)])
        file.close()
        with pytest.raises(rt.JournalError, match=r"row of 0\.1 cannot be read"):
            program.using(resume=run.id)("a").result(WAIT)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE calls SET record = '{}'")
    with pytest.raises(rt.JournalError, match="does not have its hash"):
        program.using(resume=run.id)("a")
    assert HOST.shared == {}


def test_a_run_row_that_cannot_be_read(path):
    file = JournalFile(str(path))
    file.add("abc", {"arguments": 3})
    file.close()
    with pytest.raises(rt.JournalError, match="row of run abc cannot be read"):
        told.using(backend=rt.Mock("x"), journal=path, resume="abc")("a")


def test_nothing_is_lost_quietly(path):
    """Control: a journal that forgets to record makes the next run call everything again."""
    log = Log(path.parent / "log")
    program = two_steps(str.upper).using(backend=backend(log), journal=path)
    with mock.patch.object(Scope, "record", lambda scope, op, kind, state, row, then: scope.then(then)):
        run = program("a")
        run.result(WAIT)
    assert len(log.all("call")) == 2
    program.using(resume=run.id)("a").result(WAIT)
    assert len(log.all("call")) == 4
    assert journal_run.MARK.startswith("__ramet")
