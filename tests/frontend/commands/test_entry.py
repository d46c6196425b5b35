"""Where the console script begins: what it reads by itself the parser reads alike, and what is left to the parser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.__main__ import app
from ramet.frontend.commands import chat as chat_command
from ramet.frontend.commands import entry
from ramet.frontend.commands import run as run_command

PLAIN: list[tuple[list[str], dict[str, Any]]] = [
    (["run", "Hi"], {"target": "Hi"}),
    (["run", "-"], {"target": "-"}),
    (["run", "a.py:f", "-", "--arg", "n=1", "--arg=m=2"], {"target": "a.py:f", "prompt": "-", "arg": ("n=1", "m=2")}),
    (["run", "Hi", "--max-tokens", "3", "--max-tokens=4", "--seed", "0"], {"target": "Hi", "max_tokens": 4, "seed": 0}),
    (["run", "--temperature", "0.5", "--json", "Hi"], {"temperature": 0.5, "json": True, "target": "Hi"}),
    (["run", "Hi", "--model", "random:tiny", "--dtype=int8", "--threads", "1"],
     {"target": "Hi", "model": "random:tiny", "dtype": "int8", "threads": 1}),
    (["chat", "--system", "Be kind."], {"system": "Be kind."}),
]  # fmt: skip
NOT_PLAIN = [
    [], ["demo"], ["--version"], ["run", "--help"], ["run", "Hi", "--url", "localhost:1"], ["run", "--", "-x"],
    ["run", "Hi", "--max-tokens", "0"], ["run", "Hi", "--max-tokens"], ["run", "Hi", "--seed", "-1"],
    ["run", "Hi", "--max_tokens", "3"], ["run", "Hi", "--MODEL", "x"], ["run", "Hi", "--temperature", "nan"],
    ["run", "a", "b", "c"], ["run", "Hi", "--json=1"], ["run", "Hi", "-j"], ["run", "Hi", "--seed", "1_0"],
    ["run", "Hi", "--seed", "\u0663"], ["run", "Hi", "--target", "x"], ["chat", "localhost:1"], ["chat", "--json"],
]  # fmt: skip


@pytest.mark.parametrize(("words", "found"), PLAIN, ids=lambda value: " ".join(value)[:40])
def test_plain_words(words: list[str], found: dict[str, Any]) -> None:
    assert entry.plain(words) == found


@pytest.mark.parametrize("words", NOT_PLAIN, ids=" ".join)
def test_words_for_the_parser(words: list[str]) -> None:
    assert entry.plain(words) is None and entry.engine_of(words, {}) is None


def parsed(words: list[str]) -> object:
    """The options that the parser of all commands makes of `words`; its exit status when it refuses them."""
    seen: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_command, "run", lambda options, early: seen.append(options) or 0)
        patch.setattr(chat_command, "chat", lambda options, early: seen.append(options))
        try:
            app(words)
        except SystemExit as ended:
            if not seen:
                return ended.code
    return seen[0]


def differences(words: list[str]) -> str:
    """How the plain reading of `words`, if there is one, differs from the parser's."""
    given = entry.plain(words)
    if given is None:
        return ""
    made = {"run": run_command.Options, "chat": chat_command.Options}[words[0]](**given)  # type: ignore[arg-type]
    wanted = parsed(words)
    return "" if made == wanted else f"{made} instead of {wanted}"


NAMES = ("--model", "--dtype", "--threads", "--seed", "--temperature", "--max-tokens", "--arg", "--html", "--journal")
VALUES = ("Hi", "-", "0", "3", "007", "0.25", "1e3", "-1", "", "x=y", "a.py:f", "--json", "٣", "--", "9" * 16)
WORD = st.sampled_from((*NAMES, *VALUES, "--json", "--events", "--url", "--system", "--help", "--seed=5", "--arg=n=1"))
PAIR = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)).map(list)
COMMAND = st.lists(PAIR | WORD.map(lambda word: [word]), max_size=5).map(lambda parts: sum(parts, list[str]()))


