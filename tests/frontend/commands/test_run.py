"""`ramet run`: programs of files and prompts, arguments as text, every form of output, and wrong input of all kinds."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import ramet as rt
import ramet.frontend
from ramet.__main__ import app
from ramet.frontend.commands import WrongUsage
from ramet.frontend.commands.arguments import arguments, convert
from ramet.frontend.commands.loading import load, split
from ramet.frontend.commands.run import as_json, shown
from ramet.frontend.commands.turn import conversing
from ramet.frontend.ir import Ended, Event, Finished

from ...server.serving import Served, serving
from ..remotely import Peer, said
from .terminal import WAIT, Terminal

PROGRAMS = """
from __future__ import annotations
import enum
from dataclasses import dataclass
from typing import Literal
import ramet as rt
from beside import fail


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclass
class Point:
    x: int
    y: float = 0.5


@rt.function(temperature=0, max_tokens=4, ignore_eos=True)
def pair(s: rt.State, question: str, n: int = 2, mood: Mood = Mood.GOOD, at: Point | None = None) -> dict:
    s += question
    branches = s.fork(n)
    for branch in branches:
        branch.gen(name="word")
    return {"words": branches.gather("word"), "mood": mood, "at": at}


@rt.function
def wrong(s: rt.State) -> None:
    s += "text"
    fail(0)


@rt.function
def tool(s: rt.State) -> str:
    return s.call(fail, 0).get()


@rt.function
def both(s: rt.State) -> None:
    for branch in s.fork(2):
        branch += "word " * 3000
        branch.gen()


@rt.function
def quiet(s: rt.State) -> None:
    print("printed")


