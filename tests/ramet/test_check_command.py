"""`ramet check`: exit statuses for CI, lines for people, JSON for programs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ramet.frontend.commands import WrongUsage
from ramet.frontend.commands.check import Options, check
from ramet.frontend.diagnostics import CODES

WARNS = """
import ramet as rt


@rt.function
def warns(s: rt.State, q: str) -> str:
    s += q
    return s.gen().get()
"""
FAILS = """
import ramet as rt


@rt.function
def fails(s: rt.State) -> str:
    return s.gen(regex="(", max_tokens=2).get()


@rt.function
def loops(s: rt.State, rounds: int | None, flag: bool = False) -> str:
    return "".join(s.gen(max_tokens=2).get() for _ in range(rounds or 1))
"""
SOUND = """
import ramet as rt
from other import helper


@rt.function
async def sound(s: rt.State, q: str) -> str:
    s += helper(q)
    return await s.gen(max_tokens=2)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in {"warns": WARNS, "fails": FAILS, "sound": SOUND}.items():
        (tmp_path / f"{name}_program.py").write_text(textwrap.dedent(text))
    (tmp_path / "other.py").write_text("def helper(q): return 'Say: ' + q\n")
    (tmp_path / "empty_program.py").write_text("x = 1\n")
    (tmp_path / "broken_program.py").write_text("1 / 0\n")
    return tmp_path


def test_warnings_fail_only_when_asked(files, capsys):
    file = files / "warns_program.py"
    assert check(Options(str(file))) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith(f"{file}:8: warning gen-without-bound: this generation has no max_tokens")
    assert second == "    in warns; give max_tokens="
    assert err == "1 program checked: 1 warning\n"
    assert check(Options(f"{file}:warns", strict=True)) == 1


def test_errors_fail_and_json_is_json(files, capsys):
    file = files / "fails_program.py"
    assert check(Options(str(file), json=True)) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert [(row["program"], row["severity"], row["code"]) for row in rows] == [
        ("fails", "error", "bad-constraint"),
        ("loops", "note", "not-compiled"),
    ]
    assert rows[0]["where"] == f"{file}:7"
    assert rows[0].keys() == {"program", "code", "severity", "message", "where", "remedy", "path", "when"}
    assert {row["code"] for row in rows} <= CODES.keys()
    assert "--arg" in rows[1]["remedy"]


def test_arguments_are_compiled_in(files, capsys):
    target = f"{files / 'fails_program.py'}:loops"
    assert check(Options(target, arg=("rounds=2",))) == 0
    assert capsys.readouterr().err == "1 program checked: nothing found\n"
    with pytest.raises(WrongUsage, match="no program here has such a parameter; did you mean rounds"):
        check(Options(target, arg=("round=2",)))
    with pytest.raises(WrongUsage, match="name=value"):
        check(Options(target, arg=("rounds",)))
    with pytest.raises(WrongUsage, match="rounds"):
        check(Options(target, arg=("rounds=x",)))


def test_a_sound_file_that_imports_its_neighbour(files, capsys):
    assert check(Options(str(files / "sound_program.py"), strict=True)) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("target", ["missing.py", "empty_program.py", "warns_program.py:nobody", "other.txt", "."])
def test_wrong_usage(files, target):
    with pytest.raises(WrongUsage):
        check(Options(str(files / target)))


def test_a_file_that_raises(files, capsys):
    assert check(Options(str(files / "broken_program.py"))) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def ramet(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "ramet", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder)


def test_the_command(files):
    assert ramet("sound_program.py", folder=files).returncode == 0
    done = ramet("warns_program.py", "--strict", folder=files)
    assert done.returncode == 1
    assert done.stdout.startswith("warns_program.py:8: warning gen-without-bound")
    missing = ramet("missing.py", folder=files)
    assert (missing.returncode, missing.stderr) == (2, "error: missing.py: no such file\n")


def test_colours_are_for_terminals(files):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "ramet", "check", "warns_program.py"]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, cwd=files, env=environment) as process:
        process.communicate(timeout=60)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b[33mwarning" in shown
    assert process.returncode == 0