@given(st.sampled_from(["run", "chat"]), COMMAND)
def test_plain_words_mean_what_the_parser_reads(command: str, rest: list[str]) -> None:
    assert differences([command, *rest]) == ""


@pytest.mark.parametrize(("words", "found"), PLAIN, ids=lambda value: " ".join(value)[:40])
def test_the_table_means_what_the_parser_reads(words: list[str], found: dict[str, Any]) -> None:
    assert differences(words) == ""


CONTROLS = {
    "a bound is forgotten": ("max_tokens", lambda text: int(text), ["run", "Hi", "--max-tokens", "0"]),
    "a number stays text": ("seed", str, ["run", "Hi", "--seed", "5"]),
    "Python's numbers are taken": ("threads", lambda text: int(text) + 1, ["run", "Hi", "--threads", "1"]),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_reading_that_differs_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    option, reader, words = CONTROLS[name]
    assert differences(words) == ""
    monkeypatch.setitem(entry._VALUED["run"], option, reader)
    assert differences(words) != ""


@pytest.mark.parametrize(
    ("words", "environment", "options"),
    [
        (["run", "Hi"], {}, {}),
        (["run", "Hi"], {"OPENAI_BASE_URL": "http://127.0.0.1:1"}, {}),  # of `ramet chat` alone
        (["run", "Hi", "--model="], {}, {}),
        (["run", "Hi", "--dtype", "int8", "--threads", "2"], {}, {"dtype": "int8", "threads": 2}),
        (["chat"], {}, {}),
        (["chat"], {"OPENAI_BASE_URL": "http://127.0.0.1:1"}, None),
    ],
    ids=str,
)
def test_the_engine_that_will_be_wanted(words: list[str], environment: dict[str, str], options: object) -> None:
    assert entry.engine_of(words, environment) == options


# -- as a user runs it


def launched(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "ramet", *words]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


TINY = ("--model", "random:tiny", "--dtype", "int8", "--threads", "1", "--max-tokens", "2", "--seed", "1")


def imported(log: str) -> list[str]:
    return re.findall(r"\| +([\w.]+)$", log, re.MULTILINE)


@pytest.mark.model
def test_the_engine_starts_first_and_no_parser_is_imported() -> None:
    done = launched("run", "Hi", *TINY, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr[-2000:]
    found = imported(done.stderr)
    assert found.count("ramet.runtime.engine") == 1  # the process that was started early is the one that answered
    assert not {"typer", "click", "pydantic", "rich", "httpx", "torch", "ramet.__main__"} & set(found)
    before = found[: found.index("ramet.runtime.launch")]
    assert not {"msgspec", "zmq", "tokenizers", "jinja2", "asyncio", "ramet.frontend.run"} & set(before)
    assert len([name for name in before if name.startswith("ramet.")]) < 12


@pytest.mark.model
@pytest.mark.parametrize("words", [["run", "Hi", "--max-tokens", "0"], ["run", "nowhere.py"], ["run", "--help"]])
def test_what_does_not_run_leaves_no_engine(words: list[str], tmp_path: Any) -> None:
    done = launched(*words, TMPDIR=str(tmp_path))
    assert done.returncode == (0 if "--help" in words else 2)
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_a_reader_that_has_gone_is_status_1() -> None:
    command = [sys.executable, "-P", "-m", "ramet", "run", "Hi", *TINY]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writing)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("words", [["run", "Hi"], ["run", "Hi", "--url", "localhost:1"]], ids=" ".join)
def test_modules_are_out_of_the_collectors_walks_and_it_is_on(words: list[str]) -> None:
    code = (
        "import gc\nfrom ramet.frontend.commands.entry import _command\n"
        f"_command({words!r}, None)\nprint(gc.isenabled(), gc.get_freeze_count() > 5000, len(gc.get_objects()) < 2000)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_control_c_while_the_command_is_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def importing(words: object, begun: object) -> None:
        raise KeyboardInterrupt

    closed: list[bool] = []
    begun = type("Begun", (), {"close": lambda self: closed.append(True)})()
    monkeypatch.setattr(entry, "_begun", lambda words: begun)
    monkeypatch.setattr(entry, "_command", importing)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert closed == [True]