not_one = 3
"""
BESIDE = "def fail(x):\n    return 1 // x\n"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with programs; what loading them changes in this process is undone."""
    (tmp_path / "programs.py").write_text(PROGRAMS, encoding="utf-8")
    (tmp_path / "beside.py").write_text(BESIDE, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name in ("programs", "beside"):  # of other tests of this process
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "RAMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def run(*words: str, say: str | bytes = "") -> Result:
    """`ramet run`, in this process."""
    return CliRunner().invoke(app, ["run", *words], input=say)


def error(done: Result, status: int = 2) -> str:
    """The one line of a command that failed with `status` and did nothing else."""
    assert (done.exit_code, done.stdout) == (status, ""), done.output
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# --- programs of a file


@pytest.mark.model
def test_a_program_runs_as_on_the_engine(folder: Path, served: Served) -> None:
    program = load(folder / "programs.py", "pair").using(backend=served.offline())
    expected = program("Once upon", n=3).result(WAIT)
    words = ("programs.py:pair", "Once upon", "--arg", "n=3", "--arg", "mood=bad", "--arg", 'at={"x": 4}')
    done = run(*words, "--url", served.url, "--json", "--seed", "7")
    assert done.exit_code == 0, done.output
    point = {"x": 4, "y": 0.5}
    assert json.loads(done.stdout) == {"words": expected["words"], "mood": "bad", "at": point}
    assert done.stdout.count("\n") == 1
    [usage] = done.stderr.splitlines()
    assert usage.startswith("3 calls, ")
    assert " 12 generated, " in usage
    assert usage.endswith(", seed 7")


@pytest.mark.model
def test_an_engine_here(folder: Path) -> None:
    words = ("--model", "random:tiny", "--threads", "1", "--arg", "question=Once upon", "--html", "page.html")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ramet", "run", "programs.py:pair", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    with rt.Engine("random:tiny", threads=1, in_process=True) as engine:
        result = load(folder / "programs.py", "pair").using(backend=engine)("Once upon").result(WAIT)
    assert done.stdout == shown(result).replace("programs.", "")
    wrote, usage = done.stderr.splitlines()
    assert wrote == "wrote page.html"
    assert usage.startswith("2 calls, ")
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "Once upon" in page
    assert "<script" not in page or "http" not in page


@pytest.mark.model
def test_events_are_json_lines(folder: Path, served: Served) -> None:
    done = run("programs.py:pair", "Once", "--url", served.url, "--events")
    *lines, last = done.stdout.splitlines()
    events: list[Any] = [msgspec.json.decode(line, type=Event) for line in lines]
    assert isinstance(events[-1], Ended)
    values = [event.value for event in events if isinstance(event, Finished)]
    assert json.loads(last) == {"type": "result", "value": {"words": values, "mood": "good", "at": None}}


@pytest.mark.model
def test_branches_show_on_a_terminal(folder: Path, served: Served) -> None:
    (folder / "beside.py").write_text("def fail(x):\n    return x\n", encoding="utf-8")
    with Terminal("run", str(folder / "programs.py:pair"), "Once upon", "--url", served.url) as screen:
        assert screen.ended() == 0
    assert "✓ branch 1" in screen.shown
    assert "✓ branch 2" in screen.shown
    assert "{'at': None," in screen.shown
    assert screen.shown.rstrip().splitlines()[-1].startswith("2 calls, ")


def test_the_users_traceback_is_the_users(folder: Path, served: Served) -> None:
    for name in ("wrong", "tool"):
        done = run(f"programs.py:{name}", "--url", served.url)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("Traceback (most recent call last):\n")
        assert 'beside.py", line 2, in fail\n    return 1 // x\n' in done.stderr
        assert "ZeroDivisionError" in done.stderr
        assert all(inside not in done.stderr for inside in ("frontend", "importlib", "site-packages"))
    assert "error: fail raised ZeroDivisionError" in done.stderr.splitlines()[-1]
    assert "(at programs.py:" in done.stderr.splitlines()[-1]


def test_several_failures_are_a_line_each(folder: Path, served: Served) -> None:
    done = run("programs.py:both", "--url", served.url)
    assert (done.exit_code, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") and "context" in line for line in lines)


def test_files_that_do_not_load(folder: Path) -> None:
    (folder / "syntax.py").write_text("def f(:\n", encoding="utf-8")
    (folder / "missing.py").write_text("import no_such_module_of_ours\n", encoding="utf-8")
    (folder / "option.py").write_text("import ramet as rt\n\n@rt.function(temprature=1)\ndef f(s): ...\n", "utf-8")
    for name, last in (("syntax", "SyntaxError: invalid syntax"), ("missing", "No module named 'no_such_module")):
        done = run(f"{name}.py")
        assert (done.exit_code, done.stdout) == (1, "")
        assert last in done.stderr.splitlines()[-1]
        assert f'{name}.py", line 1' in done.stderr
        assert all(inside not in done.stderr for inside in ("frontend", "importlib"))
    assert error(run("option.py"), 1).endswith("did you mean temperature? (at option.py:3)")
    assert "missing" not in sys.modules


def test_which_program(folder: Path) -> None:
    (folder / "none.py").write_text("from programs import pair\n", encoding="utf-8")
    assert "has 5 programs, say which: programs.py:pair, programs.py:wrong" in error(run("programs.py"))
    assert "pear is not there; did you mean pair?" in error(run("programs.py:pear"))
    assert "not_one is no @function" in error(run("programs.py:not_one"))
    assert "has no program; mark a function" in error(run("none.py"))
    assert load(folder / "none.py", "pair").__name__ == "pair"
    assert "nowhere.py: no such file" in error(run("nowhere.py"))
    assert ": is a folder, not a .py file; to ask a model about it" in error(run(str(folder)))
    with pytest.raises(WrongUsage, match=r"is a folder, not a \.py file; give FILE\.py or FILE\.py:NAME$"):
        split(str(folder))  # of commands that ask no model


def test_a_file_finds_what_lies_beside_it_and_nothing_of_ours(folder: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    load(folder / "programs.py", "pair")
    assert sys.path[0] == str(folder.resolve())
    if (root / "frontend").is_dir():  # the sources: their folder would make `kernels` importable
        load(root / "examples" / "self_consistency.py", "")
        assert sys.path[0] == str(root / "examples")
    assert str(root) not in sys.path


def test_the_folder_that_holds_ramet_is_never_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "frontend").mkdir()
    monkeypatch.setattr(ramet.frontend, "__path__", [str(folder / "frontend")])
    (folder / "rooted.py").write_text("import ramet as rt\n\n@rt.function\ndef f(s): ...\n", encoding="utf-8")
    assert load(folder / "rooted.py", "").__name__ == "f"
    assert str(folder.resolve()) not in sys.path


def test_a_module_that_is_there_already_stays(folder: Path) -> None:
    (folder / "json.py").write_text("import ramet as rt\n\n@rt.function\ndef f(s): ...\n", encoding="utf-8")
    assert load(folder / "json.py", "").__module__ == "ramet_run_json"
    assert sys.modules["json"] is json


# --- arguments


def test_wrong_arguments_are_told_before_a_model_is_loaded(folder: Path) -> None:
    def said(*pairs: str, prompt: tuple[str, ...] = ("Q",)) -> str:
        words = [word for pair in pairs for word in ("--arg", pair)]
        return error(run("programs.py:pair", *prompt, *words, "--model", "nope"))

    assert "no such parameter; did you mean question?; pair(question: str, n: int = 2, mood: Mood = 'good'" in said(
        "qestion=1"
    )
    assert "missing question: give --arg question=...; pair(question: str" in said("n=1", prompt=())
    assert "n='x': Input should be a valid integer" in said("n=x")
    assert "mood='ugly': must be one of good, bad" in said("mood=ugly")
    assert 'at=\'{"x": "q"}\': x: Input should be a valid integer' in said('at={"x": "q"}')
    assert "Invalid JSON" in said("at={")
    assert "write --arg name=value" in said("n")
    assert "n=...: is given twice" in said("n=1", "n=2")
    done = run("programs.py:wrong", "Q")
    assert "no parameter is left for it: wrong()" in error(done)
    assert "seed=-1: must be an integer of at least 0" in error(run("programs.py:pair", "Q", "--seed", "-1"))
    assert "choose one" in error(run("programs.py:pair", "Q", "--json", "--events"))
    assert "its folder does not exist" in error(run("programs.py:pair", "Q", "--html", "no/page.html"))
    assert "no such file or directory" in error(run("programs.py:pair", "Q", "--model", "nope"), 1)
    assert "is no address" in error(run("programs.py:pair", "Q", "--url", "nope"))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Box(pydantic.BaseModel):
    size: Annotated[int, pydantic.Field(ge=0)]


@dataclass
class Pair:
    left: int
    right: str = "r"


UserId = NewType("UserId", int)


@pytest.mark.parametrize(
    ("note", "text", "value"),
    [
        (str, "1", "1"),
        (Any, "1", "1"),
        (int, " 12 ", 12),
        (float, "1e3", 1000.0),
        (bool, "yes", True),
        (bool, "False", False),
        (Literal["a", 2], "2", 2),
        (Colour, "2", Colour.BLUE),
        (Colour, "RED", Colour.RED),
        (list[int], "[1, 2]", [1, 2]),
        (Sequence[str], '["a"]', ["a"]),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (dict[str, float], '{"a": 1}', {"a": 1.0}),
        (Mapping[str, int], '{"a": 1}', {"a": 1}),
        (Pair, '{"left": 1}', Pair(1)),
        (Box, '{"size": 1}', Box(size=1)),
        (int | None, "none", None),
        (int | None, "3", 3),
        (int | str, "3", 3),
        (int | str, "x", "x"),
        (list[str] | None, '["a"]', ["a"]),
        (Annotated[int, "of things"], "3", 3),
        (UserId, "3", 3),
        (Path, "a/b", Path("a/b")),
    ],
    ids=str,
)
def test_conversions(note: Any, text: str, value: Any) -> None:
    found = convert("x", text, note)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (int, "1.5"),
        (int, ""),
        (int, "9" * 5000),
        (float, "x"),
        (bool, "2"),
        (Literal["a", 2], "b"),
        (Colour, "3"),
        (list[int], "1"),
        (list[int], '["x"]'),
        (list[int], "[" * 100_000),
        (Pair, "{}"),
        (Box, '{"size": -1}'),
        (int | None, "x"),
        (type(open), "x"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_refused_conversions(note: Any, text: str) -> None:
    with pytest.raises(WrongUsage) as refused:
        convert("x", text, note)
    assert "--arg x=" in str(refused.value)
    assert len(str(refused.value)) < 400


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_arguments_round_trip(value: Any) -> None:
    assert convert("x", json.dumps([value]), list[Any]) == [value]


@given(st.integers() | st.floats(allow_nan=False))
def test_numbers_round_trip(value: float) -> None:
    assert convert("x", str(value), type(value)) == value


def test_signatures_of_every_shape() -> None:
    @rt.function
    def odd(s: rt.State, first: int, /, second: str, *rest: str, third: bool = False, **more: int) -> None: ...

    assert arguments(odd, ["first=1", "extra=4", "third=on"], "Q") == ((1,), {"second": "Q", "extra": 4, "third": True})
    with pytest.raises(WrongUsage, match="missing first, second: give --arg first=\\.\\.\\. --arg second="):
        arguments(odd, [], None)

    @rt.function
    def plain(s: rt.State, text, count=3) -> None: ...

    assert arguments(plain, ["count=4"], "Q") == ((), {"text": "Q", "count": 4})
    assert arguments(plain.bind(text="bound"), [], None) == ((), {})

    @rt.function
    def hidden(s: rt.State, a: NoSuchType) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(WrongUsage, match="cannot be resolved: name 'NoSuchType'"):
        arguments(hidden, [], "Q")


# --- prompts


@pytest.mark.model
def test_a_prompt_alone_is_one_turn(served: Served) -> None:
    program = conversing({"max_tokens": 5, "temperature": 0}).using(backend=served.offline())
    expected = program([("user", "Say\nhi")]).result(WAIT) + "\n"
    options = ("--url", served.url, "--max-tokens", "5", "--temperature", "0")
    for words, piped in ((("Say\nhi",), ""), (("-",), "Say\nhi\n"), ((), "Say\nhi")):
        done = run(*words, *options, say=piped)
        assert (done.exit_code, done.stdout) == (0, expected), done.output
        cut, usage = done.stderr.splitlines()
        assert cut == "[cut at --max-tokens 5]"
        assert usage.startswith("1 call, ")
    assert json.loads(run("Say\nhi", *options, "--json").stdout) == expected.removesuffix("\n")


def test_ctrl_c_is_status_130() -> None:
    def endless(_: Any) -> Any:
        def frames() -> Iterator[bytes]:
            yield b'data: {"choices": [{"delta": {"content": "begun"}}]}\n\n'
            hold.wait(WAIT)

        return 200, {}, frames()

    hold = threading.Event()
    answers = {"/v1/models": said({"data": [{"id": "m"}]}), "/v1/chat/completions": endless}
    with Peer(answers) as peer, Terminal("run", "hi", "--url", peer.url) as screen:
        screen.until("begun")
        screen.interrupt("interrupted")
        assert screen.ended() == 130
        hold.set()
    assert "Traceback" not in screen.shown


def test_what_is_no_prompt(folder: Path) -> None:
    assert "put a prompt in quotes" in error(run("say", "hi"))
    assert "a prompt alone has no parameters" in error(run("hi", "--arg", "a=b"))
    assert "standard input is empty" in error(run())
    assert "standard input is empty" in error(run("programs.py:pair", "-"))


def test_what_is_a_file(folder: Path) -> None:
    assert split("a.py") == (Path("a.py"), "")
    assert split("a/b.py:f") == (Path("a/b.py"), "f")
    assert split("what is in main.py") is None
    assert split("x" * 5000) is None
    assert split("why?\nb.py") is None
    (folder / "with space.py").touch()
    assert split("with space.py") == (Path("with space.py"), "")


# --- results


def test_results() -> None:
    assert shown(None) == ""
    assert shown("a\n") == "a\n"
    assert shown([1, "a"]) == "[1, 'a']\n"
    assert as_json({"a": Box(size=1), "b": Colour.RED, "c": (1, None), "d": Pair(1)}) == (
        '{"a":{"size":1},"b":1,"c":[1,null],"d":{"left":1,"right":"r"}}'
    )
    with pytest.raises(rt.ConstraintError, match="object is not known to JSON"):
        as_json([object()])


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(), st.lists))
def test_results_as_json(value: Any) -> None:
    assert json.loads(as_json(value)) == value


@pytest.mark.parametrize("words", [["--help"], ["chat", "--help"], ["run", "--help"]], ids=str)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    heavy = ["torch", "fastapi", "transformers", "numpy", "httpx", "rich", "zmq", "ramet.runtime", "ramet.examples"]
    heavy += ["pydantic"] if words == ["--help"] else []  # typer's own parser of numbers has it for the others
    code = (
        "import contextlib, io, sys\n"
        "from ramet.__main__ import app\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        f"    app({words!r})\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
