"""`ramet run --journal` and `ramet resume`: what is listed, what is gone on with, wrong input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ramet.__main__ import app
from ramet.frontend import journal
from ramet.frontend.journal_file import JournalFile, calling

from .journaled import let_go

pytestmark = pytest.mark.model
PROGRAM = """
import os
import ramet as rt


class Thing:
    pass


def tool(text):
    mark = os.environ["MARK"]
    with open(mark, "a") as file:
        file.write("called ")
    if not os.path.exists(mark + ".ok"):
        raise OSError("the line is busy")
    return text.upper()


@rt.function(max_tokens=3, ignore_eos=True)
def pair(s: rt.State, topic: str, n: int = 2) -> str:
    s += topic
    first = s.gen(name="first").get()
    value = s.call(tool, first).get()
    return f"{n} {value}" + s.gen(name="second").get()


@rt.function
def thing(s: rt.State, what: object = Thing()) -> str:
    return "nothing"
"""
Ramet = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ramet(folder: Path) -> Ramet:
    def invoke(*arguments: str) -> Result:
        done = CliRunner().invoke(app, list(arguments))
        let_go()
        return done

    return invoke


ENGINE = ("--model", "random:tiny", "--threads", "1")


def test_a_run_that_failed_goes_on(ramet: Ramet, folder: Path) -> None:
    arguments = (
        "run",
        "program.py:pair",
        "trees",
        "--arg",
        "n=3",
        "--temperature",
        "0.5",
        *ENGINE,
        "--journal",
        "runs.db",
    )
    failed = ramet(*arguments)
    assert failed.exit_code == 1
    assert "the line is busy" in failed.stderr
    [row] = journal.runs("runs.db")
    assert f"run {row.run} in runs.db" in failed.stderr

    listed = ramet("resume", "runs.db")
    assert listed.exit_code == 0
    assert listed.stdout.startswith(f"{row.run}  failed")
    assert 'pair(topic="trees", n=3)' in listed.stdout
    assert "ToolError: tool raised OSError: the line is busy" in listed.stdout
    assert ramet("resume", "runs.db", row.run).stdout == listed.stdout

    Path("mark.ok").touch()
    done = ramet("resume", "runs.db", row.run, "program.py:pair", *ENGINE, "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith('"3 ')
    assert Path("mark").read_text() == "called called "
    assert f"seed {row.record['seed']}" in done.stderr

    over = ramet("resume", "runs.db")
    assert (over.stdout, over.stderr) == ("", "runs.db: every run has finished\n")


def test_interrupted_host_calls_are_shown_and_settled(ramet: Ramet, folder: Path) -> None:
    file = JournalFile("runs.db")
    file.add("abc", {"program": "pair", "arguments": {"topic": '"' + "long " * 20 + '"'}})
    file.write([calling("abc", op, "host", "begun", {"digest": "d", "name": "tool"}) for op in ("0.2", "0.3")])
    file.close()
    shown = ramet("resume", "runs.db", "abc")
    assert "  0.2  tool: had begun, its result is unknown; --again 0.2, or --result 0.2=JSON\n" in shown.stdout
    assert "long l...)" in shown.stdout
    assert ramet("resume", "runs.db", "abc", "--again", "0.2", "--result", '0.3={"a": "b=c"}').exit_code == 0
    assert journal.uncertain("runs.db", "abc") == {}
    file = JournalFile("runs.db")
    assert {op: call.record["value"] for op, call in file.calls("abc").items()} == {"0.3": {"a": "b=c"}}
    file.close()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("none.db",), 1, "none.db: no such journal"),
        (("runs.db", "xyz"), 1, "has no run 'xyz'; unfinished ones: abc"),
        (("runs.db", "--again", "0.1"), 2, "name the run"),
        (("runs.db", "abc", "--result", "0.1"), 2, "write CALL=JSON"),
        (("runs.db", "abc", "--again", "0.1"), 1, "no interrupted host call"),
        (("runs.db", "abc", "words and words"), 2, "is no .py file"),
        (("runs.db", "abc", "program.py:thing", "--model", "random:tiny"), 1, "cannot make again"),
    ],
)
def test_wrong_input(ramet: Ramet, arguments: tuple[str, ...], status: int, says: str) -> None:
    file = JournalFile("runs.db")
    file.add("abc", {"program": "thing", "arguments": {"what": '{"$":"object","v":"x.Thing"}'}})
    file.close()
    done = ramet("resume", *arguments)
    assert done.exit_code == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_alone_has_no_journal(ramet: Ramet) -> None:
    done = ramet("run", "a prompt", "--journal", "runs.db")
    assert done.exit_code == 2
    assert "--journal is for the program of a file" in done.stderr
    assert not os.path.exists("runs.db")
