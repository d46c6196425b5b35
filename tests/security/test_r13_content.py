"""R13, the content of a journal: every row is hashed, damage and missing rows are found, SQL is never put together from
text, and what is read becomes data only.
"""

from __future__ import annotations

import ast
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend import journal, journal_file
from ramet.frontend.errors import JournalError
from ramet.frontend.journal_file import APPLICATION, TABLES, JournalFile, Mark, calling, forgetting
from ramet.frontend.journal_text import digest, written

from ..frontend.journaled import let_go
from .test_r13_journal import contents, filled

FOLDER = Path(journal_file.__file__).parent
FILES = sorted(FOLDER.glob("journal*.py"))
MARK = "'; DROP TABLE calls; --"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "runs.db")


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
